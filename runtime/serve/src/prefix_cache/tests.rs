//! The tree alone, and what must always hold of it.

use super::*;

impl PrefixCache {
    /// Nodes without block.
    pub(crate) fn ghosts(&self) -> usize {
        self.ghosts
    }

    /// The node with exactly these tokens.
    fn find(&self, parent: &Parent, tokens: &[u32]) -> Option<NodeId> {
        let (id, agree) = self.find_longest(parent, tokens)?;
        (agree == tokens.len() && self.node(id)?.tokens.len() == agree).then_some(id)
    }
}

const ROOT: Parent = Parent::Root(None);

fn after(cache: &PrefixCache, block: u32) -> Parent {
    Parent::Node(cache.node_of(block).unwrap())
}

/// Blocks 0, 1, .. one after another.
fn line(cache: &mut PrefixCache, blocks: u32) {
    let mut parent = ROOT;
    for block in 0..blocks {
        assert_eq!(cache.insert(parent, &[block], block), block);
        parent = after(cache, block);
    }
}

#[test]
fn the_longest_agreement_is_found_on_either_side() {
    let mut cache = PrefixCache::new(8);
    cache.insert(ROOT, &[1, 2, 3, 4], 0);
    cache.insert(ROOT, &[1, 2, 9, 9], 1);
    cache.insert(ROOT, &[5, 5, 5, 5], 2);
    let first = after(&cache, 0);
    cache.insert(first.clone(), &[1, 2, 3, 9], 3);
    let longest = |tokens: &[u32]| {
        let (id, agree) = cache.find_longest(&ROOT, tokens)?;
        Some((cache.block(id).unwrap(), agree))
    };
    assert_eq!(longest(&[1, 2, 3, 4]), Some((0, 4)));
    assert_eq!(longest(&[1, 2, 3, 5]), Some((0, 3)));
    assert_eq!(longest(&[1, 2, 9]), Some((1, 3)));
    assert_eq!(longest(&[1, 2, 8, 0]).map(|(_, agree)| agree), Some(2));
    assert_eq!(longest(&[5]), Some((2, 1)));
    assert_eq!(longest(&[4, 5]), None);
    assert_eq!(longest(&[]), None);
    assert_eq!(cache.find(&ROOT, &[1, 2, 3]), None, "a part is not the whole");
    assert_eq!(cache.find(&ROOT, &[1, 2, 3, 4]), cache.node_of(0));
    assert_eq!(cache.find(&first, &[1, 2, 3, 9]), cache.node_of(3));
    assert_eq!(cache.find_longest(&Parent::Root(Some("salt".into())), &[1, 2]), None);
}

#[test]
fn leaves_go_first_then_by_use_and_age() {
    let mut cache = PrefixCache::new(8);
    line(&mut cache, 2);
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

#[test]
fn with_a_window_the_oldest_goes_and_those_after_it_are_found() {
    let mut cache = PrefixCache::new(8).with_window(1);
    line(&mut cache, 4);
    (0..4).for_each(|block| cache.retire(block));
    assert_eq!([cache.evict(), cache.evict()], [Some(0), Some(1)]);
    cache.check(|_| 0);
    assert_eq!((cache.ghosts(), cache.chain(3)), (2, vec![None, None, Some(2), Some(3)]));
    let first = cache.find(&ROOT, &[0]).unwrap();
    assert_eq!(cache.block(first), None);
    // Another sequence computes the first again.
    assert_eq!(cache.insert(ROOT, &[0], 7), 7);
    assert_eq!((cache.find(&ROOT, &[0]), cache.block(first)), (Some(first), Some(7)));
    assert_eq!(cache.insert(ROOT, &[0], 6), 7, "the first to come stays");
    cache.check(|block| u32::from(block == 7));
    cache.retire(7);
    let rest: Vec<u32> = std::iter::from_fn(|| cache.evict()).collect();
    assert_eq!(rest, [2, 3, 7]);
    cache.check(|_| 0);
    assert_eq!((cache.ghosts(), cache.children.len()), (0, 0), "ghosts go with the last child");
}

#[test]
fn ghosts_are_at_most_as_many_as_blocks_or_as_running_sequences_are_long() {
    let mut cache = PrefixCache::new(4).with_window(1);
    let mut free = vec![3, 2, 1, 0];
    // Sequences of many windows, which have one block at a time. Their ends are precious, so all
    // that is before them would go first.
    for first in [0, 100, 200] {
        let (mut parent, mut last) = (ROOT, None);
        for token in first..first + 50 {
            let block = free.pop().or_else(|| cache.evict()).unwrap();
            assert_eq!(cache.insert(parent, &[token], block), block);
            parent = after(&cache, block);
            if let Some(before) = last.replace(block) {
                cache.retire(before);
            }
            cache.check(|block| u32::from(Some(block) == last));
        }
        assert_eq!(cache.ghosts(), 46, "those of its own past alone");
        let last = last.unwrap();
        (0..MOST_HITS).for_each(|_| cache.hit(last));
        cache.retire(last);
    }
}
