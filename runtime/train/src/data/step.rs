//! The samples of a step, and the batches that ranks compute of them.

use super::{
    Dataset,
    order::{BatchShape, Position},
    rows::Batch,
};

/// A row, and how it came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Which source of the blend.
    pub source: usize,
    /// How often its rows were gone through before.
    pub epoch: u64,
    /// The row, in the order of the files.
    pub row: u64,
}

/// The global batch of a step.
#[derive(Clone, Debug)]
pub struct Step<'d> {
    dataset: &'d Dataset,
    shape: BatchShape,
    /// Rank by rank, micro-step by micro-step; `None` is padding.
    samples: Vec<Option<Sample>>,
    next: Position,
}

impl<'d> Step<'d> {
    pub(super) fn new(
        dataset: &'d Dataset,
        shape: BatchShape,
        samples: Vec<Option<Sample>>,
        next: Position,
    ) -> Step<'d> {
        Step { dataset, shape, samples, next }
    }

    /// The samples, rank by rank, micro-step by micro-step; `None` is padding behind the end.
    #[must_use]
    pub fn samples(&self) -> &[Option<Sample>] {
        &self.samples
    }

    /// Where the run is after this step.
    #[must_use]
    pub fn next(&self) -> &Position {
        &self.next
    }

    /// Targets that all ranks learn in all micro-steps: what the loss's sum is divided by. Looks at
    /// the tokens of all rows, four bytes each, so no rank has to ask another.
    #[must_use]
    pub fn target_count(&self) -> u64 {
        let (dataset, samples) = (self.dataset, self.samples.iter().flatten());
        samples.map(|s| dataset.sources[s.source].targets(s.row, dataset.seq_len)).sum()
    }

    /// What a rank computes in a micro-step, both from 0; `None` if there is no such one.
    #[must_use]
    pub fn batch(&self, data_rank: usize, micro_step: usize) -> Option<Batch> {
        let (rows, seq_len) = (self.shape.micro_batch, self.dataset.seq_len);
        let first = self.shape.first(data_rank, micro_step)?;
        let mut batch = Batch::new(rows * seq_len);
        for sample in &self.samples[first..first + rows] {
            match sample {
                Some(s) => self.dataset.sources[s.source].add_to(&mut batch, s.row, seq_len),
                None => batch.pad_by(seq_len),
            }
        }
        Some(batch)
    }
}
