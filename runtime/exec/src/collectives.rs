//! Meetings of the ranks of a job: reductions, gathers, exchanges, in groups of a mesh.
//!
//! A [`World`] is one rank's view of the job. Its [`Group`]s are the sub-meshes; they have the
//! collectives. There are three ways to get worlds:
//!
//! - [`run_threads`]: ranks are threads of one process, which read each other's buffers in place;
//! - [`Launch::join`] under `torchrun` or `srun`: processes over TCP;
//! - [`Launch::join`] under `mpirun`: processes over MPI, by a library that is opened only then.
//!
//! What programs on GPUs send each other goes between the devices, by NCCL, once the ranks have met
//! in one of these ways; see [`Route`](crate::Route).
//!
//! ```
//! use brolly_exec::collectives::{CollectiveError, Mesh, Options, Reduce, run_threads};
//! use ir::DType;
//!
//! let mesh = Mesh::new(&[("data", 2), ("tensor", 2)])?;
//! let sums = run_threads(4, &Options::default(), |world| {
//!     world.agree("the schedule", b"its digest")?;
//!     let mut grad = [world.rank() as f32];
//!     let data = world.group(&mesh, &["data"])?;
//!     data.all_reduce(Reduce::Sum, DType::F32, bytemuck::cast_slice_mut(&mut grad))?;
//!     Ok::<f32, CollectiveError>(grad[0])
//! });
//! let sums: Result<Vec<f32>, CollectiveError> = sums.into_iter().collect();
//! assert_eq!(sums?, [2.0, 4.0, 2.0, 4.0]);
//! # Ok::<(), CollectiveError>(())
//! ```
//!
//! Invariants:
//! - Results depend on the ranks' values alone. Every element is folded in the order of ranks,
//!   whatever the transport, the shards, the chunks and the order in which messages come; so
//!   `reduce_scatter` and then `all_gather` is `all_reduce`, bit for bit.
//! - At every meeting each member tells the others what it came for, and differences are errors.
//! - Every wait has a deadline. The first failure, whoever notices it, fails the job on every rank
//!   with the same report; nobody waits for their own deadline.
//!
//! Not here: when to meet, which is the plan's business, and going on without a rank.

mod attend;
mod call;
mod exchange;
mod failure;
mod frame;
mod group;
mod inbox;
mod launch;
mod loan;
mod local;
mod log;
mod mesh;
mod messages;
mod mpi;
mod ops;
mod post;
mod process;
mod pulse;
mod reduce;
mod rendezvous;
mod shards;
mod slurm;
mod started;
mod tcp;
mod transport;
mod watch;
mod wired;
mod world;

pub use failure::{Cause, CollectiveError, Failure};
pub use group::{Group, Turn};
pub use launch::{Engine, Launch, Launcher};
pub use local::{run_threads, worlds};
pub use mesh::Mesh;
pub use messages::Expected;
pub use reduce::Reduce;
pub use shards::Shards;
pub(crate) use shards::digest;
pub use started::{Handle, Overlap};
pub use world::{Options, World};
