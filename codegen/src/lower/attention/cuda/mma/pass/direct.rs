//! Products of a small tile with codes of eight bits, which become operands in registers.

use super::{
    super::super::{
        CHUNK,
        chunk::{Scales, padded, place},
    },
    Pass,
};
use crate::emit::{Cmp, Val};

impl Pass<'_> {
    /// Products of queries and the warp's keys: four of the even keys, then four of the odd ones.
    pub(super) fn direct_scores(&self, stage: Val, group: Val) -> Vec<Val> {
        let e = &self.cx.e;
        let mut scores = vec![e.f32(0.0); 8];
        let size = padded(self.tiles.sizes.key);
        for first in (0..size / 16).step_by(2) {
            let both = self.chunks.code_key_fragments(self.thread, stage, group, first);
            for (step, right) in (first..size / 16).zip(both) {
                let shape = (size / 8, step);
                let left = self.chunks.left_fragment(self.thread, self.area, e.i32(0), shape);
                for (sums, right) in scores.chunks_exact_mut(4).zip(right) {
                    self.multiply(&left, right, sums);
                }
            }
        }
        scores
    }

    /// Adds the products of weights and values, and the weights themselves: of a block, four of the
    /// even elements, then four of the odd ones.
    pub(super) fn add_direct(&self, stage: Val, sums: &mut [Val]) {
        let total = sums.len() - 4;
        let blocks: Vec<Val> =
            (0..self.blocks()).map(|j| self.columns(j).block.number(&self.cx.e)).collect();
        for first in (0..CHUNK / 16).step_by(2) {
            let fragments =
                |block: &Val| self.chunks.code_value_fragments(self.thread, stage, *block, first);
            let fragments: Vec<_> = blocks.iter().map(fragments).collect();
            for (step, which) in (first..).zip(0..2) {
                let left = self.stored_weights(self.weights_at(), step);
                let columns = fragments.iter().flat_map(|both| both[which]);
                for (sums, right) in sums[..total].chunks_exact_mut(4).zip(columns) {
                    self.multiply(&left, right, sums);
                }
                let plain = self.stored_weights(self.plain_at(), step);
                self.multiply(&plain, [self.chunks.ones(); 2], &mut sums[total..]);
            }
        }
    }

    /// Sixteen keys' weights that are in shared memory, as a left operand.
    pub(super) fn stored_weights(&self, at: Val, step: i64) -> [Val; 4] {
        self.chunks.left_fragment(self.thread, at, self.cx.e.i32(0), (CHUNK / 8, step))
    }

    /// Numbers of the lane's keys among those of a group, by the number of their score.
    pub(super) fn direct_key(score: usize) -> usize {
        score / 4 % 2 + score % 2 * 2
    }

    /// Multiplies scores or weights of the warp's keys with their scales.
    pub(super) fn direct_scales(&self, which: Scales, stage: Val, group: Val) -> [Val; 4] {
        let e = &self.cx.e;
        let key = e.add(e.shl(group, 4), e.shl(e.and(self.lane, e.i32(3)), 2));
        self.chunks.four_scales(which, stage, key)
    }

    /// Weights, of which those of keys beside each other are.
    pub(super) fn direct_order(weights: &[Val]) -> Vec<Val> {
        [0, 4, 2, 6, 1, 5, 3, 7].map(|i| weights[i]).to_vec()
    }

    /// Stores the weights of a group of keys in that order to shared memory. Of neighbouring rows
    /// one begins with the second pair, so that they meet in no bank.
    pub(super) fn put_direct(&self, to: Val, group: Val, weights: &[Val; 4]) {
        let e = &self.cx.e;
        let (row, four) = (e.shr(self.lane, 2), e.and(self.lane, e.i32(3)));
        let unit = e.add(e.shl(group, 1), e.shr(four, 1));
        let parity = e.and(row, e.i32(1));
        let odd = e.cmp(Cmp::Ne, parity, e.i32(0));
        for (below, pairs) in [(0, [weights[0], weights[2]]), (8, [weights[1], weights[3]])] {
            let at = e.add(to, place(e, e.add_const(row, below), unit, CHUNK / 8));
            let at = e.add(at, e.shl(e.and(four, e.i32(1)), 3));
            for which in 0..2 {
                let word = e.shl(e.xor(parity, e.i32(which)), 2);
                let [this, other] = if which == 0 { pairs } else { [pairs[1], pairs[0]] };
                let value = e.select(odd, other, this);
                e.ptx("st.shared.b32 [$0], $1;", &[e.add(at, word), value]);
            }
        }
    }

    /// As [`Self::each_pair`], of elements of which a lane has four beside each other. Of
    /// neighbouring rows one begins with the second pair.
    pub(super) fn each_direct_pair(&self, sums: &[Val], body: impl Fn(usize, [Val; 2], Val)) {
        let e = &self.cx.e;
        let four = e.shl(e.and(self.lane, e.i32(3)), 2);
        let parity = e.and(self.lane_row(), e.i32(1));
        let odd = e.cmp(Cmp::Ne, parity, e.i32(0));
        for j in 0..self.blocks() {
            let columns = self.columns(j);
            let first = e.add(e.shl(columns.block.number(e), 4), four);
            let own = &sums[usize::try_from(8 * j).expect("small")..][..8];
            let all = || {
                for row in 0..2 {
                    let pair = |i: usize| [own[2 * row + i], own[4 + 2 * row + i]];
                    for which in 0..2 {
                        let (this, other) = (pair(which), pair(1 - which));
                        let values = [0, 1].map(|i| e.select(odd, other[i], this[i]));
                        let which = i64::try_from(which).expect("two");
                        let behind = e.shl(e.xor(parity, e.i32(which)), 1);
                        body(row, values, e.add(first, behind));
                    }
                }
            };
            match columns.exists {
                Some(exists) => e.if_then(exists, all),
                None => all(),
            }
        }
    }
}
