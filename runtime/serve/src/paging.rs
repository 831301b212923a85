//! How many blocks a sequence takes, and which of them it still needs.

/// Blocks of one size, and the window of a model's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Paging {
    block_size: usize,
    window: Option<usize>,
}

impl Paging {
    /// Blocks of `block_size` positions, for queries that see `window` positions, their own among
    /// them, or all before them.
    pub(crate) fn new(block_size: usize, window: Option<usize>) -> Paging {
        // A sequence thus has its last full block, which the next is cached after.
        Paging { block_size, window: window.map(|window| window.max(block_size + 1)) }
    }

    /// Positions in a block.
    pub(crate) fn block_size(self) -> usize {
        self.block_size
    }

    /// Whether queries see a window.
    pub(crate) fn has_window(self) -> bool {
        self.window.is_some()
    }

    /// Blocks that so many positions take.
    pub(crate) fn blocks_for(self, positions: usize) -> usize {
        positions.div_ceil(self.block_size)
    }

    /// Blocks from the first on that no query at position `computed` or later sees.
    pub(crate) fn unseen(self, computed: usize) -> usize {
        self.window.map_or(0, |window| (computed + 1).saturating_sub(window) / self.block_size)
    }

    /// Blocks that a sequence of so many positions has at once at most, where a step computes up to
    /// `part` of them.
    pub(crate) fn at_once(self, positions: usize, part: usize) -> usize {
        let all = self.blocks_for(positions);
        let Some(window) = self.window else { return all };
        // The first query's keys to the last query, one less where a block begins with them.
        let span = window.saturating_add(part.max(1)) - 2;
        all.min(self.blocks_for(span) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_query_sees_is_kept_and_no_more_is_than_is_said() {
        for (size, window, part) in (1..6).flat_map(|size| {
            (1..20).flat_map(move |window| (1..8).map(move |part| (size, window, part)))
        }) {
            let paging = Paging::new(size, Some(window));
            let mut most = 0;
            for computed in 0..80 {
                let unseen = paging.unseen(computed);
                assert!(unseen * size <= (computed + 1).saturating_sub(window));
                assert!(computed < size || unseen < computed / size, "the last full block goes");
                let held = paging.blocks_for(computed + part) - unseen;
                assert!(held <= paging.at_once(computed + part, part));
                most = most.max(held);
            }
            assert_eq!(most, paging.at_once(1000, part), "{size} {window} {part}: it is too much");
        }
        let all = Paging::new(4, None);
        assert_eq!((all.unseen(1000), all.at_once(1000, 7)), (0, 250));
    }
}
