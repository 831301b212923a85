//! A device, and a model that is loaded on it.

use std::{io, num::NonZeroUsize, sync::Arc};

use ir::artifact::Artifact;

use crate::{
    ExecError,
    code::Code,
    pool::{Pool, available_threads},
};

/// Where programs run: the cores of this machine.
#[derive(Clone, Debug)]
pub struct Device {
    pool: Arc<Pool>,
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
        Ok(Device { pool: Arc::new(pool) })
    }

    /// Its threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}

/// An artifact with its code mapped, on a device.
#[derive(Debug)]
pub struct Model {
    artifact: Arc<Artifact>,
    device: Device,
    code: Code,
}

impl Model {
    /// Maps the code of an artifact.
    ///
    /// # Errors
    /// [`ExecError::Code`].
    pub fn load(artifact: Arc<Artifact>, device: Device) -> Result<Arc<Model>, ExecError> {
        let fail = |source: io::Error| ExecError::Code { path: artifact.path().into(), source };
        let code = Code::map(artifact.file(), artifact.code_range()).map_err(fail)?;
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

    pub(crate) fn code(&self) -> &Code {
        &self.code
    }
}
