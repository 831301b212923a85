//! Training: what a run is told, what it is fed, and the loop around a generated step.
//!
//! [`TrainConfig`] is the typed schema of `brolly train CONFIG.toml`. [`Dataset`] makes [`Batch`]es
//! of the files that it names: at a [`Position`], a [`Step`] says which rows come next, what each
//! rank computes of them, and how many targets the loss is the mean over. A [`Trainer`] takes one
//! step after another on a [`TrainStep`], the entries of a compiled artifact with memory for
//! parameters and all that an optimiser keeps; [`Checkpoints`] hold that between runs.
//!
//! [`Rank`]s of a job compute different rows and meet in the collectives of the step's entries;
//! what they hold in parts is gathered where it is written to files.
//!
//! The crate links no compiler: steps come as artifacts.

mod checkpoint;
mod config;
mod data;
mod dropout;
mod error;
mod init;
mod log;
mod lora;
mod loss_scale;
mod micro_batch;
mod parts;
mod rank;
mod rate;
mod rule;
mod schedule;
mod settings;
mod train_step;
mod trainer;
mod weights;

pub use checkpoint::{Checkpoints, Saved, fingerprint};
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
pub use dropout::stated_dropout;
pub use error::TrainError;
pub use init::initialize;
pub use log::{Line, Log, SampleLine};
pub use lora::{export_lora, export_merged, initialize_lora};
pub use loss_scale::LossScale;
pub use micro_batch::MicroBatch;
pub use rank::Rank;
pub use rule::Rule;
pub use settings::StepSettings;
pub use train_step::{ParameterInfo, TrainStep, sets, stage_manifest};
pub use trainer::{Metrics, Trainer};
pub use weights::{export, export_as, load_pretrained};
