//! A step of a language model: packed tokens of several sequences in, logits of some rows out.

use std::ops::Range;

use crate::{BlockCopy, BlockTable, Logits, ServeError, paging::Paging};

/// What a compiled model takes at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Number of tokens, which ids are below.
    pub vocab_size: usize,
    /// Tokens of one sequence.
    pub max_seq_len: usize,
    /// Tokens of one step.
    pub max_batch_tokens: usize,
    /// Sequences in one step.
    pub max_sequences: usize,
    /// Rows of logits of one step.
    pub max_rows: usize,
    /// Positions in a block of key/value memory.
    pub block_size: usize,
    /// Blocks of key/value memory in all.
    pub blocks: u32,
    /// Length of a sequence's row in `block_tables`.
    pub table_len: usize,
    /// Positions that queries see at most, in every layer, their own among them; `None` where they
    /// see all. What lies before is not read again, and its memory serves others.
    pub window: Option<usize>,
}

/// The operands of a step, as the compiled model reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// `[T]`: token ids, sequence after sequence.
    pub tokens: Vec<i32>,
    /// `[T]`: position of each token in its sequence.
    pub positions: Vec<i32>,
    /// `[S + 1]`: where in `tokens` each sequence begins, and the end.
    pub cu_seqlens: Vec<i32>,
    /// `[R]`: tokens after which logits are wanted.
    pub logit_rows: Vec<i32>,
    /// `[T]`: where each token's keys and values go.
    pub slots: Vec<i32>,
    /// `[S, MB]`: blocks of each sequence, as in [`BlockTable::row`], filled up with zeros.
    pub block_tables: Vec<i32>,
}

/// Something that computes steps: a compiled decoder, or a stand-in for one.
pub trait StepModel {
    /// What it takes.
    fn limits(&self) -> &Limits;

    /// Writes keys and values of the batch's tokens and returns the logits that it asks for.
    ///
    /// Where a device computes them [alone](Self::goes_on_alone), `beside` is called while it does;
    /// if anything fails before, it may not be called.
    ///
    /// # Errors
    /// Whatever running the model reports.
    fn step(&mut self, batch: &Batch, beside: &mut dyn FnMut()) -> Result<Logits<'_>, ServeError>;

    /// Whether a device computes while this thread does something else.
    fn goes_on_alone(&self) -> bool {
        false
    }

    /// Copies the keys and values of a block.
    ///
    /// # Errors
    /// Whatever the memory reports.
    fn copy_block(&mut self, copy: BlockCopy) -> Result<(), ServeError>;
}

impl Limits {
    /// Positions of key/value memory in all.
    pub fn positions(&self) -> usize {
        self.blocks as usize * self.block_size
    }

    /// Tokens of the longest sequence that the model takes and the memory holds, alone. With a
    /// window, memory holds any length if it holds what the model sees.
    pub fn longest(&self) -> usize {
        let at_once = self.paging().at_once(self.max_seq_len, 1);
        let holds_all = at_once <= self.blocks as usize;
        if holds_all { self.max_seq_len } else { self.max_seq_len.min(self.positions()) }
    }

    pub(crate) fn paging(&self) -> Paging {
        Paging::new(self.block_size, self.window)
    }
}

impl Batch {
    /// Empties it.
    pub fn clear(&mut self) {
        let Batch { tokens, positions, cu_seqlens, logit_rows, slots, block_tables } = self;
        for field in [tokens, positions, cu_seqlens, logit_rows, slots, block_tables] {
            field.clear();
        }
    }

    /// Adds tokens of a sequence that stand at positions `start..`; logits are wanted after those
    /// of them that `rows` counts.
    ///
    /// # Panics
    /// If the table has no room for the positions.
    pub fn push(
        &mut self,
        limits: &Limits,
        tokens: &[u32],
        start: usize,
        table: &BlockTable,
        rows: Range<usize>,
    ) {
        if self.cu_seqlens.is_empty() {
            self.cu_seqlens.push(0);
        }
        let first = self.tokens.len();
        self.tokens.extend(tokens.iter().map(|token| token.cast_signed()));
        self.positions.extend((start..start + tokens.len()).map(int));
        self.slots.extend((start..start + tokens.len()).map(|p| int(table.slot(p))));
        self.logit_rows.extend(rows.map(|row| int(first + row)));
        self.cu_seqlens.push(int(self.tokens.len()));
        let blocks = table.row().map(u32::cast_signed);
        self.block_tables.extend(blocks.chain(std::iter::repeat(0)).take(limits.table_len));
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1)
    }
}

/// Sizes are within the model's bounds, which are far below 2^31.
fn int(size: usize) -> i32 {
    i32::try_from(size).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BlockManager;

    #[test]
    fn parts_are_packed_one_after_another() {
        let limits = Limits {
            vocab_size: 100,
            max_seq_len: 12,
            max_batch_tokens: 8,
            max_sequences: 2,
            max_rows: 8,
            block_size: 4,
            blocks: 6,
            table_len: 3,
            window: None,
        };
        let mut pool = BlockManager::new(6, 4, false);
        let (mut a, mut b) = (pool.table(None), pool.table(None));
        pool.grow(&mut a, 0, 3).unwrap();
        pool.grow(&mut b, 0, 5).unwrap();
        pool.grow(&mut a, 3, 6).unwrap();
        let mut batch = Batch::default();
        batch.push(&limits, &[7, 8, 9], 3, &a, 2..3);
        batch.push(&limits, &[5], 4, &b, 0..1);
        let want = Batch {
            tokens: vec![7, 8, 9, 5],
            positions: vec![3, 4, 5, 4],
            cu_seqlens: vec![0, 3, 4],
            logit_rows: vec![2, 3],
            slots: vec![3, 12, 13, 8],
            block_tables: vec![0, 3, 0, 1, 2, 0],
        };
        assert_eq!(batch, want);
        assert_eq!(batch.sequences(), 2);
        batch.clear();
        assert_eq!(batch, Batch::default());
    }

    #[test]
    fn the_first_block_stands_in_for_those_that_are_released() {
        let limits = Limits {
            vocab_size: 100,
            max_seq_len: 40,
            max_batch_tokens: 8,
            max_sequences: 1,
            max_rows: 8,
            block_size: 4,
            blocks: 4,
            table_len: 10,
            window: Some(6),
        };
        let mut pool = BlockManager::new(4, 4, false).with_window(limits.window);
        let mut table = pool.table(None);
        for start in (0..20).step_by(5) {
            pool.grow(&mut table, start, start + 5).unwrap();
            pool.commit(&mut table, &vec![0; start + 5]);
        }
        pool.grow(&mut table, 20, 21).unwrap();
        let [a, b, c] = *table.blocks() else { panic!("{table:?}") };
        let mut batch = Batch::default();
        batch.push(&limits, &[7], 20, &table, 0..1);
        let row = [a, a, a, a, b, c, 0, 0, 0, 0].map(u32::cast_signed);
        assert_eq!(batch.block_tables, row);
        assert_eq!(batch.slots, [c.cast_signed() * 4]);
    }

    #[test]
    fn memory_for_a_window_holds_sequences_of_any_length() {
        let limits = |window, blocks| Limits {
            vocab_size: 100,
            max_seq_len: 1000,
            max_batch_tokens: 8,
            max_sequences: 1,
            max_rows: 8,
            block_size: 4,
            blocks,
            table_len: 250,
            window,
        };
        assert_eq!(limits(None, 5).longest(), 20);
        assert_eq!(limits(None, 300).longest(), 1000);
        assert_eq!(limits(Some(16), 4).longest(), 16);
        assert_eq!(limits(Some(16), 5).longest(), 1000);
    }
}
