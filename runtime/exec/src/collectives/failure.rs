//! Why a job of several ranks cannot go on, or not begin.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// What a collective, or what leads up to one, can fail with.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CollectiveError {
    /// A rank has failed, and with it the job: every rank gets the same report.
    #[error(transparent)]
    Failed(Arc<Failure>),
    /// Ranks that have to hold the same do not.
    #[error(
        "{what} of {} from the other ranks'; compile once, and give every rank the same \
             artifact and configuration",
        name_ranks(ranks, "differs", "differ")
    )]
    Differs {
        /// What was compared.
        what: String,
        /// Those in the minority.
        ranks: Vec<usize>,
    },
    /// The arguments make no sense, and nothing was sent.
    #[error("{op}: {reason}")]
    Usage {
        /// The collective.
        op: &'static str,
        /// What is wrong with them.
        reason: String,
    },
    /// A mesh cannot be, or has no such point.
    #[error("mesh: {0}")]
    Mesh(String),
    /// What the launcher says makes no sense.
    #[error("cannot tell which rank this is: {0}")]
    Launch(String),
    /// The ranks do not come together.
    #[error("rank {rank} cannot join the other ranks: {reason}")]
    Join {
        /// This rank.
        rank: usize,
        /// Why not, and what to do.
        reason: String,
    },
    /// The MPI library cannot be used.
    #[error("MPI: {0}")]
    Mpi(String),
}

/// A rank's failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Who is to blame.
    pub rank: usize,
    /// Who noticed.
    pub noticed_by: usize,
    /// At which step that one was.
    pub step: u64,
    /// In, or after, which collective.
    pub place: String,
    /// What happened.
    pub cause: Cause,
}

/// What a rank can fail by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Cause {
    /// It is alive and does not come.
    Late {
        /// How long it was waited for.
        waited_ms: u64,
        /// Where it was when it was last heard of.
        seen: String,
    },
    /// It gives no sign of life.
    Silent {
        /// For how long.
        silent_ms: u64,
    },
    /// Its connection has broken.
    Lost(String),
    /// It has ended while others still waited for it.
    Ended,
    /// It has panicked.
    Panicked(String),
    /// It has said that it failed.
    Failed(String),
    /// It came to another collective.
    Mismatch(String),
    /// It sent what makes no sense.
    Garbled(String),
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { rank, noticed_by, step, place, cause } = self;
        write!(f, "rank {rank} {cause} (at step {step}, {place}; noticed by rank {noticed_by})")
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[allow(clippy::cast_precision_loss, reason = "shown with one digit")]
        let seconds = |ms: &u64| *ms as f64 / 1000.0;
        match self {
            Cause::Late { waited_ms, seen } => {
                write!(f, "did not come within {:.1} s; it was last {seen}", seconds(waited_ms))
            }
            Cause::Silent { silent_ms } => {
                let seconds = seconds(silent_ms);
                write!(f, "has stopped or is cut off: no sign of life for {seconds:.1} s")
            }
            Cause::Lost(reason) => write!(f, "is gone: {reason}"),
            Cause::Ended => write!(f, "has ended while others waited for it"),
            Cause::Panicked(message) => write!(f, "has panicked: {message}"),
            Cause::Failed(message) => write!(f, "has failed: {message}"),
            Cause::Mismatch(theirs) => write!(f, "came to another collective: {theirs}"),
            Cause::Garbled(what) => write!(f, "sent {what}"),
        }
    }
}

impl From<Arc<Failure>> for CollectiveError {
    fn from(failure: Arc<Failure>) -> CollectiveError {
        CollectiveError::Failed(failure)
    }
}

/// `rank 2 differs`, or `ranks 1, 2 and 5 differ`.
pub(super) fn name_ranks(ranks: &[usize], one: &str, many: &str) -> String {
    let names: Vec<String> = ranks.iter().map(usize::to_string).collect();
    match names.as_slice() {
        [] => format!("no rank {one}"),
        [rank] => format!("rank {rank} {one}"),
        [head @ .., last] => format!("ranks {} and {last} {many}", head.join(", ")),
    }
}
