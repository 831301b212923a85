//! Tensors that ranks hold in parts along one of the tensor's own axes.

use std::{ops::Range, sync::Arc};

use serde::{Deserialize, Serialize};

/// How the ranks along an axis of the mesh cut a tensor along one of its own: the rows or columns
/// of a matrix.
///
/// Where these are several tensors one behind the other (queries, keys and values of one matrix),
/// each is cut: a rank has an equal part of every piece.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// The axis of the mesh.
    pub axis: Arc<str>,
    /// Ranks along it, which divide every piece.
    pub ranks: u32,
    /// The tensor's axis.
    pub dim: usize,
    /// Extents of the pieces, which add up to that of the tensor.
    pub pieces: Vec<u64>,
}

impl Split {
    /// Extents of a rank's part of a tensor.
    #[must_use]
    pub fn part(&self, whole: &[u64]) -> Vec<u64> {
        let ranks = u64::from(self.ranks.max(1));
        let extent = |(dim, n): (usize, &u64)| if dim == self.dim { n / ranks } else { *n };
        whole.iter().enumerate().map(extent).collect()
    }

    /// The elements of a tensor, in row-major order, that a rank's part has one behind the other.
    pub fn runs<'a>(
        &'a self,
        whole: &[u64],
        rank: u64,
    ) -> impl Iterator<Item = Range<usize>> + use<'a> {
        let outer: u64 = whole.iter().take(self.dim).product();
        let inner: u64 = whole.iter().skip(self.dim + 1).product();
        let extent: u64 = self.pieces.iter().sum();
        let ranks = u64::from(self.ranks.max(1));
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        (0..outer).flat_map(move |row| {
            let mut start = row * extent;
            self.pieces.iter().map(move |piece| {
                let len = piece / ranks;
                let first = start + rank * len;
                start += piece;
                size(first * inner)..size((first + len) * inner)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(ranks: u32, dim: usize, pieces: &[u64]) -> Split {
        Split { axis: "tensor".into(), ranks, dim, pieces: pieces.into() }
    }

    #[test]
    fn pieces_are_cut_one_by_one() {
        // Queries of 4 columns, keys and values of 2, two rows.
        let split = split(2, 1, &[4, 2, 2]);
        assert_eq!(split.part(&[2, 8]), [2, 4]);
        let runs = |rank| split.runs(&[2, 8], rank).collect::<Vec<_>>();
        assert_eq!(runs(0), [0..2, 4..5, 6..7, 8..10, 12..13, 14..15]);
        assert_eq!(runs(1), [2..4, 5..6, 7..8, 10..12, 13..14, 15..16]);
    }

    #[test]
    fn parts_cover_the_whole_once() {
        let cases: [(&[u64], usize, &[u64]); 4] = [
            (&[6, 5], 0, &[6]),
            (&[5, 12], 1, &[6, 3, 3]),
            (&[9], 0, &[3, 6]),
            (&[2, 3, 4], 1, &[3]),
        ];
        for (whole, dim, pieces) in cases {
            let split = split(3, dim, pieces);
            let mut seen = vec![0; usize::try_from(whole.iter().product::<u64>()).unwrap()];
            for rank in 0..3 {
                let elements: Vec<usize> = split.runs(whole, rank).flatten().collect();
                assert_eq!(elements.len() as u64, split.part(whole).iter().product::<u64>());
                elements.iter().for_each(|i| seen[*i] += 1);
            }
            assert!(seen.iter().all(|n| *n == 1), "{whole:?}");
        }
    }
}
