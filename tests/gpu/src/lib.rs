//! Cases and models that a GPU is checked with, as a folder, and the runner that checks and times
//! them.
//!
//! A folder holds `cases/*.json`, one [`Case`] each, and the files that those name, by digests of
//! what is in them, in `data/` and `kernels/`. Whoever compiles kernels writes it; the runner needs
//! a driver and nothing else.
//!
//! - [`noise`]: operands that are generated where they are needed.
//! - [`Folder`]: reads and writes cases.
//! - [`worker`]: runs cases on the device, in a process of its own, for a kernel that fails takes
//!   the process's context with it, and one that hangs must be killed.
//! - [`supervisor`]: starts workers and prints what they find.
//! - [`library`]: the products that are timed, by cuBLASLt.
//! - [`models`]: whole models, in the folder `models/`, held against what the CPU computes.

mod case;
pub mod compare;
mod folder;
pub mod library;
pub mod models;
pub mod noise;
pub mod reference;
pub mod report;
pub mod supervisor;
pub mod timing;
pub mod worker;

pub use case::{Case, Check, Operand, Output, Same, Source, Timing};
pub use folder::{CaseError, Folder};
