//! Kernels.

use std::sync::Arc;

use crate::{
    CudaError, Device, Launch,
    driver::{Driver, Function, Module, Shape},
    launch::{Param, Value},
};

/// Dynamic shared memory that a kernel may have without asking.
const SHARED_BYTES: u32 = 48 << 10;
/// How an ELF file, as a cubin is one, begins.
const ELF: &[u8] = b"\x7fELF";
/// Wrong architecture: no image for the device, PTX too new for the driver or of another target.
const NO_CODE: [u32; 4] = [200, 209, 218, 222];

/// A kernel of a module of its own; its copies are the same one.
#[derive(Clone, Debug)]
pub struct Kernel {
    loaded: Arc<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    driver: Arc<dyn Driver>,
    module: Module,
    function: Function,
    symbol: String,
    param_sizes: Vec<usize>,
}

impl Kernel {
    /// Loads a module from a cubin, or from PTX, which the driver assembles, and finds a kernel.
    ///
    /// # Errors
    /// [`CudaError::Architecture`] if the code is for another device; what the driver, or its
    /// assembler, says.
    pub fn load(device: &Device, image: &[u8], symbol: &str) -> Result<Kernel, CudaError> {
        let driver = device.driver().clone();
        // PTX is a text that ends with zero.
        let text: Vec<u8>;
        let image = if image.starts_with(ELF) || image.ends_with(&[0]) {
            image
        } else {
            text = image.iter().copied().chain([0]).collect();
            &text
        };
        let module = driver.load(image).map_err(|error| {
            if !NO_CODE.contains(&error.code) {
                return error.into();
            }
            let facts = device.facts();
            CudaError::Architecture {
                kernel: symbol.into(),
                device: facts.name.clone(),
                capability: facts.capability,
                reason: error.to_string(),
            }
        })?;
        let found = driver.function(module, symbol);
        let found = found.and_then(|function| Ok((function, driver.param_sizes(function)?)));
        match found {
            Ok((function, param_sizes)) => {
                let symbol = symbol.into();
                let loaded = Loaded { driver, module, function, symbol, param_sizes };
                Ok(Kernel { loaded: Arc::new(loaded) })
            }
            Err(error) => {
                let _ = driver.unload(module);
                Err(CudaError::Launch { kernel: symbol.into(), source: error })
            }
        }
    }

    /// Name of its entry.
    #[must_use]
    pub fn symbol(&self) -> &str {
        &self.loaded.symbol
    }

    /// Checks a launch against the code, and allows it the shared memory that it asks for.
    pub(crate) fn prepare(&self, launch: &Launch) -> Result<Shape, CudaError> {
        launch.check(self.loaded.driver.facts())?;
        let sizes: Vec<usize> = launch.params.iter().map(Param::size).collect();
        if launch.symbol != self.loaded.symbol {
            return Err(launch.invalid(format!("the kernel is `{}`", self.loaded.symbol)));
        }
        if sizes != self.loaded.param_sizes {
            let takes = &self.loaded.param_sizes;
            let reason = format!("parameters of {sizes:?} bytes, the kernel takes {takes:?}");
            return Err(launch.invalid(reason));
        }
        if launch.shared_bytes > SHARED_BYTES {
            let allowed =
                self.loaded.driver.allow_shared(self.loaded.function, launch.shared_bytes);
            allowed
                .map_err(|source| CudaError::Launch { kernel: launch.symbol.clone(), source })?;
        }
        Ok(Shape {
            grid: launch.grid,
            block: launch.block,
            cluster: launch.cluster,
            shared_bytes: launch.shared_bytes,
            dependent: launch.dependent,
        })
    }

    pub(crate) fn function(&self) -> Function {
        self.loaded.function
    }

    /// Whether the values are what the kernel takes.
    pub(crate) fn takes(&self, values: &[Value]) -> bool {
        values.iter().map(|v| v.bytes().len()).eq(self.loaded.param_sizes.iter().copied())
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let _ = self.driver.unload(self.module);
    }
}
