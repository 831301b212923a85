//! Training: the loop around a generated step.

mod checkpoint;
mod error;
mod init;
mod log;
mod schedule;
mod train_step;
mod trainer;
mod weights;

pub use checkpoint::{Checkpoints, Saved};
pub use error::TrainError;
pub use init::initialize;
pub use log::{Line, Log};
pub use schedule::{Decay, Schedule};
pub use train_step::{MicroBatch, ParameterInfo, TrainStep};
pub use trainer::{Metrics, Rule, Trainer};
pub use weights::{export, load_pretrained};
