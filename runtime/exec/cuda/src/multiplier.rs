//! Products by cuBLASLt, and the algorithms that it has chosen for them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    Address, CudaError, Device,
    cublaslt::{AlgorithmHandle, CublasLt, LtHandle, Matmul, Places},
    driver::{Driver, StreamHandle},
};

/// Beginnings are not told apart beyond multiples of this.
const ALIGN: u64 = 256;
/// What kernels of the library are called.
const SYMBOL: &str = "cublasLtMatmul";

/// cuBLASLt on a device; its copies are the same one.
///
/// An algorithm is chosen when a product of new sizes first comes, and kept, so that in a process
/// equal products give equal bits.
#[derive(Clone, Debug)]
pub struct Multiplier(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    driver: Arc<dyn Driver>,
    library: Arc<dyn CublasLt>,
    handle: LtHandle,
    chosen: Mutex<HashMap<(Matmul, Places<u32>), AlgorithmHandle>>,
}

impl Multiplier {
    /// Opens the library, and makes it ready on a device.
    ///
    /// # Errors
    /// [`CudaError::NoCublasLt`], [`CudaError::OldCublasLt`], [`CudaError::CublasLt`].
    pub fn new(device: &Device) -> Result<Multiplier, CudaError> {
        let (library, driver) = (device.cublaslt()?, device.driver().clone());
        driver.enter()?;
        let handle = library.create()?;
        let inner = Inner { driver, library, handle, chosen: Mutex::default() };
        Ok(Multiplier(Arc::new(inner)))
    }

    /// Gives a product to a stream.
    pub(crate) fn multiply(
        &self,
        matmul: &Matmul,
        places: &Places<u64>,
        stream: StreamHandle,
    ) -> Result<(), CudaError> {
        let Inner { driver, library, handle, chosen } = &*self.0;
        driver.enter()?;
        let aligned = places.map(|at| 1 << at.trailing_zeros().min(ALIGN.trailing_zeros()));
        let mut chosen = chosen.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (matmul.clone(), aligned);
        let algorithm = match chosen.get(&key) {
            Some(algorithm) => *algorithm,
            None => {
                let found = library.choose(*handle, matmul, &aligned)?;
                let algorithm =
                    found.ok_or_else(|| CudaError::NoAlgorithm { product: describe(matmul) })?;
                chosen.insert(key, algorithm);
                algorithm
            }
        };
        Ok(library.multiply(*handle, algorithm, places, stream)?)
    }

    /// What errors call its kernels.
    #[allow(clippy::unused_self, reason = "as of a kernel")]
    pub(crate) const fn symbol(&self) -> &'static str {
        SYMBOL
    }

    /// How many algorithms have been chosen.
    #[must_use]
    pub fn algorithms(&self) -> usize {
        self.0.chosen.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// A product in words.
pub(crate) fn describe(matmul: &Matmul) -> String {
    let Matmul { m, n, k, factors, results, has_bias, residual_stride, .. } = matmul;
    let bias = if *has_bias { " with a bias" } else { "" };
    let residual = if residual_stride.is_some() { " added to" } else { "" };
    format!("{m} x {n} x {k} of {factors} in {results}{bias}{residual}")
}

/// Checks that operands lie in their memory, and where.
pub(crate) fn addresses(
    matmul: &Matmul,
    places: &Places<Address>,
) -> Result<Places<u64>, CudaError> {
    let bytes = matmul.bytes();
    let is_whole = (places.bias.is_some(), places.residual.is_some())
        == (bytes.bias.is_some(), bytes.residual.is_some());
    if !is_whole {
        return Err(CudaError::Invalid {
            kernel: SYMBOL.into(),
            reason: format!("operands of another product than {}", describe(matmul)),
        });
    }
    let option = |at: &Option<Address>, bytes: Option<u64>| {
        at.as_ref().zip(bytes).map(|(at, bytes)| at.range(bytes)).transpose()
    };
    Ok(Places {
        x: places.x.range(bytes.x)?,
        w: places.w.range(bytes.w)?,
        bias: option(&places.bias, bytes.bias)?,
        residual: option(&places.residual, bytes.residual)?,
        y: places.y.range(bytes.y)?,
        workspace: places.workspace.range(bytes.workspace)?,
    })
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Fails if the context is lost, and all of it with that.
        let _ = self.driver.enter();
        let chosen =
            std::mem::take(&mut *self.chosen.lock().unwrap_or_else(PoisonError::into_inner));
        for algorithm in chosen.into_values() {
            let _ = self.library.release(algorithm);
        }
        let _ = self.library.destroy(self.handle);
    }
}
