//! The passes of brolly: from a model's graph as it was imported to a planned program.
//!
//! [`canonicalize`] and [`optimize`] work on every function by itself; the latter builds one
//! e-graph a function, applies the tables of [`rule`]s and extracts the cheapest term for the
//! machine. [`page_kv`] puts keys and values in paged memory, [`quantize`] makes products of
//! integers or e4m3, [`prepare`] separates what is computed once, [`fuse_rope`] and [`fuse_loops`]
//! make few launches of many, and [`plan_memory`] gives everything a place.
//! [`vjp::differentiate`] adds gradients, [`join_parts`] puts those of parts together,
//! [`mix_precision`] rounds what tensor cores of a GPU read, [`add_lora`] adds adapters of frozen
//! weights, and [`add_dropout`] what is dropped in training alone.
//!
//! Passes never import a frontend, the code generator or the runtime: graphs come in, graphs and
//! [`ir::Program`]s go out, and what kernels can do is asked through [`ir::Kernels`].

mod canonicalize;
mod dropout;
pub mod egraph;
mod extract;
mod fuse_loops;
mod fuse_products;
mod fuse_rope;
mod join_parts;
mod lora;
mod masks;
mod mixed_precision;
mod norm_residuals;
mod optimize;
mod page_kv;
mod partition;
mod pass;
mod plan_memory;
mod prepare;
mod quantize;
mod report;
mod round_activations;
pub mod rule;
mod rules;
mod tensor_parallel;
#[cfg(test)]
mod testing;
mod train_step;
pub mod vjp;
mod weight_only;

pub use canonicalize::{FoldLimits, canonicalize};
pub use dropout::add_dropout;
pub use fuse_loops::{expand_composites, fuse_loops};
pub use fuse_products::fuse_products;
pub use fuse_rope::fuse_rope;
pub use join_parts::join_parts;
pub use lora::{Lora, LowRank, ProductWeight, add_lora, add_merges, merge_entry, product_weights};
pub use mixed_precision::mix_precision;
pub use norm_residuals::take_residuals;
pub use optimize::{WeightParams, optimize, weight_params};
pub use page_kv::{PageOptions, State, page_kv};
pub use partition::{Held, Holding, Sharding};
pub use pass::PassError;
pub use plan_memory::{Plan, plan_memory};
pub use prepare::{Recipe, prepare};
pub use quantize::{WeightFormat, quantize};
pub use report::{Fusion, FusionCount, Report};
pub use round_activations::round_activations;
pub use tensor_parallel::tensor_parallel;
pub use train_step::{Parameter, Update, live_weights, train_step, train_step_in_stages};
