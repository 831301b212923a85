//! Collectives as ranks use them: results against a plain reference, and failures of every kind.
//!
//! Ranks that are processes are this program again, started with the role that they are to play.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "helpers of tests are tests"
)]

mod bitwise;
mod faults;
mod launch;
mod messages;
mod mpi;
mod processes;
mod reference;
mod roles;
mod script;
mod tcp;
