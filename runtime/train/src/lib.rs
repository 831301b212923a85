//! Training: what a run is told, what it is fed, and in which order.
//!
//! [`TrainConfig`] is the typed schema of `brolly train CONFIG.toml`. [`Dataset`] makes [`Batch`]es
//! of the files that it names: at a [`Position`], a [`Step`] says which rows come next, what each
//! rank computes of them, and how many targets the loss is the mean over.
//!
//! The crate links no compiler: steps come as artifacts.

mod config;
mod data;

pub use config::{
    BlendConfig, ByteSize, CheckpointConfig, ConfigError, DataConfig, EvalConfig, Format,
    GroupConfig, Init, LogConfig, LoraConfig, LoraTargets, MemoryConfig, MeshConfig, MeshError,
    NoByteSize, Offload, Optimizer, OptimizerConfig, Precision, Problem, Recompute, Schedule,
    StepsConfig, TrainConfig,
};
pub use data::{
    BadRecords, Batch, BatchShape, DataContext, DataError, Dataset, IGNORED, Position, Progress,
    Sample, Stage, Step,
};
