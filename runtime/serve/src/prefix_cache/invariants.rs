//! What must always hold, checked at every step of builds with debug assertions.

use super::{Node, NodeId, Parent, PrefixCache};

impl PrefixCache {
    /// The block of each node from the first to that of a cached block.
    pub(crate) fn chain(&self, block: u32) -> Vec<Option<u32>> {
        let mut chain = Vec::new();
        let mut next = self.node_of(block);
        while let Some(node) = next.and_then(|id| self.node(id)) {
            chain.push(node.block);
            next = match node.parent {
                Parent::Root(_) => None,
                Parent::Node(above) => Some(above),
            };
        }
        chain.reverse();
        chain
    }

    /// Checks what must always hold; `uses` is the number of sequences that use a block.
    pub(crate) fn check(&self, uses: impl Fn(u32) -> u32) {
        let mut children = vec![0; self.nodes.len()];
        let (mut count, mut leaves, mut inner, mut ghosts) = (0, 0, 0, 0);
        let nodes = self.nodes.iter().enumerate();
        for (index, node) in nodes.filter_map(|(i, node)| Some((i, node.as_ref()?))) {
            let id = NodeId(index);
            count += 1;
            let key = (node.parent.clone(), node.tokens.clone());
            assert_eq!(self.children.get(&key), Some(&id), "a node is found by its tokens");
            if let Parent::Node(above) = node.parent {
                let parent = self.node(above).expect("a parent stays");
                assert_eq!(parent.depth + 1, node.depth);
                children[above.0] += 1;
                if self.most_ghosts == 0 {
                    let of = |node: &Node| node.block.map_or(0, &uses);
                    assert!(of(parent) >= of(node), "who uses a block uses its parent");
                }
            }
            let Some(block) = node.block else {
                ghosts += 1;
                assert!(node.children > 0 && node.idle.is_none(), "a ghost has children alone");
                continue;
            };
            assert_eq!(self.node_of(block), Some(id));
            assert_eq!(node.idle.is_some(), uses(block) == 0, "idle is what nobody uses");
            if let Some((priority, tick)) = node.idle {
                let is_leaf = node.children == 0;
                let (order, number) =
                    if is_leaf { (&self.leaves, &mut leaves) } else { (&self.inner, &mut inner) };
                assert!(order.contains(&(priority, tick, id)), "what is idle can go");
                *number += 1;
            }
        }
        assert_eq!((leaves, inner), (self.leaves.len(), self.inner.len()));
        assert_eq!((count, ghosts), (self.children.len(), self.ghosts));
        assert_eq!(count + self.vacant.len(), self.nodes.len());
        assert_eq!(count - ghosts, self.node_of.iter().flatten().count());
        assert!(self.most_ghosts > 0 || ghosts == 0, "without a window leaves go");
        for (node, children) in self.nodes.iter().zip(children) {
            let counted = node.as_ref().map_or(0, |node| node.children);
            assert_eq!(counted, children, "children are counted");
        }
    }
}
