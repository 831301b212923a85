//! Scores to weights, chunk by chunk (Milakov & Gimelshein 2018, arXiv:1805.02867).

use super::{Block, Row};
use crate::{
    emit::{Cmp, Emitter, Val},
    math,
};

impl Block<'_> {
    /// The state after a chunk, and the weights of its keys. The state is, of both rows each, the
    /// largest score so far, in units of log2, and the lane's part of the sum of weights; then the
    /// sums of values, scaled to the new largest score.
    pub(super) fn weigh(
        &self,
        rows: [Row; 2],
        chunk: Val,
        scores: &[Val],
        state: &[Val],
    ) -> (Vec<Val>, Vec<Val>) {
        let e = &self.cx.e;
        let pair = e.shl(e.and(self.thread, e.i32(3)), 1);
        let first = e.add(e.mul_const(chunk, self.chunks.keys()), pair);
        let lowest = e.f32(f32::NEG_INFINITY);
        let mut scores = scores.to_vec();
        let (mut maxima, mut totals, mut factors) = (Vec::new(), Vec::new(), Vec::new());
        for (half, row) in rows.into_iter().enumerate() {
            let own = || (0..scores.len()).filter(move |i| i / 2 % 2 == half);
            let places: Vec<usize> = own().collect();
            for &i in &places {
                let offset = i64::try_from(i / 4 * 8 + i % 2).expect("small");
                let key = e.add_const(first, offset);
                let seen = e.and(e.cmp(Cmp::Ge, key, row.from), e.cmp(Cmp::Lt, key, row.to));
                scores[i] = e.select(seen, self.scaled(scores[i]), lowest);
            }
            let largest = places.iter().fold(state[half], |max, i| e.max(max, scores[*i]));
            let max =
                [1, 2].into_iter().fold(largest, |max, mask| e.max(max, e.shuffle_xor(max, mask)));
            // While a row has seen no key, its weights are those of -inf - 0.
            let some = e.cmp(Cmp::Gt, max, lowest);
            let shift = e.select(some, max, e.f32(0.0));
            let factor = power_of_two(e, e.sub(state[half], shift));
            let mut total = e.mul(state[2 + half], factor);
            for &i in &places {
                scores[i] = power_of_two(e, e.sub(scores[i], shift));
                total = e.add(total, scores[i]);
            }
            maxima.push(max);
            totals.push(total);
            factors.push(factor);
        }
        let sums = state[4..].iter().enumerate().map(|(i, sum)| e.mul(*sum, factors[i / 2 % 2]));
        let state = maxima.into_iter().chain(totals).chain(sums).collect();
        (state, scores)
    }

    /// A score in units of log2, capped if the operator says so.
    fn scaled(&self, score: Val) -> Val {
        let e = &self.cx.e;
        let attrs = &self.cx.spec.attrs;
        let (scale, cap) = (attrs.float("scale"), attrs.float("softcap"));
        let units = std::f64::consts::LOG2_E;
        if cap > 0.0 {
            let capped = math::tanh(e, e.mul(score, e.like(score, scale / cap)));
            return e.mul(capped, e.like(score, cap * units));
        }
        e.mul(score, e.like(score, scale * units))
    }
}

/// `2^x`, to two units in the last place; results below 2^-126 are zero.
fn power_of_two(e: &Emitter, x: Val) -> Val {
    e.ptx_pure("ex2.approx.ftz.f32 $0, $1;", &[x.ty()], &[x])[0]
}
