//! Errors of training.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::DataError;
use exec::{ExecError, collectives::CollectiveError};

/// Why training cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The generated step does not load or run.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The ranks of the job cannot go on together.
    #[error(transparent)]
    Ranks(#[from] CollectiveError),
    /// A step without anything to predict.
    #[error("step {step} has no target: every token of its batches is masked")]
    NoTargets {
        /// Which.
        step: u64,
    },
    /// A value that is no finite number. Nothing was updated.
    #[error(
        "step {step}: {place}{} is not finite{} (the loss is {loss}): lower the learning rate, clip \
         gradients, or look at the data of this step; parameters are those of the step before",
        of_rank(*rank),
        of_parameter(parameter.as_deref())
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// The first of them, by the order in which they are computed.
        place: String,
        /// The rank that computed it, if there are several.
        rank: Option<usize>,
        /// A parameter that is not finite itself.
        parameter: Option<String>,
        /// The step's loss so far.
        loss: f64,
    },
    /// A file or folder.
    #[error("{}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

fn of_rank(rank: Option<usize>) -> String {
    rank.map_or_else(String::new, |rank| format!(" on rank {rank}"))
}

fn of_parameter(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!(", and its parameter `{name}` is not"))
}

impl TrainError {
    pub(crate) fn file(path: &Path, reason: impl fmt::Display) -> TrainError {
        TrainError::File { path: path.into(), reason: reason.to_string() }
    }
}
