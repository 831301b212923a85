//! What a micro-step is fed.

use crate::{Batch, IGNORED};

/// Tokens of packed documents, and what is to be predicted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MicroBatch {
    /// Token ids of all documents, one after another.
    pub tokens: Vec<i32>,
    /// Position of each token in its document.
    pub positions: Vec<i32>,
    /// Where each document begins, and the end of the last.
    pub cu_seqlens: Vec<i32>,
    /// Tokens after which a target stands.
    pub rows: Vec<i32>,
    /// The target of each row.
    pub targets: Vec<i32>,
    /// What is dropped follows from this, in a program that drops.
    pub dropout_key: i64,
}

impl MicroBatch {
    /// The numbers of tokens, documents and rows, by the symbols that stand for them.
    #[must_use]
    pub fn sizes(&self) -> [(&'static str, usize); 3] {
        let documents = self.cu_seqlens.len().saturating_sub(1);
        [("T", self.tokens.len()), ("S", documents), ("R", self.rows.len())]
    }

    /// Removes all documents.
    pub fn clear(&mut self) {
        let MicroBatch { tokens, positions, cu_seqlens, rows, targets, .. } = self;
        [tokens, positions, cu_seqlens, rows, targets].into_iter().for_each(Vec::clear);
    }

    /// A token with nothing to predict: for a rank that has no rows where others do, so that all
    /// come to the same collectives.
    #[must_use]
    pub fn nothing() -> MicroBatch {
        let [tokens, positions, rows] = [(); 3].map(|()| vec![0]);
        let (cu_seqlens, targets) = (vec![0, 1], vec![IGNORED]);
        MicroBatch { tokens, positions, cu_seqlens, rows, targets, dropout_key: 0 }
    }

    /// Adds a document. `targets` has one entry for each of its tokens, negative where there is
    /// nothing to predict.
    pub fn push(&mut self, tokens: &[i32], targets: &[i32]) {
        if self.cu_seqlens.is_empty() {
            self.cu_seqlens.push(0);
        }
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((0..).take(tokens.len()));
        self.cu_seqlens.push(count(self.tokens.len()));
        for (row, target) in (count(start)..).zip(targets).filter(|(_, target)| **target >= 0) {
            self.rows.push(row);
            self.targets.push(*target);
        }
    }
}

impl From<&Batch> for MicroBatch {
    fn from(batch: &Batch) -> MicroBatch {
        let mut rows = Vec::new();
        let mut targets = Vec::new();
        for (row, target) in (0..).zip(&batch.targets).filter(|(_, target)| **target >= 0) {
            rows.push(row);
            targets.push(*target);
        }
        MicroBatch {
            tokens: batch.tokens.clone(),
            positions: batch.positions.clone(),
            cu_seqlens: batch.cu_seqlens.clone(),
            rows,
            targets,
            dropout_key: 0,
        }
    }
}

/// A number of tokens, which are fewer than 2³¹.
fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
