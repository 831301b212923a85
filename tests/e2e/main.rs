//! End to end: models in, compiled, run, and compared with what others compute.
//!
//! One binary, since each that links MLIR costs seconds and 200 MB.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]
#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "NaN must count as far off")]

mod artifacts;
mod bitwise;
mod engine;
mod families;
mod fuzz;
mod gpu;
mod kv_types;
mod minilm;
mod onnx;
mod ptx;
mod quantized;
mod samples;
mod soak;
mod support;
mod train;
mod tuning;
