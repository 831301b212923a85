//! Which blocks hold keys and values of which prefixes.
//!
//! A tree: each node is the tokens of a block, under the node of those before it or under the root
//! of its salt. Children are ordered by their tokens, so one search finds the one that agrees
//! longest, also where it agrees only in part. Tokens are compared themselves, never digests of
//! them: no collision can show one request another's text.
//!
//! A block that no sequence uses stays until its memory is needed. Then goes that of the lowest
//! priority by GreedyDual (Young 1994; Cao and Irani 1997): what it would cost to compute the block
//! again, times how often it was of use, on top of a clock that rises to the priority of whatever
//! went last, so that what was once precious ages too.
//!
//! Where every query sees all keys, a block is of no use without those before it, so leaves alone
//! can go. Where queries see a window, any block can; the node of one that had others after it
//! stays as a ghost, by which they are found. There are no more ghosts than blocks, unless every
//! leaf is in use: then each is before the last block of a running sequence, so there are no more
//! than these sequences are long.

#[cfg(any(test, debug_assertions))]
mod invariants;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A prefix's salt: requests see the prefixes of their own salt alone.
pub(crate) type Salt = Option<Arc<str>>;

/// A node's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeId(usize);

/// What a block comes after.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Parent {
    /// Nothing: it is a sequence's first.
    Root(Salt),
    /// Other tokens.
    Node(NodeId),
}

/// Blocks by the prefixes that they hold.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    /// By number.
    nodes: Vec<Option<Node>>,
    /// Numbers that no node has.
    vacant: Vec<NodeId>,
    /// By block.
    node_of: Vec<Option<NodeId>>,
    children: BTreeMap<(Parent, Arc<[u32]>), NodeId>,
    /// Leaves that no sequence uses, the next to go first.
    leaves: Order,
    /// The same of nodes with children.
    inner: Order,
    /// Nodes without block.
    ghosts: usize,
    /// Ghosts beyond which leaves alone go.
    most_ghosts: usize,
    /// Blocks before one that its cost grows with.
    most_depth: u32,
    /// The priority of the last block that went.
    clock: u64,
    /// Counts uses; of equal priorities the longest unused goes first.
    tick: u64,
}

/// Priority, time of last use, and node.
type Order = BTreeSet<(u64, u64, NodeId)>;

#[derive(Debug)]
struct Node {
    parent: Parent,
    tokens: Arc<[u32]>,
    /// None of a ghost.
    block: Option<u32>,
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
/// Blocks before one beyond which its cost is taken to be the same.
const MOST_DEPTH: u32 = 1 << 16;
/// Hits beyond which a block counts as no more precious.
const MOST_HITS: u32 = 63;

impl PrefixCache {
    /// A cache of so many blocks, for queries that see all before them.
    pub(crate) fn new(blocks: u32) -> PrefixCache {
        let node_of = vec![None; blocks as usize];
        PrefixCache { node_of, most_depth: MOST_DEPTH, ..PrefixCache::default() }
    }

    /// For queries that see a window of so many blocks.
    pub(crate) fn with_window(self, blocks: usize) -> PrefixCache {
        let most_depth = u32::try_from(blocks).map_or(MOST_DEPTH, |blocks| blocks.min(MOST_DEPTH));
        PrefixCache { most_ghosts: self.node_of.len(), most_depth, ..self }
    }

    /// Cached blocks that no sequence uses.
    pub(crate) fn idle(&self) -> usize {
        self.leaves.len() + self.inner.len()
    }

    /// Whether the block is cached.
    pub(crate) fn contains(&self, block: u32) -> bool {
        self.node_of(block).is_some()
    }

    /// The node that a cached block belongs to.
    pub(crate) fn node_of(&self, block: u32) -> Option<NodeId> {
        *self.node_of.get(block as usize)?
    }

    /// The block of a node, unless it is a ghost.
    pub(crate) fn block(&self, id: NodeId) -> Option<u32> {
        self.node(id)?.block
    }

    /// The node that agrees with the most tokens from the first on, and with how many.
    pub(crate) fn find_longest(&self, parent: &Parent, tokens: &[u32]) -> Option<(NodeId, usize)> {
        // In lexicographic order the longest common prefix is with a neighbour.
        let at = (parent.clone(), Arc::from(tokens));
        let before = self.children.range(..&at).next_back();
        let after = self.children.range(&at..).next();
        let agree = |((p, of), id): (&(Parent, Arc<[u32]>), &NodeId)| {
            let agree = of.iter().zip(tokens).take_while(|(a, b)| a == b).count();
            (p == parent && agree > 0).then_some((*id, agree))
        };
        let candidates = [after.and_then(agree), before.and_then(agree)];
        candidates.into_iter().flatten().max_by_key(|(_, agree)| *agree)
    }

    /// Adds a block that a sequence uses, after one that it uses, unless a block with the same
    /// tokens is there; returns the one that is.
    pub(crate) fn insert(&mut self, parent: Parent, tokens: &[u32], block: u32) -> u32 {
        let tokens: Arc<[u32]> = tokens.into();
        let key = (parent, tokens);
        if let Some(id) = self.children.get(&key).copied() {
            if let Some(same) = self.block(id) {
                return same;
            }
            self.ghosts -= 1;
            self.fill(id, block);
            return block;
        }
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            NodeId(self.nodes.len() - 1)
        });
        let (parent, tokens) = key.clone();
        let mut depth = 0;
        if let Parent::Node(above) = parent
            && let Some(above) = self.node_mut(above)
        {
            above.children += 1;
            depth = above.depth + 1;
        }
        self.children.insert(key, id);
        let node = Node { parent, tokens, block: None, children: 0, depth, hits: 0, idle: None };
        self.nodes[id.0] = Some(node);
        self.fill(id, block);
        block
    }

    /// A sequence has begun to use an idle block.
    pub(crate) fn activate(&mut self, block: u32) {
        let Some(id) = self.node_of(block) else { return };
        let Some(node) = self.node_mut(id) else { return };
        let is_leaf = node.children == 0;
        if let Some((priority, tick)) = node.idle.take() {
            self.order(is_leaf).remove(&(priority, tick, id));
        }
    }

    /// A later sequence has found the block.
    pub(crate) fn hit(&mut self, block: u32) {
        if let Some(node) = self.node_of(block).and_then(|id| self.node_mut(id)) {
            node.hits = (node.hits + 1).min(MOST_HITS);
        }
    }

    /// The last sequence that used the block has let go of it.
    pub(crate) fn retire(&mut self, block: u32) {
        self.tick += 1;
        let (clock, tick, most_depth) = (self.clock, self.tick, self.most_depth);
        let Some(id) = self.node_of(block) else { return };
        let Some(node) = self.node_mut(id) else { return };
        let priority = clock + cost(node.depth.min(most_depth)) * u64::from(1 + node.hits);
        node.idle = Some((priority, tick));
        let is_leaf = node.children == 0;
        self.order(is_leaf).insert((priority, tick, id));
    }

    /// Forgets the block that is worth least; it can then be written.
    pub(crate) fn evict(&mut self) -> Option<u32> {
        let is_leaf = match (self.leaves.first(), self.inner.first()) {
            (Some(leaf), Some(inner)) => self.ghosts >= self.most_ghosts || leaf < inner,
            (leaf, _) => leaf.is_some(),
        };
        let (priority, _, id) = self.order(is_leaf).pop_first()?;
        self.clock = self.clock.max(priority);
        let node = self.node_mut(id)?;
        node.idle = None;
        let block = node.block.take()?;
        self.node_of[block as usize] = None;
        self.ghosts += 1;
        self.prune(id);
        Some(block)
    }

    /// Removes a node without block and children, and those above it that are then the same.
    fn prune(&mut self, mut id: NodeId) {
        let is_useless = |node: &mut Node| node.block.is_none() && node.children == 0;
        while let Some(node) = self.nodes[id.0].take_if(is_useless) {
            self.ghosts -= 1;
            self.vacant.push(id);
            let key = (node.parent, node.tokens);
            self.children.remove(&key);
            let Parent::Node(above) = key.0 else { return };
            let Some(parent) = self.node_mut(above) else { return };
            parent.children -= 1;
            if let (0, Some((priority, tick))) = (parent.children, parent.idle) {
                self.inner.remove(&(priority, tick, above));
                self.leaves.insert((priority, tick, above));
            }
            id = above;
        }
    }

    fn fill(&mut self, id: NodeId, block: u32) {
        self.node_of[block as usize] = Some(id);
        if let Some(node) = self.node_mut(id) {
            node.block = Some(block);
        }
    }

    fn order(&mut self, is_leaf: bool) -> &mut Order {
        if is_leaf { &mut self.leaves } else { &mut self.inner }
    }

    fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0)?.as_ref()
    }

    fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(id.0)?.as_mut()
    }
}

/// What a block costs to compute after so many others, by shares of [`BLOCK_COST`]: the products
/// are the same for each, and attention grows with what it sees.
fn cost(depth: u32) -> u64 {
    BLOCK_COST + u64::from(depth)
}

#[cfg(test)]
mod tests;
