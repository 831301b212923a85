//! End to end: models in, compiled, run, and compared with what others compute.
//!
//! One binary, since each that links MLIR costs seconds and 200 MB.

mod artifacts;
mod bitwise;
mod families;
mod fuzz;
mod minilm;
mod onnx;
mod support;
