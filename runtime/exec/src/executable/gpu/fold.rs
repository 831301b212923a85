//! Kernels that add what ranks have, in the order of the ranks.

use std::sync::{Mutex, PoisonError};

use cuda::{Address, Stream};
use ir::{CudaArch, DType, Fold, artifact::Artifact};

use super::variant::{Variant, launch};
use crate::{ExecError, executable::sizes::Sizes, gpu::Loaded};

/// The sum of a type over so many ranks.
#[derive(Debug)]
pub(super) struct Adder {
    dtype: DType,
    ranks: u32,
    variants: Vec<Variant>,
    sizes: Mutex<Sizes>,
}

impl Adder {
    pub(super) fn load(
        artifact: &Artifact,
        loaded: &Loaded,
        fold: &Fold,
    ) -> Result<Adder, ExecError> {
        let (program, mut sizes) = (fold.program(), Sizes::default());
        let is_dependent = loaded.arch() == CudaArch::Sm90a;
        let code = fold.kernel.cuda.iter().find(|code| code.arch == loaded.arch());
        // The artifact has been checked: code without an architecture's is a bug of ours.
        let variants = code.expect("code for the architecture").variants.iter().map(|variant| {
            let kernel = loaded.kernel(artifact, variant.module, &variant.symbol)?;
            let number = &mut |dim: &ir::Dim| sizes.number(&program, dim);
            Variant::new(variant, kernel, is_dependent, number)
        });
        let variants = variants.collect::<Result<_, _>>()?;
        Ok(Adder { dtype: fold.dtype, ranks: fold.ranks, variants, sizes: Mutex::new(sizes) })
    }

    /// Whether it adds elements of a type over so many ranks.
    pub(super) fn is_of(&self, dtype: DType, ranks: u32) -> bool {
        (self.dtype, self.ranks) == (dtype, ranks)
    }

    /// Adds so many elements, rounded up to a multiple of [`Fold::STEP`], of each rank; `places`
    /// are theirs and the sum's.
    pub(super) fn add(
        &self,
        stream: &Stream,
        elements: u64,
        places: &[Address],
    ) -> Result<(), ExecError> {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let steps = i64::try_from(elements.div_ceil(Fold::STEP)).unwrap_or(i64::MAX);
        // Parts of a collective are shorter than what overflows.
        sizes.evaluate(&mut vec![steps]).expect("a size in bounds");
        launch(stream, &self.variants, &sizes, (places, &[]), true).map(drop)
    }
}
