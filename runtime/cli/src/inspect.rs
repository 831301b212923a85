//! What an artifact holds, prepared for people and programs.
//!
//! Everything is read from the manifest and the compiler's report; nothing is run. [`Summary`] has
//! the facts of the head, [`Cost`]s are estimates by roofline for one core of the target, at the
//! smallest and at the largest step that the artifact was compiled for.

mod cost;
mod document;
mod html;
mod outline;
mod report;
mod summary;
#[cfg(test)]
mod synthetic;
mod timeline;

pub(crate) use document::Document;
pub(crate) use html::page;
pub(crate) use report::{FusionCount, Region, Report, counts, fusion_table};
pub(crate) use summary::{Summary, state_symbols};

use cost::{Cost, Step};
use outline::{Item, outline};
