//! Key/value memory in blocks: who owns which, and where a position lies.
//!
//! Kwon et al. 2023, arXiv:2309.06180. A sequence owns whole blocks; position `p` is entry `p % BS`
//! of its block number `p / BS`. The pool knows nothing of tensors: a block's number is an index
//! into the first axis of every cache.

/// There are not enough free blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{needed} more blocks of key/value memory are needed and {free} are free")]
pub struct OutOfBlocks {
    /// Blocks that the sequence lacks.
    pub needed: usize,
    /// Blocks that nobody owns.
    pub free: usize,
}

/// Blocks that nobody owns.
#[derive(Debug)]
pub struct BlockPool {
    /// The next one to hand out is the last.
    free: Vec<u32>,
    blocks: usize,
    block_size: usize,
}

/// The blocks of one sequence, in order of positions. Give it back with [`BlockPool::release`].
#[derive(Debug)]
#[must_use]
pub struct BlockTable {
    blocks: Vec<u32>,
    block_size: usize,
}

impl BlockPool {
    /// A pool of `blocks` blocks of `block_size` positions.
    ///
    /// # Panics
    /// If `block_size` is zero.
    pub fn new(blocks: u32, block_size: usize) -> BlockPool {
        assert!(block_size > 0, "blocks without positions");
        BlockPool { free: (0..blocks).rev().collect(), blocks: blocks as usize, block_size }
    }

    /// The table of a new sequence.
    pub fn table(&self) -> BlockTable {
        BlockTable { blocks: Vec::new(), block_size: self.block_size }
    }

    /// Gives a sequence room for `positions` positions in all.
    ///
    /// # Errors
    /// [`OutOfBlocks`]; the table is as before then.
    pub fn grow(&mut self, table: &mut BlockTable, positions: usize) -> Result<(), OutOfBlocks> {
        let needed = positions.div_ceil(self.block_size).saturating_sub(table.blocks.len());
        let Some(rest) = self.free.len().checked_sub(needed) else {
            return Err(OutOfBlocks { needed, free: self.free.len() });
        };
        table.blocks.extend(self.free.drain(rest..).rev());
        Ok(())
    }

    /// Takes a sequence's blocks back.
    pub fn release(&mut self, table: BlockTable) {
        self.free.extend(table.blocks.into_iter().rev());
    }

    /// Positions in a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks that nobody owns.
    pub fn free_blocks(&self) -> usize {
        self.free.len()
    }

    /// All blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }
}

impl BlockTable {
    /// The blocks in order.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Positions that there is room for.
    pub fn capacity(&self) -> usize {
        self.blocks.len() * self.block_size
    }

    /// Where a position lies: block times block size plus offset.
    ///
    /// # Panics
    /// If there is no room for the position.
    pub fn slot(&self, position: usize) -> usize {
        self.blocks[position / self.block_size] as usize * self.block_size
            + position % self.block_size
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_sequence_gets_neighbouring_blocks() {
        let mut pool = BlockPool::new(8, 16);
        let mut table = pool.table();
        pool.grow(&mut table, 17).unwrap();
        pool.grow(&mut table, 33).unwrap();
        assert_eq!(table.blocks(), [0, 1, 2]);
        assert_eq!((table.slot(0), table.slot(16), table.slot(35)), (0, 16, 35));
        pool.release(table);
        assert_eq!(pool.free_blocks(), 8);
    }

    proptest! {
        /// Sequences grow and end in any order: no two positions ever share a slot, none is lost,
        /// and a refused growth changes nothing.
        #[test]
        fn slots_belong_to_one_position(
            blocks in 1..20u32,
            block_size in 1..6usize,
            steps in proptest::collection::vec((0..5usize, 0..40usize), 0..60),
        ) {
            let mut pool = BlockPool::new(blocks, block_size);
            let mut tables: Vec<BlockTable> = (0..5).map(|_| pool.table()).collect();
            for (who, positions) in steps {
                if positions == 0 {
                    let table = std::mem::replace(&mut tables[who], pool.table());
                    pool.release(table);
                    continue;
                }
                let before = tables[who].blocks().to_vec();
                match pool.grow(&mut tables[who], positions) {
                    Ok(()) => prop_assert!(tables[who].capacity() >= positions),
                    Err(e) => {
                        prop_assert!(e.needed > e.free);
                        prop_assert_eq!(tables[who].blocks(), &before[..]);
                    }
                }
                prop_assert!(tables[who].blocks().starts_with(&before));
            }
            let slots: Vec<usize> =
                tables.iter().flat_map(|t| (0..t.capacity()).map(|p| t.slot(p))).collect();
            let distinct: HashSet<&usize> = slots.iter().collect();
            prop_assert_eq!(distinct.len(), slots.len());
            prop_assert!(slots.iter().all(|s| *s < blocks as usize * block_size));
            let owned: usize = tables.iter().map(|t| t.blocks().len()).sum();
            prop_assert_eq!(owned + pool.free_blocks(), pool.blocks());
        }
    }
}
