//! Runs compiled programs, on the CPU or on a GPU.
//!
//! A [`Model`] is an artifact whose code is mapped and whose device is chosen. From it come
//! [`Executable`]s, one per entry point, which share weights, code and threads; each has its arena.
//! Memory that outlives a run, such as keys and values, is a [`States`] that runs are given.
//!
//! ```no_run
//! # use std::sync::Arc;
//! use brolly_exec::{Device, Executable, Model, States};
//!
//! let artifact = Arc::new(ir::artifact::Artifact::open("model.brolly".as_ref())?);
//! let model = Model::load(artifact, Device::cpu(None)?)?;
//! let mut main = Executable::load(&model, "main", &[])?;
//! let x = [1.0f32, 2.0, 3.0];
//! main.run(&mut States::none(), &[("N", 3)], &[("x", bytemuck::cast_slice(&x))])?;
//! let y: &[f32] = main.output("y")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Everything that can be decided is decided when a program is loaded: pointers, sizes, the split
//! into tiles. A run copies the inputs into the arena, evaluates the sizes that depend on symbols,
//! and walks the launches on all threads at once with a barrier between two launches. Threads take
//! tiles as they get to them, since cores of shared machines differ in speed from moment to moment;
//! no kernel's result depends on which thread computed which tile.
//!
//! Ranks of one job meet in [`collectives`].
//!
//! Not here: what a model means (tokens, sequences, sampling), and any arithmetic but the folds of
//! collectives.

mod arena;
mod bind;
mod channel;
mod code;
pub mod collectives;
mod device;
mod error;
mod executable;
mod gpu;
mod launch;
mod links;
mod meeting;
mod memory;
mod pool;
mod resident;
mod states;
#[cfg(test)]
mod testing;
mod trace;

pub use arena::Arena;
pub use channel::Channel;
pub use device::{Device, Model};
pub use error::ExecError;
pub use executable::{Executable, LaunchTime};
pub use links::Route;
pub use meeting::Groups;
pub use memory::{
    GPU_OVERHEAD_BYTES, HOST_OVERHEAD_BYTES, Memory, host_overhead_bytes, memory_limit_bytes,
    peak_resident_bytes,
};
pub use pool::{Pool, TileQueue, Worker, available_threads};
pub use states::States;
pub use trace::Trace;
