//! Errors of training.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use exec::ExecError;

/// Why training cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The generated step does not load or run.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A step without anything to predict.
    #[error("step {step} has no target: every token of its batches is masked")]
    NoTargets {
        /// Which.
        step: u64,
    },
    /// A gradient that is no number. Nothing was updated.
    #[error(
        "step {step}: the gradient of `{parameter}` is not finite (the loss is {loss}): lower the \
         learning rate, clip gradients, or look at the data of this step; parameters are those of \
         the step before"
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// The first parameter whose gradient it is.
        parameter: String,
        /// The step's loss.
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

impl TrainError {
    pub(crate) fn file(path: &Path, reason: impl fmt::Display) -> TrainError {
        TrainError::File { path: path.into(), reason: reason.to_string() }
    }
}
