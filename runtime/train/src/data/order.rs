//! Where a run is in its data, and how ranks share a step's rows.

use serde::{Deserialize, Serialize};

/// Where a run is in the order of samples. It holds at any number of ranks, micro-batch and
/// accumulation: it counts samples, and what a sample is follows from data, `seq_len` and seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Samples that steps have taken.
    pub samples: u64,
    /// How many of them came from each source.
    pub(super) taken: Vec<u64>,
    /// The digest of what the order follows from.
    pub(super) order: String,
}

/// How many rows a step takes, and how they are dealt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Rows of a rank in a micro-step.
    pub micro_batch: usize,
    /// Ranks along the mesh's data axis; ranks that differ on other axes share their rows.
    pub data_ranks: usize,
    /// Micro-steps of a step.
    pub grad_accum: usize,
}

impl BatchShape {
    /// Rows of a step; `None` if they are more than can be counted.
    #[must_use]
    pub fn rows(&self) -> Option<usize> {
        self.micro_batch.checked_mul(self.data_ranks)?.checked_mul(self.grad_accum)
    }

    /// The first of the rows of a rank in a micro-step, within the step's: ranks are dealt
    /// contiguous parts, and micro-steps contiguous parts of these.
    pub(super) fn first(&self, data_rank: usize, micro_step: usize) -> Option<usize> {
        let is_there = data_rank < self.data_ranks && micro_step < self.grad_accum;
        is_there.then(|| (data_rank * self.grad_accum + micro_step) * self.micro_batch)
    }
}
