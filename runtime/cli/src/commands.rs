//! The commands, one file each.

mod bench;
mod embed;
mod exec;
mod generate;
mod inspect;
mod plan;
mod score;
mod serve;
mod train;

#[cfg(feature = "compiler")]
mod compiler;
#[cfg(not(feature = "compiler"))]
#[path = "commands/no_compiler.rs"]
mod compiler;

pub(crate) use bench::bench;
pub(crate) use compiler::{
    cached_artifact, check, compile, opt, training_artifact, training_plan, tune,
};
pub(crate) use embed::embed;
pub(crate) use exec::exec;
pub(crate) use generate::generate;
pub(crate) use inspect::inspect;
pub(crate) use plan::plan;
pub(crate) use score::score;
pub(crate) use serve::serve;
#[cfg(feature = "compiler")]
pub(crate) use train::configuration;
pub(crate) use train::train;
