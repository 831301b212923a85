//! What can go wrong when a program is loaded or run.

use std::{io, path::PathBuf};

use ir::artifact::ArtifactError;

/// Why a program cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// The artifact is at fault.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The code cannot be made executable.
    #[error(
        "{}: its code cannot be mapped as executable: {source}; if the file system is mounted with \
         `noexec`, copy the file to another one",
        path.display()
    )]
    Code {
        /// The artifact.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Threads cannot be started.
    #[error("cannot start {threads} threads: {source}; ask for fewer with `--threads N`")]
    Threads {
        /// How many were wanted.
        threads: usize,
        /// What the operating system said.
        source: io::Error,
    },
    /// Memory cannot be had.
    #[error("{what} needs {bytes} bytes, and {reason}")]
    Memory {
        /// What for.
        what: String,
        /// How much.
        bytes: u64,
        /// Why not, and what to do.
        reason: String,
    },
    /// A GPU cannot be used, or failed.
    #[error(transparent)]
    Cuda(#[from] cuda::CudaError),
    /// The artifact has no code for the device.
    #[error(
        "{}: its code is for {known}, and {device} has compute capability {capability}: compile \
         the model with `--target cuda` for any NVIDIA GPU from Ampere on, with `--target cpu` for \
         processors",
        path.display()
    )]
    Architecture {
        /// The artifact.
        path: PathBuf,
        /// The device's name.
        device: String,
        /// Its compute capability.
        capability: String,
        /// What there is code for.
        known: String,
    },
    /// A block of a kernel needs more than the device gives one.
    #[error(
        "kernel `{kernel}` needs {bytes} bytes of shared memory, and a block of {device} has at \
         most {most}"
    )]
    SharedMemory {
        /// The kernel.
        kernel: String,
        /// What it needs.
        bytes: u32,
        /// The device's name.
        device: String,
        /// What there is.
        most: u32,
    },
    /// The artifact is for another kind of device.
    #[error("{}: its code is for {known}, and it is to run on {device}", path.display())]
    Device {
        /// The artifact.
        path: PathBuf,
        /// What there is code for.
        known: &'static str,
        /// Where it is to run.
        device: &'static str,
    },
    /// A symbol has no value, a value out of its bounds, or does not exist.
    #[error("entry `{entry}`: symbol `{symbol}` {reason}")]
    Symbol {
        /// The entry point.
        entry: String,
        /// The symbol.
        symbol: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// A collective of the program failed.
    #[error("{label}: {source}")]
    Collective {
        /// What it was about.
        label: String,
        /// Why.
        source: crate::collectives::CollectiveError,
    },
    /// Ranks on GPUs cannot meet in the way that was asked for.
    #[error(
        "collectives cannot go between the GPUs: {reason}; with `host` or `auto` they go by way of \
         the host"
    )]
    Route {
        /// Why not.
        reason: String,
    },
    /// The ranks at hand are not those that the program was compiled for.
    #[error("entry `{entry}`: {reason}")]
    Ranks {
        /// The entry point.
        entry: String,
        /// What differs.
        reason: String,
    },
    /// An input, output or state is missing, unknown or of the wrong type or size.
    #[error("entry `{entry}`: {role} `{name}` {reason}")]
    Port {
        /// The entry point.
        entry: String,
        /// `input`, `output` or `state`.
        role: &'static str,
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
}
