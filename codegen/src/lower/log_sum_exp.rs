//! The logarithm of a sum of exponentials, over chunks of a row.
//!
//! `logsumexp` and `linear_cross_entropy` both take it from here, so that what training and serving
//! hold likely has the same bits. One pass, with the greatest so far: Milakov & Gimelshein 2018,
//! arXiv:1805.02867. The sum of a chunk is that of sixteen partial sums.

use super::{
    block::{CHUNK, GROUP, VECTOR, lanes_within},
    cx::{Cx, LANES},
    view::View,
};
use crate::{
    emit::{Cmp, Elem, Val},
    math,
};
use ir::Dim;

/// What is known of a row so far: f32 scalars.
#[derive(Clone, Copy)]
pub(super) struct Running {
    /// The greatest number.
    pub(super) max: Val,
    /// The sum of the exponentials of all numbers less the greatest.
    pub(super) sum: Val,
}

impl Running {
    /// Of no numbers.
    pub(super) fn none(cx: &Cx<'_>) -> Running {
        Running { max: cx.e.f32(f32::NEG_INFINITY), sum: cx.e.f32(0.0) }
    }

    /// With `count` more, at most [`CHUNK`], from the f32 address `line` on. There are whole
    /// sixteens of readable numbers; what is beyond the count is ignored.
    pub(super) fn with(self, cx: &Cx<'_>, line: Val, count: Val) -> Running {
        let e = &cx.e;
        let groups = e.div_ceil_const(count, GROUP);
        let (all, lowest) = ((e.i64(0), count), e.float(VECTOR, f64::NEG_INFINITY));
        let shifted = |slot: Val, by: Val| {
            let number = e.load_at(VECTOR, line, slot);
            e.select(lanes_within(cx, slot, all), e.sub(number, e.splat(by, LANES)), lowest)
        };
        let none = e.f32(0.0);
        let greatest = e.for_loop(e.i64(0), groups, 1, &[lowest], |group, max| {
            vec![e.max(max[0], shifted(e.mul_const(group, GROUP), none))]
        });
        let max = e.max(self.max, e.reduce_max(greatest[0]));
        let some = e.cmp(Cmp::Gt, max, e.f32(f32::NEG_INFINITY));
        let shift = e.select(some, max, none);
        let sums = e.for_loop(e.i64(0), groups, 1, &[e.zero(VECTOR)], |group, sum| {
            vec![e.add(sum[0], math::exp(e, shifted(e.mul_const(group, GROUP), shift)))]
        });
        let kept = e.mul(self.sum, math::exp(e, e.sub(self.max, shift)));
        Running { max, sum: e.add(kept, e.reduce_add(sums[0])) }
    }

    /// The logarithm of the sum of the exponentials of all.
    pub(super) fn total(self, cx: &Cx<'_>) -> Val {
        cx.e.add(math::log(&cx.e, self.sum), self.max)
    }
}

/// That of `n` numbers, `step` elements apart; `chunk` is f32 `[CHUNK]` of scratch.
pub(super) fn row(cx: &Cx<'_>, x: &View, n: Val, step: &Dim, chunk: Val) -> Val {
    let e = &cx.e;
    let Running { max, sum } = Running::none(cx);
    let state = e.for_loop(e.i64(0), n, CHUNK, &[max, sum], |first, state| {
        let count = e.min(e.i64(CHUNK), e.sub(n, first));
        cx.strips(e.i64(0), count, |i, lanes| {
            let from = cx.scale(e.add(first, i), step);
            e.store_at(e.cast(x.load_strip(cx, from, step, lanes), Elem::F32), chunk, i);
        });
        let Running { max, sum } = Running { max: state[0], sum: state[1] }.with(cx, chunk, count);
        vec![max, sum]
    });
    Running { max: state[0], sum: state[1] }.total(cx)
}
