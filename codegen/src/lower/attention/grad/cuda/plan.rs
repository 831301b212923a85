//! How the gradient's blocks are divided, and their shared memory.

use ir::Target;

use super::super::super::{Sizes, cuda::fma::Matrix};
use crate::lower::cx::Cx;

/// Threads of a block.
pub(super) const THREADS: i64 = 256;

/// The largest head, the rows and the chunk of each division.
const SHAPES: [(i64, i64, i64); 4] =
    [(64, 64, 64), (128, 64, 32), (i64::MAX, 32, 32), (i64::MAX, 16, 16)];

/// How heads of a size are divided.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) sizes: Sizes,
    /// Rows of a block, and of a chunk of the other side.
    pub(super) rows: i64,
    pub(super) chunk: i64,
}

impl Plan {
    /// The first that has registers for such heads and fits in shared memory of every GPU.
    pub(super) fn of(sizes: Sizes, target: &Target) -> Option<Plan> {
        let room = i64::from(target.cuda?.arch.common_shared_bytes());
        let most = sizes.key.max(sizes.value);
        let fits = |rows: i64, chunk: i64| {
            let plan = Plan { sizes, rows, chunk };
            (plan.bytes() <= room).then_some(plan)
        };
        let of = |(largest, rows, chunk): (i64, i64, i64)| {
            (most <= largest).then(|| fits(rows, chunk)).flatten()
        };
        SHAPES.into_iter().find_map(of)
    }

    /// Rows of a thread, and of the other side.
    pub(super) const fn shape(self) -> (i64, i64) {
        (self.rows * 16 / THREADS, self.chunk / 16)
    }

    /// Columns of heads of a size, whole blocks of 64.
    pub(super) const fn columns(size: i64) -> i64 {
        (size + 63) / 64 * 64
    }

    /// Columns over which scores are summed.
    pub(super) const fn width(size: i64) -> i64 {
        (size + 3) / 4 * 4
    }

    /// The own rows of the first and the second product, the chunk's, two matrices of weights, and
    /// the two numbers of each of the chunk's queries.
    const fn shapes(self) -> [(i64, i64); 7] {
        let key = Plan::columns(self.sizes.key) + 4;
        let value = Plan::columns(self.sizes.value) + 4;
        let weights = (self.rows, self.chunk + 16);
        [
            (self.rows, key),
            (self.rows, value),
            (self.chunk, key),
            (self.chunk, value),
            weights,
            weights,
            (2, if self.chunk > self.rows { self.chunk } else { self.rows }),
        ]
    }

    pub(super) fn bytes(self) -> i64 {
        self.shapes().iter().map(|(rows, stride)| 4 * rows * stride).sum()
    }

    pub(super) fn matrices(self, cx: &Cx<'_>) -> [Matrix; 7] {
        let (at, mut byte) = (cx.e.shared(), 0);
        self.shapes().map(|(rows, stride)| {
            let matrix = Matrix { at: cx.e.add_const(at, byte), stride };
            byte += 4 * rows * stride;
            matrix
        })
    }
}
