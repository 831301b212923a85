//! A device, and a model that is loaded on it.

use std::{io, num::NonZeroUsize, sync::Arc};

use ir::{Target, artifact::Artifact};

use crate::{
    ExecError,
    code::Code,
    gpu::{Gpu, Loaded},
    memory::memory_limit_bytes,
    pool::{Pool, available_threads},
};

/// Where programs run: the cores of this machine, or a GPU.
#[derive(Clone, Debug)]
pub struct Device {
    pool: Arc<Pool>,
    gpu: Option<Gpu>,
}

impl Device {
    /// The CPU with so many threads, or as many as the process may use.
    ///
    /// # Errors
    /// [`ExecError::Threads`].
    pub fn cpu(threads: Option<NonZeroUsize>) -> Result<Device, ExecError> {
        let threads = threads.unwrap_or_else(available_threads);
        let pool = Pool::new(threads)
            .map_err(|source| ExecError::Threads { threads: threads.get(), source })?;
        Ok(Device { pool: Arc::new(pool), gpu: None })
    }

    /// A GPU, and so many threads of the CPU for what is not computed there.
    ///
    /// # Errors
    /// [`ExecError::Threads`], [`ExecError::Cuda`].
    pub fn cuda(device: cuda::Device, threads: Option<NonZeroUsize>) -> Result<Device, ExecError> {
        Ok(Device { gpu: Some(Gpu::new(device)?), ..Device::cpu(threads)? })
    }

    /// A device of the kind that code for `target` needs, unless a GPU is asked for; of several
    /// GPUs the one of that number, or the first. `CUDA_VISIBLE_DEVICES` says which there are.
    ///
    /// # Errors
    /// [`ExecError::Threads`], [`ExecError::Cuda`].
    pub fn open(
        target: &Target,
        gpu: Option<u32>,
        threads: Option<NonZeroUsize>,
    ) -> Result<Device, ExecError> {
        match (&target.cuda, gpu) {
            (None, None) => Device::cpu(threads),
            (_, gpu) => Device::open_gpu(gpu.unwrap_or(0), threads),
        }
    }

    /// The GPU of this number.
    ///
    /// # Errors
    /// [`ExecError::Threads`], [`ExecError::Cuda`].
    pub fn open_gpu(gpu: u32, threads: Option<NonZeroUsize>) -> Result<Device, ExecError> {
        Device::cuda(cuda::Device::open(gpu)?, threads)
    }

    /// How many GPUs there are.
    ///
    /// # Errors
    /// [`ExecError::Cuda`] if there is no driver.
    pub fn gpus() -> Result<u32, ExecError> {
        Ok(cuda::Device::count()?)
    }

    /// Its threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What it is, if it is a GPU.
    pub fn facts(&self) -> Option<&cuda::Facts> {
        self.gpu.as_ref().map(|gpu| gpu.device().facts())
    }

    /// Memory that programs on it may use: what this process may, or what of a GPU was free when it
    /// was opened.
    pub fn memory_limit_bytes(&self) -> Option<u64> {
        match &self.gpu {
            Some(gpu) => Some(gpu.free_bytes()),
            None => memory_limit_bytes(),
        }
    }

    /// Bytes a second that a copy of so many bytes within a GPU's memory reads and writes, or of as
    /// many as there is room for; `None` of the CPU.
    ///
    /// # Errors
    /// [`ExecError::Cuda`].
    pub fn copy_bandwidth(&self, bytes: u64) -> Result<Option<f64>, ExecError> {
        Ok(self.gpu.as_ref().map(|gpu| gpu.copy_bandwidth(bytes)).transpose()?)
    }

    pub(crate) fn gpu(&self) -> Option<&Gpu> {
        self.gpu.as_ref()
    }
}

/// An artifact with its code loaded, on a device.
#[derive(Debug)]
pub struct Model {
    artifact: Arc<Artifact>,
    device: Device,
    code: ModelCode,
}

/// What a model has on its device.
#[derive(Debug)]
pub(crate) enum ModelCode {
    /// Code that is mapped.
    Cpu(Code),
    /// Weights and modules that are uploaded.
    Gpu(Loaded),
}

impl Model {
    /// Maps the code of an artifact, or uploads its weights.
    ///
    /// # Errors
    /// [`ExecError::Code`], [`ExecError::Device`], [`ExecError::Architecture`],
    /// [`ExecError::Cuda`].
    pub fn load(artifact: Arc<Artifact>, device: Device) -> Result<Arc<Model>, ExecError> {
        let other =
            |known, device| Err(ExecError::Device { path: artifact.path().into(), known, device });
        let code = match (&device.gpu, artifact.manifest().target.cuda) {
            (None, None) => {
                let fail =
                    |source: io::Error| ExecError::Code { path: artifact.path().into(), source };
                ModelCode::Cpu(Code::map(artifact.file(), artifact.code_range()).map_err(fail)?)
            }
            (Some(gpu), Some(_)) => ModelCode::Gpu(Loaded::new(&artifact, gpu)?),
            (None, Some(_)) => return other("GPUs", "the CPU"),
            (Some(_), None) => return other("CPUs", "a GPU"),
        };
        Ok(Arc::new(Model { artifact, device, code }))
    }

    /// The artifact.
    pub fn artifact(&self) -> &Arc<Artifact> {
        &self.artifact
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn code(&self) -> &ModelCode {
        &self.code
    }
}
