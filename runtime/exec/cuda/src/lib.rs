//! CUDA devices: memory, modules, streams, launches and graphs, by the driver alone.
//!
//! The driver is a library that is opened when a device is: nothing here needs CUDA to be built,
//! and a machine without it says so, as [`CudaError::NoDriver`].
//!
//! ```no_run
//! use brolly_cuda::{Device, Kernel, Launch, Stream};
//!
//! # fn run(cubin: &[u8], launch: &Launch) -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::open(0)?;
//! let memory = device.allocate(1 << 20)?;
//! let stream = Stream::new(&device)?;
//! let mut staging = device.staging(1 << 16)?;
//! staging.upload(&stream, &memory.at(0), &[0; 4096])?;
//! let kernel = Kernel::load(&device, cubin, &launch.symbol)?;
//! stream.launch(&kernel, launch, &[memory.at(0), memory.at(4096)])?;
//! stream.synchronize()?;
//! # Ok(())
//! # }
//! ```
//!
//! - [`Launch`] is all that a launch needs, as plain data with sizes evaluated.
//! - [`Memory`] is one allocation; an [`Address`] is a place in it. A program has one arena.
//! - A [`Stream`] keeps what its work uses until the work is done: memory, kernels and graphs can
//!   be dropped at any time and are released after their last use.
//! - [`Staging`] uploads through pinned memory, one half of which is filled while the other is
//!   copied.
//! - [`Pinned`] memory is an end of copies that are work of a stream, also in graphs: the host may
//!   touch it when that was waited for.
//! - A [`Communicator`] moves bytes between the devices of several ranks, by NCCL, which is opened
//!   when the first is made.
//! - A [`Multiplier`] has products computed by cuBLASLt, which is opened when the first is made.
//!
//! Not here: what kernels compute, and which one a program launches.

mod communicator;
pub mod cublaslt;
mod device;
pub mod driver;
mod error;
mod graph;
mod kernel;
mod launch;
mod library;
mod memory;
mod multiplier;
pub mod nccl;
mod pinned;
mod staging;
#[cfg(any(test, feature = "standin"))]
pub mod standin;
mod stream;
#[cfg(test)]
mod tests;

pub use communicator::{Communicator, Message};
pub use device::{Device, Facts};
pub use error::{CudaError, DriverError};
pub use graph::Graph;
pub use kernel::Kernel;
pub use launch::{Launch, Param, Swizzle, TensorMap};
pub use memory::{Address, Memory, WeakAddress};
pub use multiplier::Multiplier;
pub use pinned::Pinned;
pub use staging::Staging;
pub use stream::{Event, Stream};
