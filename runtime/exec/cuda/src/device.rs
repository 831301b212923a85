//! A device.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    CudaError, Memory, Pinned, Staging,
    cublaslt::{self, CublasLt},
    driver::{self, Driver},
    nccl::{self, Nccl, UniqueId},
};

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// As its maker calls it.
    pub name: String,
    /// Compute capability: (9, 0) is Hopper.
    pub capability: (u32, u32),
    /// The newest CUDA that the driver speaks, as CUDA counts: 13000 is 13.0.
    pub driver: u32,
    /// All of its memory.
    pub memory_bytes: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Most bytes of shared memory that a block may have.
    pub shared_bytes: u32,
    /// Second-level cache.
    pub l2_bytes: u32,
    /// Highest clock of the multiprocessors.
    pub clock_khz: u32,
}

/// A CUDA device; its copies are the same one.
#[derive(Clone, Debug)]
pub struct Device {
    driver: Arc<dyn Driver>,
    /// What stands for NCCL, if it is not NCCL.
    nccl: Option<Arc<dyn Nccl>>,
    /// What stands for cuBLASLt, if it is not cuBLASLt.
    cublaslt: Option<Arc<dyn CublasLt>>,
}

impl Device {
    /// Opens the driver and the device of this number.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::OldDriver`], [`CudaError::NoDevice`], or what the
    /// driver says.
    pub fn open(index: u32) -> Result<Device, CudaError> {
        Ok(Device::with(driver::open(index)?))
    }

    /// How many devices the driver sees: those that `CUDA_VISIBLE_DEVICES` names, or all.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::OldDriver`], or what the driver says.
    pub fn count() -> Result<u32, CudaError> {
        Ok(driver::begin()?.1)
    }

    /// A device behind another driver, such as one that emulates it.
    #[must_use]
    pub fn with(driver: Arc<dyn Driver>) -> Device {
        Device { driver, nccl: None, cublaslt: None }
    }

    /// The same device, whose ranks meet by something else than NCCL.
    #[must_use]
    pub fn meeting_by(self, nccl: Arc<dyn Nccl>) -> Device {
        Device { nccl: Some(nccl), ..self }
    }

    /// The same device, whose products that a library is to compute something else than cuBLASLt
    /// does.
    #[must_use]
    pub fn multiplying_by(self, cublaslt: Arc<dyn CublasLt>) -> Device {
        Device { cublaslt: Some(cublaslt), ..self }
    }

    /// cuBLASLt, which is opened now if it was not before.
    ///
    /// # Errors
    /// [`CudaError::NoCublasLt`], [`CudaError::OldCublasLt`].
    pub(crate) fn cublaslt(&self) -> Result<Arc<dyn CublasLt>, CudaError> {
        let open = || cublaslt::open(self.facts().driver);
        self.cublaslt.clone().map_or_else(open, Ok)
    }

    /// A new id for ranks to meet by.
    ///
    /// # Errors
    /// [`CudaError::NoNccl`], [`CudaError::OldNccl`], [`CudaError::Nccl`].
    pub fn unique_id(&self) -> Result<UniqueId, CudaError> {
        self.driver.enter()?;
        Ok(self.nccl()?.unique_id()?)
    }

    /// NCCL, which is opened now if it was not before.
    ///
    /// # Errors
    /// [`CudaError::NoNccl`], [`CudaError::OldNccl`].
    pub fn nccl(&self) -> Result<Arc<dyn Nccl>, CudaError> {
        self.nccl.clone().map_or_else(nccl::open, Ok)
    }

    /// What it is.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        self.driver.facts()
    }

    /// Bytes of its memory that are free, and all.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        Ok(self.driver.memory()?)
    }

    /// One allocation of so many bytes, whose address is a multiple of 256.
    ///
    /// # Errors
    /// [`CudaError::Memory`] if there is not so much.
    pub fn allocate(&self, bytes: u64) -> Result<Memory, CudaError> {
        Memory::new(self, bytes)
    }

    /// Two pinned buffers of so many bytes each, to upload and download by.
    ///
    /// # Errors
    /// What the driver says.
    pub fn staging(&self, bytes: usize) -> Result<Staging, CudaError> {
        Staging::new(self, bytes)
    }

    /// Pinned memory of so many bytes, which work copies from and to.
    ///
    /// # Errors
    /// What the driver says.
    pub fn pin(&self, bytes: usize) -> Result<Pinned, CudaError> {
        Pinned::new(self, bytes)
    }

    pub(crate) fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }
}
