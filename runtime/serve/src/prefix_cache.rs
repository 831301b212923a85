//! Which blocks hold keys and values of which prefixes.
//!
//! A tree: each cached block is a node, under the block before it or under the root of its salt,
//! and the tokens in it lead there. Children are ordered by their tokens, so one search finds the
//! block that agrees longest, also where it agrees only in part. Tokens are compared themselves,
//! never digests of them: no collision can show one request another's text.
//!
//! A block that no sequence uses stays until its memory is needed. Then goes the leaf of the
//! lowest priority by GreedyDual (Young 1994; Cao and Irani 1997): what it would cost to compute
//! the block again, times how often it was of use, on top of a clock that rises to the priority of
//! whatever went last, so that what was once precious ages too.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A prefix's salt: requests see the prefixes of their own salt alone.
pub(crate) type Salt = Option<Arc<str>>;

/// What a block comes after.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Parent {
    /// Nothing: it is a sequence's first.
    Root(Salt),
    /// Another cached block.
    Block(u32),
}

/// Blocks by the prefixes that they hold.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    /// By block.
    nodes: Vec<Option<Node>>,
    children: BTreeMap<(Parent, Arc<[u32]>), u32>,
    /// Leaves that no sequence uses, the next to go first.
    evictable: BTreeSet<(u64, u64, u32)>,
    /// Blocks that no sequence uses.
    idle: usize,
    /// The priority of the last block that went.
    clock: u64,
    /// Counts uses; of equal priorities the longest unused goes first.
    tick: u64,
}

#[derive(Debug)]
struct Node {
    parent: Parent,
    tokens: Arc<[u32]>,
    children: u32,
    /// Blocks before it.
    depth: u32,
    /// Times that a later sequence has used it.
    hits: u32,
    /// When idle: its place in the order of eviction.
    idle: Option<(u64, u64)>,
}

/// Cost of a block's own computation in the unit of priorities.
const BLOCK_COST: u64 = 256;
/// Hits beyond which a block counts as no more precious.
const MOST_HITS: u32 = 63;

impl PrefixCache {
    pub(crate) fn new(blocks: u32) -> PrefixCache {
        let nodes = (0..blocks).map(|_| None).collect();
        PrefixCache { nodes, ..PrefixCache::default() }
    }

    /// Cached blocks that no sequence uses.
    pub(crate) fn idle(&self) -> usize {
        self.idle
    }

    /// Whether the block is cached.
    pub(crate) fn contains(&self, block: u32) -> bool {
        self.node(block).is_some()
    }

    /// The block with exactly these tokens.
    pub(crate) fn find(&self, parent: &Parent, tokens: &[u32]) -> Option<u32> {
        let (block, agree) = self.find_longest(parent, tokens)?;
        let is_whole = agree == tokens.len() && self.node(block)?.tokens.len() == agree;
        is_whole.then_some(block)
    }

    /// The block that agrees with the most tokens from the first on, and with how many.
    pub(crate) fn find_longest(&self, parent: &Parent, tokens: &[u32]) -> Option<(u32, usize)> {
        // In lexicographic order the longest common prefix is with a neighbour.
        let at = (parent.clone(), Arc::from(tokens));
        let before = self.children.range(..&at).next_back();
        let after = self.children.range(&at..).next();
        let agree = |((p, of), block): (&(Parent, Arc<[u32]>), &u32)| {
            let agree = of.iter().zip(tokens).take_while(|(a, b)| a == b).count();
            (p == parent && agree > 0).then_some((*block, agree))
        };
        let candidates = [after.and_then(agree), before.and_then(agree)];
        candidates.into_iter().flatten().max_by_key(|(_, agree)| *agree)
    }

    /// Adds a block that a sequence uses; nothing with its tokens may be there.
    pub(crate) fn insert(&mut self, parent: Parent, tokens: &[u32], block: u32) {
        let tokens: Arc<[u32]> = tokens.into();
        let mut depth = 0;
        if let Parent::Block(above) = parent
            && let Some(above) = self.node_mut(above)
        {
            above.children += 1;
            depth = above.depth + 1;
        }
        self.children.insert((parent.clone(), tokens.clone()), block);
        let node = Node { parent, tokens, children: 0, depth, hits: 0, idle: None };
        self.nodes[block as usize] = Some(node);
    }

    /// A sequence has begun to use an idle block.
    pub(crate) fn activate(&mut self, block: u32) {
        let Some(node) = self.node_mut(block) else { return };
        if let Some((priority, tick)) = node.idle.take() {
            self.evictable.remove(&(priority, tick, block));
            self.idle -= 1;
        }
    }

    /// A later sequence has found the block.
    pub(crate) fn hit(&mut self, block: u32) {
        if let Some(node) = self.node_mut(block) {
            node.hits = (node.hits + 1).min(MOST_HITS);
        }
    }

    /// The last sequence that used the block has let go of it.
    pub(crate) fn retire(&mut self, block: u32) {
        self.tick += 1;
        let (clock, tick) = (self.clock, self.tick);
        let Some(node) = self.node_mut(block) else { return };
        let priority = clock + cost(node.depth) * u64::from(1 + node.hits);
        node.idle = Some((priority, tick));
        let is_leaf = node.children == 0;
        self.idle += 1;
        if is_leaf {
            self.evictable.insert((priority, tick, block));
        }
    }

    /// Forgets the block that is worth least; it can then be written.
    pub(crate) fn evict(&mut self) -> Option<u32> {
        let (priority, _, block) = self.evictable.pop_first()?;
        self.clock = self.clock.max(priority);
        self.idle -= 1;
        let node = self.nodes[block as usize].take()?;
        if let Parent::Block(above) = node.parent
            && let Some(parent) = self.node_mut(above)
        {
            parent.children -= 1;
            if let (0, Some((priority, tick))) = (parent.children, parent.idle) {
                self.evictable.insert((priority, tick, above));
            }
        }
        self.children.remove(&(node.parent, node.tokens));
        Some(block)
    }

    fn node(&self, block: u32) -> Option<&Node> {
        self.nodes.get(block as usize)?.as_ref()
    }

    fn node_mut(&mut self, block: u32) -> Option<&mut Node> {
        self.nodes.get_mut(block as usize)?.as_mut()
    }

    /// Checks what must always hold; `uses` is the number of sequences that use a block.
    #[cfg(test)]
    pub(crate) fn check(&self, uses: impl Fn(u32) -> u32) {
        let mut children = vec![0; self.nodes.len()];
        let (mut cached, mut idle, mut evictable) = (0, 0, 0);
        for block in (0..).take(self.nodes.len()) {
            let Some(node) = self.node(block) else { continue };
            cached += 1;
            let key = (node.parent.clone(), node.tokens.clone());
            assert_eq!(self.children.get(&key), Some(&block), "a node is found by its tokens");
            if let Parent::Block(above) = node.parent {
                let parent = self.node(above).expect("a parent is cached");
                assert_eq!(parent.depth + 1, node.depth);
                assert!(uses(above) >= uses(block), "who uses a block uses its parent");
                children[above as usize] += 1;
            }
            assert_eq!(node.idle.is_some(), uses(block) == 0, "idle is what nobody uses");
            if let Some((priority, tick)) = node.idle {
                idle += 1;
                let listed = self.evictable.contains(&(priority, tick, block));
                assert_eq!(listed, node.children == 0, "idle leaves can go");
                evictable += usize::from(listed);
            }
        }
        assert_eq!(cached, self.children.len());
        assert_eq!((idle, evictable), (self.idle, self.evictable.len()));
        for block in (0..).take(self.nodes.len()) {
            let count = self.node(block).map_or(0, |node| node.children);
            assert_eq!(count, children[block as usize], "children are counted");
        }
    }
}

/// What a block costs to compute after so many others, by shares of [`BLOCK_COST`]: the products
/// are the same for each, and attention grows with what is before.
fn cost(depth: u32) -> u64 {
    BLOCK_COST + u64::from(depth.min(1 << 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Parent = Parent::Root(None);

    #[test]
    fn the_longest_agreement_is_found_on_either_side() {
        let mut cache = PrefixCache::new(8);
        cache.insert(ROOT, &[1, 2, 3, 4], 0);
        cache.insert(ROOT, &[1, 2, 9, 9], 1);
        cache.insert(ROOT, &[5, 5, 5, 5], 2);
        cache.insert(Parent::Block(0), &[1, 2, 3, 9], 3);
        let longest = |tokens: &[u32]| cache.find_longest(&ROOT, tokens);
        assert_eq!(longest(&[1, 2, 3, 4]), Some((0, 4)));
        assert_eq!(longest(&[1, 2, 3, 5]), Some((0, 3)));
        assert_eq!(longest(&[1, 2, 9]), Some((1, 3)));
        assert_eq!(longest(&[1, 2, 8, 0]).map(|(_, agree)| agree), Some(2));
        assert_eq!(longest(&[5]), Some((2, 1)));
        assert_eq!(longest(&[4, 5]), None);
        assert_eq!(longest(&[]), None);
        assert_eq!(cache.find(&ROOT, &[1, 2, 3]), None, "a part is not the whole");
        assert_eq!(cache.find(&ROOT, &[1, 2, 3, 4]), Some(0));
        assert_eq!(cache.find(&Parent::Block(0), &[1, 2, 3, 9]), Some(3));
        assert_eq!(cache.find_longest(&Parent::Root(Some("salt".into())), &[1, 2]), None);
    }

    #[test]
    fn leaves_go_first_then_by_use_and_age() {
        let mut cache = PrefixCache::new(8);
        cache.insert(ROOT, &[1], 0);
        cache.insert(Parent::Block(0), &[2], 1);
        cache.insert(ROOT, &[3], 2);
        cache.insert(ROOT, &[4], 3);
        cache.hit(2);
        for block in [2, 0, 1, 3] {
            cache.retire(block);
        }
        cache.check(|_| 0);
        // 0 is older than 1, but 1 needs it; 2 is oldest, but was found once.
        let order: Vec<u32> = std::iter::from_fn(|| cache.evict()).collect();
        assert_eq!(order, [3, 1, 0, 2]);
        cache.check(|_| 0);
    }

    #[test]
    fn what_was_precious_ages() {
        let mut cache = PrefixCache::new(2);
        cache.insert(ROOT, &[1], 0);
        cache.hit(0);
        cache.hit(0);
        cache.retire(0);
        let mut rounds = 0;
        loop {
            cache.insert(ROOT, &[100 + rounds], 1);
            cache.retire(1);
            rounds += 1;
            if cache.evict() == Some(0) {
                break;
            }
            assert!(rounds < 10, "a block that nobody asks for stays for ever");
        }
        assert!(rounds > 1, "two hits are worth something");
    }
}
