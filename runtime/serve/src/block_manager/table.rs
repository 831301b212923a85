//! The blocks of one sequence.

use crate::prefix_cache::Salt;

/// The blocks of one sequence, in order of positions, from the first on that it still needs. Give
/// it back with [`BlockManager::release`](super::BlockManager::release).
#[derive(Debug)]
#[must_use]
pub struct BlockTable {
    pub(super) blocks: Vec<u32>,
    /// Blocks before those, which no later query sees.
    pub(super) released: usize,
    pub(super) block_size: usize,
    pub(super) salt: Salt,
    /// Blocks from the first on, released ones among them, that have joined the prefix cache.
    pub(super) cached: usize,
}

impl BlockTable {
    /// The blocks in order.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Blocks before those, which the sequence needs no more.
    pub fn released(&self) -> usize {
        self.released
    }

    /// The block of each place of a row of `block_tables`. The first that is there stands in for
    /// those that are released: all its positions are written, and whatever they hold has no weight
    /// in what a query computes.
    pub fn row(&self) -> impl Iterator<Item = u32> + '_ {
        let first = self.blocks.first().copied().unwrap_or(0);
        std::iter::repeat_n(first, self.released).chain(self.blocks.iter().copied())
    }

    /// Positions that there is room for, released ones among them.
    pub fn capacity(&self) -> usize {
        self.places() * self.block_size
    }

    /// Where a position lies, counted in positions from the start of the memory.
    ///
    /// # Panics
    /// If there is no room for the position, or its block is released.
    pub fn slot(&self, position: usize) -> usize {
        let block = self.blocks[position / self.block_size - self.released] as usize;
        block * self.block_size + position % self.block_size
    }

    /// Blocks, released ones among them.
    pub(super) fn places(&self) -> usize {
        self.released + self.blocks.len()
    }

    /// The last block that has joined the prefix cache.
    pub(super) fn last_cached(&self) -> Option<u32> {
        let index = self.cached.checked_sub(self.released + 1)?;
        self.blocks.get(index).copied()
    }
}
