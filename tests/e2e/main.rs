//! End to end: models in, compiled, run, and compared with what others compute.
//!
//! One binary, since each that links MLIR costs seconds and 200 MB. `support` compiles and caches,
//! `families` holds compiled log-probabilities against transformers'.

mod families;
mod support;
