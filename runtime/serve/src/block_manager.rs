//! Key/value memory in blocks: who uses which, and what of it can be used again.
//!
//! Kwon et al. 2023, arXiv:2309.06180. Position `p` of a sequence is entry `p % BS` of its block
//! number `p / BS`. Several sequences may use a block; it is copied before one of them writes to
//! it. A full block joins the [prefix cache](crate::prefix_cache), or gives way to the block there
//! that holds the same. The manager knows nothing of tensors: a block's number is an index into the
//! first axis of every cache, and [`BlockCopy`] says which ones to copy before the next step.

#[cfg(test)]
use std::collections::HashSet;

use crate::prefix_cache::{Parent, PrefixCache, Salt};

/// There are not enough free blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{needed} more blocks of key/value memory are needed and {free} are free")]
pub struct OutOfBlocks {
    /// Blocks that the sequence lacks.
    pub needed: usize,
    /// Blocks that no sequence uses.
    pub free: usize,
}

/// A block to copy before the next step. Copies are made in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// What to copy.
    pub from: u32,
    /// Where to.
    pub to: u32,
}

/// All blocks of key/value memory.
#[derive(Debug)]
pub struct BlockManager {
    block_size: usize,
    /// Sequences that use each block.
    uses: Vec<u32>,
    /// Blocks that hold nothing; the next one to hand out is the last.
    free: Vec<u32>,
    cache: Option<PrefixCache>,
}

/// The blocks of one sequence, in order of positions. Give it back with [`BlockManager::release`].
#[derive(Debug)]
#[must_use]
pub struct BlockTable {
    blocks: Vec<u32>,
    block_size: usize,
    salt: Salt,
    /// Blocks from the first on that are in the prefix cache.
    cached: usize,
}

/// A table with what the prefix cache has for it.
#[derive(Debug)]
pub struct Opened {
    /// The table.
    pub table: BlockTable,
    /// Tokens whose keys and values are in it.
    pub cached_tokens: usize,
    /// What must be copied for the last of them to be.
    pub copy: Option<BlockCopy>,
}

/// What of a prompt the prefix cache has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Whole blocks.
    pub blocks: usize,
    /// Those of them that no sequence uses, and that thus are counted as available.
    pub idle: usize,
}

impl BlockManager {
    /// A manager of `blocks` blocks of `block_size` positions, with or without prefix cache.
    ///
    /// # Panics
    /// If `block_size` is zero.
    pub fn new(blocks: u32, block_size: usize, prefix_cache: bool) -> BlockManager {
        assert!(block_size > 0, "blocks without positions");
        BlockManager {
            block_size,
            uses: vec![0; blocks as usize],
            free: (0..blocks).rev().collect(),
            cache: prefix_cache.then(|| PrefixCache::new(blocks)),
        }
    }

    /// Positions in a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// All blocks.
    pub fn blocks(&self) -> usize {
        self.uses.len()
    }

    /// Blocks that no sequence uses, with cached prefixes or without.
    pub fn available(&self) -> usize {
        self.free.len() + self.cached()
    }

    /// Blocks that no sequence uses and that hold a cached prefix.
    pub fn cached(&self) -> usize {
        self.cache.as_ref().map_or(0, PrefixCache::idle)
    }

    /// Number of sequences that use a block.
    pub fn uses(&self, block: u32) -> u32 {
        self.uses[block as usize]
    }

    /// Whether a block holds a cached prefix.
    pub fn is_cached(&self, block: u32) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.contains(block))
    }

    /// Blocks that so many positions take.
    pub fn blocks_for(&self, positions: usize) -> usize {
        positions.div_ceil(self.block_size)
    }

    /// An empty table.
    pub fn table(&self, salt: Salt) -> BlockTable {
        BlockTable { blocks: Vec::new(), block_size: self.block_size, salt, cached: 0 }
    }

    /// What the prefix cache has of the tokens, without using it.
    pub fn find(&self, salt: &Salt, tokens: &[u32]) -> Found {
        let (mut found, mut parent) = (Found::default(), Parent::Root(salt.clone()));
        let Some(cache) = &self.cache else { return found };
        for tokens in tokens.chunks_exact(self.block_size) {
            let Some(block) = cache.find(&parent, tokens) else { break };
            found.blocks += 1;
            found.idle += usize::from(self.uses(block) == 0);
            parent = Parent::Block(block);
        }
        found
    }

    /// A table with the blocks that the prefix cache has for the tokens: whole ones are shared, and
    /// of one that agrees in part a copy is made, if there is a block for it.
    pub fn open(&mut self, salt: Salt, tokens: &[u32]) -> Opened {
        let mut table = self.table(salt);
        let mut copy = None;
        let mut cached_tokens = 0;
        for tokens in tokens.chunks(self.block_size) {
            let Some((block, agree)) =
                self.cache.as_ref().and_then(|c| c.find_longest(&table.last(), tokens))
            else {
                break;
            };
            // In use first: making room for the copy must not evict what is to be copied.
            self.take(block);
            if let Some(cache) = &mut self.cache {
                cache.hit(block);
            }
            if agree == self.block_size {
                table.blocks.push(block);
                table.cached += 1;
                cached_tokens += agree;
                continue;
            }
            if let Some(to) = self.allocate() {
                copy = Some(BlockCopy { from: block, to });
                table.blocks.push(to);
                cached_tokens += agree;
            }
            self.give(block);
            break;
        }
        Opened { table, cached_tokens, copy }
    }

    /// Makes room to write the positions `written..positions`: the block of the first is copied if
    /// it is shared, and blocks are added at the end.
    ///
    /// # Errors
    /// [`OutOfBlocks`]; the table is as before then.
    pub fn grow(
        &mut self,
        table: &mut BlockTable,
        written: usize,
        positions: usize,
    ) -> Result<Option<BlockCopy>, OutOfBlocks> {
        let more = self.blocks_for(positions).saturating_sub(table.blocks.len());
        let first = written / self.block_size;
        let shared = table.blocks.get(first).copied().filter(|block| {
            positions > written && (self.uses(*block) > 1 || self.is_cached(*block))
        });
        let needed = more + usize::from(shared.is_some());
        if needed > self.available() {
            return Err(OutOfBlocks { needed, free: self.available() });
        }
        let copy = shared.and_then(|from| {
            let to = self.allocate()?;
            table.blocks[first] = to;
            self.give(from);
            (!written.is_multiple_of(self.block_size)).then_some(BlockCopy { from, to })
        });
        for _ in 0..more {
            table.blocks.extend(self.allocate());
        }
        Ok(copy)
    }

    /// Offers the blocks that are full to the prefix cache; `tokens` are those whose keys and
    /// values are written, from the sequence's first on.
    pub fn commit(&mut self, table: &mut BlockTable, tokens: &[u32]) {
        let Some(cache) = &mut self.cache else { return };
        let full = tokens.len() / self.block_size;
        for index in table.cached..full.min(table.blocks.len()) {
            let tokens = &tokens[index * self.block_size..][..self.block_size];
            let parent = table.last();
            let own = table.blocks[index];
            match cache.find(&parent, tokens) {
                Some(same) => {
                    if self.uses[same as usize] == 0 {
                        cache.activate(same);
                    }
                    self.uses[same as usize] += 1;
                    table.blocks[index] = same;
                    self.uses[own as usize] -= 1;
                    if self.uses[own as usize] == 0 {
                        self.free.push(own);
                    }
                }
                None => cache.insert(parent, tokens, own),
            }
            table.cached += 1;
        }
    }

    /// A table that shares the blocks of the first `written` positions.
    pub fn fork(&mut self, table: &BlockTable, written: usize) -> BlockTable {
        let blocks = table.blocks[..self.blocks_for(written)].to_vec();
        for block in &blocks {
            self.take(*block);
        }
        let cached = table.cached.min(blocks.len());
        BlockTable { blocks, block_size: self.block_size, salt: table.salt.clone(), cached }
    }

    /// Takes a sequence's blocks back.
    pub fn release(&mut self, table: BlockTable) {
        // From the end on, so that of one sequence's blocks the first are the last to be evicted.
        for block in table.blocks.into_iter().rev() {
            self.give(block);
        }
    }

    fn allocate(&mut self) -> Option<u32> {
        let block = self.free.pop().or_else(|| self.cache.as_mut()?.evict())?;
        self.uses[block as usize] = 1;
        Some(block)
    }

    fn take(&mut self, block: u32) {
        let uses = &mut self.uses[block as usize];
        *uses += 1;
        if *uses == 1
            && let Some(cache) = &mut self.cache
        {
            cache.activate(block);
        }
    }

    fn give(&mut self, block: u32) {
        let uses = &mut self.uses[block as usize];
        *uses -= 1;
        if *uses > 0 {
            return;
        }
        match &mut self.cache {
            Some(cache) if cache.contains(block) => cache.retire(block),
            _ => self.free.push(block),
        }
    }

    /// Checks what must always hold between the manager and all tables there are.
    #[cfg(test)]
    pub(crate) fn check<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) {
        let mut uses = vec![0; self.uses.len()];
        for table in tables {
            let distinct: HashSet<&u32> = table.blocks.iter().collect();
            assert_eq!(distinct.len(), table.blocks.len(), "a sequence has a block once");
            for (index, block) in table.blocks.iter().enumerate() {
                uses[*block as usize] += 1;
                assert!(index >= table.cached || self.is_cached(*block));
            }
        }
        assert_eq!(uses, self.uses, "uses are counted");
        let free: HashSet<&u32> = self.free.iter().collect();
        assert_eq!(free.len(), self.free.len(), "a block is free once");
        for block in (0..).take(self.uses.len()) {
            let is_free = free.contains(&block);
            assert_eq!(is_free, self.uses(block) == 0 && !self.is_cached(block));
        }
        if let Some(cache) = &self.cache {
            cache.check(|block| self.uses(block));
        }
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

    /// Where a position lies, counted in positions from the start of the memory.
    ///
    /// # Panics
    /// If there is no room for the position.
    pub fn slot(&self, position: usize) -> usize {
        let block = self.blocks[position / self.block_size] as usize;
        block * self.block_size + position % self.block_size
    }

    /// What the next block to be cached comes after.
    fn last(&self) -> Parent {
        match self.cached.checked_sub(1) {
            Some(index) => Parent::Block(self.blocks[index]),
            None => Parent::Root(self.salt.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
