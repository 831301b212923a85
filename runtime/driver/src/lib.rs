//! The compile pipeline end to end: from a model folder or an ONNX file to an artifact.
//!
//! [`compile`] runs the stages of one table in order and times each; [`check`] runs those that find
//! problems and writes nothing. [`Cache`] compiles a model once for commands that are given a model
//! where they need an artifact; [`KernelCache`] keeps compiled kernels from compile to compile.
//!
//! The driver is where the crates of floor 1 meet: frontends hand it a graph, passes rewrite it,
//! code generation turns kernel specifications into an image, and the artifact format takes it all.
//! It knows nothing of text: tokenizer files travel through as JSON.

mod cache;
mod compile;
mod error;
mod fit;
mod fold;
mod kernel_cache;
mod live;
mod lora;
mod parallel;
mod pipeline;
mod progress;
mod sums;
mod training;
mod tune;

pub use cache::Cache;
pub use codegen::{
    Assembler, Codegen, native_target,
    schedule::{Family, Tile, Timed, Tuning, TuningError, Variant},
};
pub use compile::{
    CompileOptions, Compiled, GpuLibrary, Quantization, StageTime, check, compile, kernel_specs,
};
pub use error::CompileError;
pub use frontend::{ImportOptions, model_files};
pub use kernel_cache::KernelCache;
pub use lora::Lora;
pub use passes::Update;
pub use pipeline::run_pass;
pub use progress::{Progress, Silent};
pub use sums::{Sum, sums};
pub use training::{Group, Keep, Training, Zero};
pub use tune::{
    Candidate, Clock, Product, TuneOptions, Tuned, WallClock, products, tune, tune_gpu,
    tuning_device,
};
