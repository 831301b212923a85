//! The e-graph: many equal terms of one function, shared.
//!
//! One e-graph is built for each function, over an open language: [`ENode`] takes any operator of
//! the table. [`Facts`] infers types as the operators do. [`Terms`] adds graphs and terms, and is
//! what rules write to. Nothing here chooses between terms; see `extract`.

mod facts;
mod language;
mod terms;

pub use facts::{Data, Facts, Known, attrs};
pub use language::{ENode, Kind};
pub use terms::{Function, Terms};

#[cfg(test)]
pub(crate) use terms::build_term;
pub(crate) use terms::count_axes_from_front;

/// An e-graph over operators.
pub type EGraph = egg::EGraph<ENode, Facts>;
