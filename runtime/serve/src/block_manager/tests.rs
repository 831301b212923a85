//! Random sequences over a memory that remembers what was written.

use std::cell::Cell;

use proptest::{prelude::*, test_runner::TestRunner};

use super::*;

#[test]
fn the_first_sequence_gets_neighbouring_blocks() {
    let mut manager = BlockManager::new(8, 16, true);
    let mut table = manager.table(None);
    manager.grow(&mut table, 0, 17).unwrap();
    manager.grow(&mut table, 17, 33).unwrap();
    assert_eq!(table.blocks(), [0, 1, 2]);
    assert_eq!((table.slot(0), table.slot(16), table.slot(35)), (0, 16, 35));
    manager.release(table);
    assert_eq!(manager.available(), 8);
}

#[test]
fn a_prompt_finds_whole_blocks_and_a_part_of_the_next() {
    let mut manager = BlockManager::new(8, 4, true);
    let mut first = manager.table(None);
    manager.grow(&mut first, 0, 10).unwrap();
    manager.commit(&mut first, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(manager.find(&None, &[1, 2, 3, 4, 5, 6, 0, 0]), Found { blocks: 1, used: 1 });
    let opened = manager.open(None, &[1, 2, 3, 4, 5, 6, 0, 0]);
    assert_eq!(opened.cached_tokens, 6);
    let copy = opened.copy.unwrap();
    assert_eq!((copy.from, copy.to), (first.blocks()[1], opened.table.blocks()[1]));
    assert_eq!(opened.table.blocks()[0], first.blocks()[0]);
    // The third block is not full, so it is nobody else's.
    let whole = manager.open(None, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!((whole.cached_tokens, whole.copy), (8, None));
    let salted = manager.open(Some("b".into()), &[1, 2, 3, 4]);
    assert_eq!((salted.cached_tokens, salted.table.blocks().len()), (0, 0));
    for table in [first, opened.table, whole.table, salted.table] {
        manager.release(table);
    }
    assert_eq!((manager.available(), manager.cached()), (8, 2));
    manager.check(std::iter::empty());
}

#[test]
fn equal_blocks_become_one() {
    let mut manager = BlockManager::new(8, 2, true);
    let mut tables = [manager.table(None), manager.table(None)];
    for table in &mut tables {
        manager.grow(table, 0, 5).unwrap();
    }
    assert_eq!(manager.available(), 2);
    for table in &mut tables {
        manager.commit(table, &[1, 2, 3, 4, 5]);
    }
    assert_eq!(tables[0].blocks()[..2], tables[1].blocks()[..2]);
    assert_ne!(tables[0].blocks()[2], tables[1].blocks()[2]);
    assert_eq!(manager.available(), 4);
    manager.check(tables.iter());
    tables.into_iter().for_each(|table| manager.release(table));
}

#[test]
fn without_a_cache_nothing_is_shared_or_kept() {
    let mut manager = BlockManager::new(4, 2, false);
    let mut table = manager.table(None);
    manager.grow(&mut table, 0, 4).unwrap();
    manager.commit(&mut table, &[1, 2, 3, 4]);
    assert_eq!(manager.open(None, &[1, 2, 3, 4]).cached_tokens, 0);
    let refused = manager.grow(&mut table, 4, 9).unwrap_err();
    assert_eq!(refused, OutOfBlocks { needed: 3, free: 2 });
    manager.release(table);
    assert_eq!((manager.available(), manager.cached()), (4, 0));
}

/// Computes a sequence's tokens in steps of two blocks.
fn compute(manager: &mut BlockManager, tokens: &[u32]) -> BlockTable {
    let Opened { mut table, mut cached_tokens, .. } = manager.open(None, tokens);
    while cached_tokens < tokens.len() {
        let end = tokens.len().min(cached_tokens + 2 * manager.block_size());
        manager.grow(&mut table, cached_tokens, end).unwrap();
        manager.commit(&mut table, &tokens[..end]);
        cached_tokens = end;
    }
    table
}

#[test]
fn a_window_is_all_that_a_sequence_holds() {
    let tokens: Vec<u32> = (0..4000).collect();
    for prefix_cache in [false, true] {
        let mut manager = BlockManager::new(7, 4, prefix_cache).with_window(Some(16));
        let table = compute(&mut manager, &tokens);
        assert_eq!((table.blocks().len(), table.released()), (4, 996));
        assert_eq!((table.capacity(), manager.available()), (4000, 3));
        assert_eq!(manager.cached(), if prefix_cache { 3 } else { 0 });
        manager.check(std::iter::once(&table));
        manager.release(table);
        assert_eq!(manager.available(), 7);
    }
}

#[test]
fn a_prefix_is_found_by_its_last_window() {
    let mut manager = BlockManager::new(12, 4, true).with_window(Some(16));
    let tokens: Vec<u32> = (0..400).collect();
    let table = compute(&mut manager, &tokens);
    manager.release(table);
    // The last twelve blocks are there: a window, and eight blocks before it.
    let find = |len: usize| manager.find(&None, &tokens[..len]);
    assert_eq!(find(400), Found { blocks: 100, used: 0 });
    assert_eq!(find(368).blocks, 92);
    assert_eq!(find(364).blocks, 0, "its window has begun to go");
    assert_eq!(find(40).blocks, 0);
    let other = [&tokens[..378], &[9999; 20]].concat();
    let opened = manager.open(None, &other);
    assert_eq!(opened.cached_tokens, 378, "two tokens of the next block too");
    assert_eq!((opened.table.released(), opened.table.blocks().len()), (90, 5));
    manager.check(std::iter::once(&opened.table));
    manager.release(opened.table);
    // The beginning is computed again, and is then found beside what was there.
    let short = compute(&mut manager, &tokens[..20]);
    manager.check(std::iter::once(&short));
    assert_eq!(manager.find(&None, &tokens[..20]), Found { blocks: 5, used: 4 });
    assert_eq!(manager.find(&None, &tokens).blocks, 95, "five have made room, the last first");
    manager.release(short);
}

/// What happens to one of the sequences.
#[derive(Clone, Debug)]
enum Op {
    /// It ends, and another begins with a prompt out of few.
    Open { who: usize, prompt: Vec<u32>, salt: bool },
    /// It writes so many tokens.
    Write { who: usize, tokens: Vec<u32> },
    /// It is replaced by a fork of another.
    Fork { who: usize, of: usize },
}

/// A sequence and what is written of it.
struct Writer {
    table: BlockTable,
    salt: bool,
    tokens: Vec<u32>,
}

/// Manager, sequences, and for each slot the prefix whose last token was written there.
struct World {
    manager: BlockManager,
    writers: Vec<Writer>,
    memory: Vec<Vec<u32>>,
    window: Option<usize>,
    /// Most blocks that all sequences took together, before an operation and after it.
    longest: usize,
    /// Times that a prefix was found whose first block is not needed.
    hits: usize,
}

impl World {
    fn new(blocks: u32, block_size: usize, window: Option<usize>) -> World {
        let manager = BlockManager::new(blocks, block_size, true).with_window(window);
        let writer = || Writer { table: manager.table(None), salt: false, tokens: Vec::new() };
        let writers = (0..5).map(|_| writer()).collect();
        let memory = vec![vec![]; blocks as usize * block_size];
        World { manager, writers, memory, window, longest: 0, hits: 0 }
    }

    fn copy(&mut self, copy: Option<BlockCopy>) {
        let Some(BlockCopy { from, to }) = copy else { return };
        let size = self.manager.block_size();
        for offset in 0..size {
            self.memory[to as usize * size + offset] =
                self.memory[from as usize * size + offset].clone();
        }
    }

    fn replace(&mut self, who: usize, by: Writer) {
        let old = std::mem::replace(&mut self.writers[who], by);
        self.manager.release(old.table);
    }

    fn apply(&mut self, op: Op) {
        let before = self.places();
        match op {
            Op::Open { who, prompt, salt } => {
                let name = salt.then(|| "salt".into());
                let found = self.manager.find(&name, &prompt);
                let Opened { table, cached_tokens, copy } = self.manager.open(name, &prompt);
                assert!(found.blocks * self.manager.block_size() <= cached_tokens);
                assert!(cached_tokens <= prompt.len() && table.capacity() >= cached_tokens);
                self.copy(copy);
                self.hits += usize::from(table.released() > 0);
                let tokens = prompt[..cached_tokens].to_vec();
                self.replace(who, Writer { table, salt, tokens });
                self.write(who, &prompt[cached_tokens..]);
            }
            Op::Write { who, tokens } => self.write(who, &tokens),
            Op::Fork { who, of } if who != of => {
                let Writer { table, salt, tokens } = &self.writers[of];
                let table = self.manager.fork(table, tokens.len());
                let fork = Writer { table, salt: *salt, tokens: tokens.clone() };
                self.replace(who, fork);
            }
            Op::Fork { .. } => {}
        }
        self.longest = self.longest.max(before + self.places());
        self.check();
    }

    fn places(&self) -> usize {
        self.writers.iter().map(|w| w.table.places()).sum()
    }

    fn write(&mut self, who: usize, new: &[u32]) {
        let writer = &mut self.writers[who];
        let (start, end) = (writer.tokens.len(), writer.tokens.len() + new.len());
        let before = writer.table.blocks().to_vec();
        match self.manager.grow(&mut writer.table, start, end) {
            Err(OutOfBlocks { needed, free }) => {
                assert!(needed > free);
                assert_eq!(writer.table.blocks(), before);
            }
            Ok(copy) => {
                self.copy(copy);
                let writer = &mut self.writers[who];
                for token in new {
                    let slot = writer.table.slot(writer.tokens.len());
                    writer.tokens.push(*token);
                    let salt = std::iter::once(u32::from(writer.salt));
                    self.memory[slot] = salt.chain(writer.tokens.iter().copied()).collect();
                }
                self.manager.commit(&mut writer.table, &writer.tokens);
            }
        }
    }

    /// Every sequence reads back what it has written, whoever shares its blocks, and holds no more
    /// than it must.
    fn check(&self) {
        self.manager.check(self.writers.iter().map(|w| &w.table));
        let ghosts = self.manager.cache.as_ref().map_or(0, PrefixCache::ghosts);
        assert!(ghosts <= self.manager.blocks().max(self.longest), "{ghosts} ghosts");
        let (size, paging) = (self.manager.block_size(), self.manager.paging());
        for writer in &self.writers {
            let len = writer.tokens.len();
            let unseen = writer.table.released() * size;
            assert!(unseen <= self.window.map_or(0, |window| (len + 1).saturating_sub(window)));
            assert!(writer.table.blocks().len() <= paging.at_once(len, 1));
            for position in unseen..len {
                let written = &self.memory[writer.table.slot(position)];
                assert_eq!(written[0], u32::from(writer.salt));
                assert_eq!(written[1..], writer.tokens[..=position]);
            }
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    let tokens = |most| proptest::collection::vec(0..2u32, 0..most);
    prop_oneof![
        (0..5usize, tokens(24), any::<bool>()).prop_map(|(who, prompt, salt)| Op::Open {
            who,
            prompt,
            salt
        }),
        (0..5usize, tokens(6)).prop_map(|(who, tokens)| Op::Write { who, tokens }),
        (0..5usize, 0..5usize).prop_map(|(who, of)| Op::Fork { who, of }),
    ]
}

/// Sequences begin, grow, fork and end in any order, with the same beginnings often and too little
/// memory, with a window and without; a million operations if so many are asked for
/// (`PROPTEST_CASES=10000`).
#[test]
fn every_sequence_reads_back_what_it_wrote() {
    let config = ProptestConfig { max_shrink_iters: 4096, ..ProptestConfig::default() };
    let window = proptest::option::of(1..16usize);
    let worlds = (1..24u32, 1..5usize, window, proptest::collection::vec(op(), 100));
    let hits = Cell::new(0);
    TestRunner::new(config)
        .run(&worlds, |(blocks, block_size, window, ops)| {
            let mut world = World::new(blocks, block_size, window);
            ops.into_iter().for_each(|op| world.apply(op));
            hits.set(hits.get() + world.hits);
            let writers = std::mem::take(&mut world.writers);
            writers.into_iter().for_each(|w| world.manager.release(w.table));
            world.manager.check(std::iter::empty());
            assert_eq!(world.manager.available(), blocks as usize);
            Ok(())
        })
        .unwrap();
    assert!(hits.get() > 0, "no prefix was found behind blocks that are gone");
}
