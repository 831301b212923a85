//! What the threads of a block do together on a GPU: folds in one order, and places in order.

use super::cx::Cx;
use crate::emit::{Barrier, Cmp, Elem, Val};

/// Bytes of shared memory that [`Cx::place`] takes, and [`Cx::fold_block`]: a word for each warp.
pub(super) const WARP_WORDS: i64 = 128;

impl Cx<'_> {
    /// Number of the thread's lane, i32.
    pub(super) fn lane(&self) -> Val {
        let e = &self.e;
        e.and(e.thread(), e.i32(31))
    }

    /// Number of the thread's warp, i32.
    pub(super) fn warp(&self) -> Val {
        self.e.shr(self.e.thread(), 5)
    }

    fn warps(&self) -> i64 {
        i64::from(self.e.threads() / 32)
    }

    /// The lanes' values folded by halves, in every lane.
    pub(super) fn fold_warp(&self, value: Val, combine: impl Fn(Val, Val) -> Val) -> Val {
        [16, 8, 4, 2, 1]
            .into_iter()
            .fold(value, |value, mask| combine(value, self.e.shuffle_xor(value, mask)))
    }

    /// The threads' values of 32 bits, folded by warps and then from the first warp to the last, in
    /// every thread. `at` is an address of [`WARP_WORDS`] that no other fold of the kernel has.
    pub(super) fn fold_block(&self, value: Val, at: Val, combine: impl Fn(Val, Val) -> Val) -> Val {
        let e = &self.e;
        let total = self.fold_warp(value, &combine);
        if self.warps() == 1 {
            return total;
        }
        self.first_lane(|| e.store_shared(total, e.add(at, e.shl(self.warp(), 2)), 0));
        e.barrier(Barrier::Block);
        let part = |warp: i64| e.load_shared(total.elem(), at, 4 * warp);
        (1..self.warps()).fold(part(0), |sum, warp| combine(sum, part(warp)))
    }

    fn first_lane(&self, body: impl FnOnce()) {
        let e = &self.e;
        e.if_then(e.cmp(Cmp::Eq, self.lane(), e.i32(0)), body);
    }

    /// Among how many threads before this one `found` holds, and among how many of the block: i32.
    /// All threads must come here; `at` is an address of [`WARP_WORDS`], free again behind it.
    pub(super) fn place(&self, found: Val, at: Val) -> (Val, Val) {
        let e = &self.e;
        let set = e.ballot(found);
        let below = e.shr_by(e.i32(0x7fff_ffff), e.sub(e.i32(31), self.lane()));
        let within = e.count_ones(e.and(set, below));
        self.first_lane(|| {
            e.store_shared(e.count_ones(set), e.add(at, e.shl(self.warp(), 2)), 0);
        });
        e.barrier(Barrier::Block);
        let (zero, warp) = (e.i32(0), self.warp());
        let counts = (0..self.warps()).map(|other| {
            let count = e.load_shared(Elem::I32, at, 4 * other);
            (e.select(e.cmp(Cmp::Lt, e.i32(other), warp), count, zero), count)
        });
        let (before, all) = counts
            .fold((zero, zero), |(a, b), (before, count)| (e.add(a, before), e.add(b, count)));
        e.barrier(Barrier::Block);
        (e.add(before, within), all)
    }
}
