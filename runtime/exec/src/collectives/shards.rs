//! How a vector is split among the ranks of a group.

use std::ops::Range;

/// Consecutive parts of a vector, one a rank, in elements.
///
/// ```
/// use brolly_exec::collectives::Shards;
///
/// let shards = Shards::even(10, 4);
/// assert_eq!(shards.counts().collect::<Vec<_>>(), [3, 3, 2, 2]);
/// assert_eq!(shards.range(2), 6..8);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shards {
    ends: Vec<usize>,
}

impl Shards {
    /// As even as can be: the first `elements % ranks` shards have one element more.
    pub fn even(elements: usize, ranks: usize) -> Shards {
        let (least, longer) = match ranks {
            0 => (0, 0),
            _ => (elements / ranks, elements % ranks),
        };
        let end = |rank: usize| (rank + 1) * least + longer.min(rank + 1);
        Shards { ends: (0..ranks).map(end).collect() }
    }

    /// With these lengths; `None` if they add up to more than a `usize` holds.
    pub fn of(counts: &[usize]) -> Option<Shards> {
        let mut end = 0usize;
        let mut ends = Vec::with_capacity(counts.len());
        for &count in counts {
            end = end.checked_add(count)?;
            ends.push(end);
        }
        Some(Shards { ends })
    }

    /// How many shards there are.
    pub fn ranks(&self) -> usize {
        self.ends.len()
    }

    /// Elements of all shards.
    pub fn elements(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The elements of a shard; none of one that does not exist.
    pub fn range(&self, index: usize) -> Range<usize> {
        let end_of = |index: usize| self.ends.get(index).copied().unwrap_or(self.elements());
        let start = index.checked_sub(1).map_or(0, end_of);
        start..end_of(index)
    }

    /// The length of each shard.
    pub fn counts(&self) -> impl Iterator<Item = usize> {
        (0..self.ranks()).map(|index| self.range(index).len())
    }

    /// A digest by which ranks see that they split alike.
    pub(super) fn digest(&self) -> u64 {
        digest(self.ends.iter().flat_map(|&end| (end as u64).to_le_bytes()))
    }
}

/// FNV-1a, which tells mistakes apart, not attacks. Fowler, Noll & Vo 1991.
pub(crate) fn digest(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_shards_cover_all_and_differ_by_one() {
        for ranks in 1..9 {
            for elements in 0..40 {
                let shards = Shards::even(elements, ranks);
                let counts: Vec<usize> = shards.counts().collect();
                assert_eq!(counts.iter().sum::<usize>(), elements);
                assert!(counts[0] - counts[ranks - 1] <= 1);
                assert_eq!(Shards::of(&counts).unwrap(), shards);
            }
        }
    }

    #[test]
    fn there_may_be_no_ranks_and_too_many_elements() {
        assert_eq!(Shards::even(5, 0).elements(), 0);
        assert_eq!(Shards::of(&[usize::MAX, 1]), None);
        assert_eq!(Shards::even(5, 2).range(7), 5..5);
    }
}
