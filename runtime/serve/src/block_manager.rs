//! Key/value memory in blocks: who uses which, and what of it can be used again.
//!
//! Kwon et al. 2023, arXiv:2309.06180. Position `p` of a sequence is entry `p % BS` of its block
//! number `p / BS`. Several sequences may use a block; it is copied before one of them writes to
//! it. A full block joins the [prefix cache](crate::prefix_cache), or gives way to the block there
//! that holds the same. Where queries see a window, a sequence lets go of blocks that have slid out
//! of it, and goes on from any prefix of which the cache has the last window. The manager knows
//! nothing of tensors: a block's number is an index into the first axis of every cache, and
//! [`BlockCopy`] says which ones to copy before the next step.

#[cfg(any(test, debug_assertions))]
mod invariants;
mod table;

use crate::{
    paging::Paging,
    prefix_cache::{Parent, PrefixCache, Salt},
};

pub use table::BlockTable;

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
    paging: Paging,
    /// Sequences that use each block.
    uses: Vec<u32>,
    /// Blocks that hold nothing; the next one to hand out is the last.
    free: Vec<u32>,
    cache: Option<PrefixCache>,
}

/// A table with what the prefix cache has for it.
#[derive(Debug)]
pub struct Opened {
    /// The table.
    pub table: BlockTable,
    /// Tokens whose keys and values are in it, or need not be any more.
    pub cached_tokens: usize,
    /// What must be copied for the last of them to be.
    pub copy: Option<BlockCopy>,
}

/// What of a prompt the prefix cache has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Whole blocks that need not be computed.
    pub blocks: usize,
    /// Those of them that other sequences use, and that thus take no memory.
    pub used: usize,
}

/// The longest prefix that a sequence can go on from.
#[derive(Default)]
struct Prefix {
    /// Whole blocks from the first on that it needs no more.
    released: usize,
    /// Those that it does.
    blocks: Vec<u32>,
    /// A block after them, of which so many tokens agree.
    part: Option<(u32, usize)>,
}

impl BlockManager {
    /// A manager of `blocks` blocks of `block_size` positions, with or without prefix cache.
    ///
    /// # Panics
    /// If `block_size` is zero.
    pub fn new(blocks: u32, block_size: usize, prefix_cache: bool) -> BlockManager {
        assert!(block_size > 0, "blocks without positions");
        BlockManager {
            paging: Paging::new(block_size, None),
            uses: vec![0; blocks as usize],
            free: (0..blocks).rev().collect(),
            cache: prefix_cache.then(|| PrefixCache::new(blocks)),
        }
    }

    /// For a model whose queries see so many positions, their own among them; all if `None`.
    pub fn with_window(self, window: Option<usize>) -> BlockManager {
        let Some(positions) = window else { return self };
        let paging = Paging::new(self.block_size(), window);
        let cache = self.cache.map(|cache| cache.with_window(paging.blocks_for(positions)));
        BlockManager { paging, cache, ..self }
    }

    /// Positions in a block.
    pub fn block_size(&self) -> usize {
        self.paging.block_size()
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

    /// How sequences lie in blocks.
    pub(crate) fn paging(&self) -> Paging {
        self.paging
    }

    /// Whether a sequence of so many positions fits when it is alone.
    pub fn fits(&self, positions: usize) -> bool {
        self.paging.at_once(positions, 1) <= self.blocks()
    }

    /// Tokens that a step may compute of a sequence after the `written` ones. With a window that is
    /// what there is room for, or one: memory that is taken from others would be let go of again.
    pub(crate) fn most_tokens(&self, table: &BlockTable, written: usize) -> usize {
        if !self.paging.has_window() {
            return usize::MAX;
        }
        let room = (table.places() + self.available()) * self.block_size();
        room.saturating_sub(written).max(1)
    }

    /// An empty table.
    pub fn table(&self, salt: Salt) -> BlockTable {
        let block_size = self.block_size();
        BlockTable { blocks: Vec::new(), released: 0, block_size, salt, cached: 0 }
    }

    /// What the prefix cache has of the tokens, without using it.
    pub fn find(&self, salt: &Salt, tokens: &[u32]) -> Found {
        let Prefix { released, blocks, .. } = self.prefix(salt, tokens);
        let used = blocks.iter().filter(|block| self.uses(**block) > 0).count();
        Found { blocks: released + blocks.len(), used }
    }

    /// A table with the blocks that the prefix cache has for the tokens: whole ones are shared, and
    /// of one that agrees in part a copy is made, if there is a block for it.
    pub fn open(&mut self, salt: Salt, tokens: &[u32]) -> Opened {
        let Prefix { released, blocks, part } = self.prefix(&salt, tokens);
        blocks.iter().for_each(|block| self.take_cached(*block));
        let cached = released + blocks.len();
        let mut table = BlockTable { blocks, released, cached, ..self.table(salt) };
        let mut cached_tokens = table.capacity();
        let copy = part.and_then(|(from, agree)| {
            // In use first: making room for the copy must not evict what is to be copied.
            self.take_cached(from);
            let to = self.allocate();
            self.give(from);
            table.blocks.extend(to);
            cached_tokens += to.map_or(0, |_| agree);
            Some(BlockCopy { from, to: to? })
        });
        self.slide(&mut table, cached_tokens);
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
        let more = self.paging.blocks_for(positions).saturating_sub(table.places());
        let first = written / self.block_size() - table.released;
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
            (!written.is_multiple_of(self.block_size())).then_some(BlockCopy { from, to })
        });
        for _ in 0..more {
            table.blocks.extend(self.allocate());
        }
        Ok(copy)
    }

    /// Offers the blocks that are full to the prefix cache, and lets go of those that no later
    /// query sees; `tokens` are those whose keys and values are written, from the sequence's first
    /// on.
    pub fn commit(&mut self, table: &mut BlockTable, tokens: &[u32]) {
        let size = self.block_size();
        let full = tokens.len() / size;
        for index in table.cached..full.min(table.places()) {
            let (Some(parent), Some(cache)) = (self.parent(table), &mut self.cache) else { break };
            let own = table.blocks[index - table.released];
            let same = cache.insert(parent, &tokens[index * size..][..size], own);
            if same != own {
                self.take(same);
                table.blocks[index - table.released] = same;
                self.give(own);
            }
            table.cached += 1;
        }
        self.slide(table, tokens.len());
    }

    /// A table that shares the blocks of the first `written` positions.
    pub fn fork(&mut self, table: &BlockTable, written: usize) -> BlockTable {
        let places = self.paging.blocks_for(written);
        let blocks = table.blocks[..places - table.released].to_vec();
        blocks.iter().for_each(|block| self.take(*block));
        let (released, cached) = (table.released, table.cached.min(places));
        BlockTable { blocks, released, cached, ..self.table(table.salt.clone()) }
    }

    /// Takes a sequence's blocks back.
    pub fn release(&mut self, table: BlockTable) {
        // From the end on, so that of one sequence's blocks the first are the last to be evicted.
        for block in table.blocks.into_iter().rev() {
            self.give(block);
        }
    }

    /// Lets go of the blocks that no query sees from position `computed` on.
    fn slide(&mut self, table: &mut BlockTable, computed: usize) {
        let unseen = self.paging.unseen(computed).saturating_sub(table.released);
        for block in table.blocks.drain(..unseen) {
            self.give(block);
        }
        table.released += unseen;
    }

    fn prefix(&self, salt: &Salt, tokens: &[u32]) -> Prefix {
        let Some(cache) = &self.cache else { return Prefix::default() };
        let size = self.block_size();
        // What there is of each block, and how many are there up to the last without a gap.
        let (mut path, mut present) = (Vec::new(), 0);
        let (mut whole, mut part) = (0, None);
        let mut parent = Parent::Root(salt.clone());
        for tokens in tokens.chunks(size) {
            let Some((node, agree)) = cache.find_longest(&parent, tokens) else { break };
            let block = cache.block(node);
            if agree < size {
                // Only after whole blocks that are a prefix to go on from themselves.
                part = block.filter(|_| whole == path.len()).map(|block| (block, agree));
                break;
            }
            path.push(block);
            present = if block.is_some() { present + 1 } else { 0 };
            if path.len() - self.paging.unseen(path.len() * size) <= present {
                whole = path.len();
            }
            parent = Parent::Node(node);
        }
        let released = self.paging.unseen(whole * size);
        let blocks = path[released..whole].iter().flatten().copied().collect();
        Prefix { released, blocks, part }
    }

    /// What the next block to be cached comes after.
    fn parent(&self, table: &BlockTable) -> Option<Parent> {
        if table.cached == 0 {
            return Some(Parent::Root(table.salt.clone()));
        }
        self.cache.as_ref()?.node_of(table.last_cached()?).map(Parent::Node)
    }

    fn allocate(&mut self) -> Option<u32> {
        let block = self.free.pop().or_else(|| self.cache.as_mut()?.evict())?;
        self.uses[block as usize] = 1;
        Some(block)
    }

    /// Begins to use a block that the cache was found to have.
    fn take_cached(&mut self, block: u32) {
        self.take(block);
        if let Some(cache) = &mut self.cache {
            cache.hit(block);
        }
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
}

#[cfg(test)]
mod tests;
