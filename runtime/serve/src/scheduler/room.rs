//! What is left of a step's budget.

use super::Part;
use crate::sequence::Sequence;

/// Tokens, sequences and rows of logits that a step has room for.
pub(super) struct Room {
    pub(super) tokens: usize,
    pub(super) sequences: usize,
    pub(super) rows: usize,
}

impl Room {
    /// As much of a sequence as there is room for, but `most` tokens at most.
    pub(super) fn part<T>(&self, sequence: &Sequence<T>, most: usize) -> Option<Part> {
        let pending = sequence.pending();
        let mut count = pending.min(self.tokens).min(most);
        if self.sequences == 0 {
            return None;
        }
        let rows_from = sequence.rows_from.unwrap_or(usize::MAX);
        let first_row = |count: usize| {
            let from = rows_from.saturating_sub(sequence.computed).min(count);
            // The last token of all is what the next is drawn after.
            if count == pending { from.min(count - 1) } else { from }
        };
        if count > 0 && count - first_row(count) > self.rows {
            count = if first_row(count) == count - 1 {
                // A single row is wanted and none is left: all but the last token.
                count - 1
            } else {
                first_row(count) + self.rows
            };
        }
        if count == 0 {
            return None;
        }
        Some(Part { id: sequence.id, count, rows: first_row(count)..count })
    }

    /// Counts a part.
    pub(super) fn take(&mut self, part: &Part) {
        self.tokens -= part.count;
        self.sequences -= 1;
        self.rows -= part.rows.len();
    }
}
