//! Sums of what several ranks have, for the collectives of programs on GPUs.
//!
//! Devices move bytes between ranks, and generated code adds them: in the order of the ranks, as
//! collectives on the host do, so that where ranks meet changes no bit.

use std::{collections::BTreeMap, sync::Arc};

use ir::{
    Attrs, CollectiveOp, DType, Dim, Fold, Kernel, KernelSpec, Layout, Module, Program, TensorType,
};

/// A sum to come.
#[derive(Clone, Debug)]
pub struct Sum {
    dtype: DType,
    ranks: u32,
    /// What its kernel computes.
    pub spec: KernelSpec,
}

/// The most elements of a sum: parts are shorter.
const MOST: i64 = 1 << 26;

/// The distinct sums of some programs.
pub fn sums<'a>(programs: impl IntoIterator<Item = &'a Program>) -> Vec<Sum> {
    let collectives = programs.into_iter().flat_map(|program| &program.collectives);
    let sums = collectives.filter(|c| c.op != CollectiveOp::AllGather && c.ranks > 1);
    let distinct: BTreeMap<(&str, u32), DType> =
        sums.map(|c| ((c.dtype.name(), c.ranks), c.dtype)).collect();
    distinct.into_iter().map(|((_, ranks), dtype)| Sum::new(dtype, ranks)).collect()
}

impl Sum {
    fn new(dtype: DType, ranks: u32) -> Sum {
        let mut module = Module::new("sum");
        module.symbol(Fold::SYMBOL, 0, MOST / Fold::STEP.cast_signed());
        let elements = Dim::symbol(Fold::SYMBOL) * Dim::from(Fold::STEP.cast_signed());
        let ty = TensorType::new(dtype, [elements]);
        let mut b = module.builder("sum");
        let wide = match dtype {
            DType::Bf16 | DType::F16 => DType::F32,
            _ => dtype,
        };
        let typed = "operands of one type add up";
        let mut sum = None;
        for rank in 0..ranks {
            let x = b.param(&format!("rank.{rank}"), ty.clone()).expect(typed);
            let x = if wide == dtype { x } else { b.cast(x, wide).expect(typed) };
            sum = Some(match sum {
                None => x,
                Some(sum) => b.add(sum, x).expect(typed),
            });
        }
        let sum = sum.expect("several ranks");
        let sum = if wide == dtype { sum } else { b.cast(sum, dtype).expect(typed) };
        b.output("sum", sum);
        let spec = KernelSpec {
            op: "fused",
            attrs: Attrs::none(),
            operands: vec![Some(Layout::contiguous(&ty)); ranks as usize],
            results: vec![Layout::contiguous(&ty)],
            body: Some(Arc::new(b.finish())),
            symbols: Arc::new(module.symbols),
        };
        Sum { dtype, ranks, spec }
    }

    /// As an artifact holds it, with the kernel that was made of it.
    #[must_use]
    pub fn fold(&self, kernel: Kernel) -> Fold {
        let symbols = (*self.spec.symbols).clone();
        Fold { dtype: self.dtype, ranks: self.ranks, symbols, kernel }
    }
}
