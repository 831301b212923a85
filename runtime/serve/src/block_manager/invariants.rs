//! What must always hold, checked at every step of builds with debug assertions.

use std::collections::HashSet;

use super::{BlockManager, BlockTable};

impl BlockManager {
    /// Checks what must always hold between the manager and all tables there are.
    pub(crate) fn check<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) {
        let mut uses = vec![0; self.uses.len()];
        for table in tables {
            let distinct: HashSet<&u32> = table.blocks.iter().collect();
            assert_eq!(distinct.len(), table.blocks.len(), "a sequence has a block once");
            table.blocks.iter().for_each(|block| uses[*block as usize] += 1);
            assert!(table.cached <= table.places());
            assert!(table.released == 0 || self.paging.has_window());
            if let (Some(cache), true) = (&self.cache, table.cached > 0) {
                let last = table.last_cached().expect("the next block is cached after it");
                let chain = cache.chain(last);
                assert_eq!(chain.len(), table.cached, "a node is as deep as its block");
                let live = &chain[table.released..];
                let own = table.blocks.iter().take(live.len()).map(|block| Some(*block));
                assert!(live.iter().copied().eq(own), "its blocks are those of its nodes");
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
