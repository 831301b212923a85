//! Scores to weights.

use super::{
    super::super::{
        CHUNK, WARPS,
        chunk::{Scales, padded, place},
        softmax::{advance, factor, power_of_two, scaled},
    },
    Form, Pass, SMALL,
};
use crate::emit::{Barrier, Cmp, Elem, Ty, Val};

/// Weights of the warp's keys as left operands: as values are multiplied with them, which includes
/// the scales of codes, and as they are summed.
pub(super) struct Weights {
    pub(super) of_values: Vec<[Val; 4]>,
    pub(super) plain: Vec<[Val; 4]>,
}

impl Pass<'_> {
    /// Where the weights of sixteen rows are, and their largest scores.
    pub(super) fn weights_at(&self) -> Val {
        self.cx.e.add_const(self.area, SMALL * 2 * padded(self.tiles.sizes.key))
    }

    /// Where they are before they are multiplied with scales, if they are.
    pub(super) fn plain_at(&self) -> Val {
        let behind = SMALL * 2 * CHUNK * i64::from(self.chunks.codes());
        self.cx.e.add_const(self.weights_at(), behind)
    }

    fn maxima_at(&self) -> Val {
        self.cx.e.add_const(self.plain_at(), SMALL * 2 * CHUNK)
    }

    /// The state after a chunk, sums scaled to the new largest scores, and its weights; those of a
    /// small tile go to shared memory too.
    pub(super) fn weigh(
        &self,
        chunk: Val,
        stage: Val,
        scores: Vec<Val>,
        state: &[Val],
    ) -> (Vec<Val>, Weights) {
        let e = &self.cx.e;
        let (maxima, factors, mut scores) = self.exponentials(chunk, stage, scores, &state[..2]);
        // Where no largest score has changed, as most often, sums stay as they are.
        let changed = e.cmp(Cmp::Ne, e.min(factors[0], factors[1]), e.f32(1.0));
        let sums = self.rescaled(changed, factors, &state[2..]);
        let state = maxima.into_iter().chain(sums).collect();
        let plain = self.rounded(&scores);
        let mut weights = Weights { of_values: plain.clone(), plain };
        if self.chunks.codes() {
            self.rescale(Scales::OfValues, stage, &mut scores);
            weights.of_values = self.rounded(&scores);
        }
        if self.form == Form::Small {
            let groups = self.groups();
            self.owns(|| {
                self.put_weights(self.weights_at(), groups[0], &weights.of_values[0]);
                if self.chunks.codes() {
                    self.put_weights(self.plain_at(), groups[0], &weights.plain[0]);
                }
            });
        }
        (state, weights)
    }

    /// Largest scores after a chunk, the factors of sums before it, and the weights of its keys.
    pub(in super::super) fn exponentials(
        &self,
        chunk: Val,
        stage: Val,
        scores: Vec<Val>,
        before: &[Val],
    ) -> ([Val; 2], [Val; 2], Vec<Val>) {
        let e = &self.cx.e;
        let mut scores = scores;
        let pair = e.shl(e.and(self.lane, e.i32(3)), 1);
        let first = e.add(e.mul_const(chunk, CHUNK), pair);
        let groups = self.groups();
        let first: Vec<Val> = groups.iter().map(|g| e.add(first, e.shl(*g, 4))).collect();
        if self.chunks.codes() {
            self.rescale(Scales::OfKeys, stage, &mut scores);
        }
        let lowest = e.f32(f32::NEG_INFINITY);
        let own = |half: usize| (0..scores.len()).filter(move |i| i / 2 % 2 == half);
        let places = [0, 1].map(|half| own(half).collect::<Vec<usize>>());
        let factor = factor(self.cx);
        if factor.is_none() {
            scores.iter_mut().for_each(|score| *score = scaled(self.cx, *score));
        }
        let masked = || {
            let mut masked = scores.clone();
            for (places, row) in places.iter().zip(self.rows) {
                for &i in places {
                    let offset = i64::try_from(i / 4 % 2 * 8 + i % 2).expect("small");
                    let key = e.add_const(first[i / 8], offset);
                    let seen = e.and(e.cmp(Cmp::Ge, key, row.from), e.cmp(Cmp::Lt, key, row.to));
                    masked[i] = e.select(seen, scores[i], lowest);
                }
            }
            masked
        };
        // Between the keys that only some rows see are, most often, some that all do.
        let begin = e.mul_const(chunk, CHUNK);
        let after = e.cmp(Cmp::Ge, begin, self.all[0]);
        let all = e.and(after, e.cmp(Cmp::Le, e.add_const(begin, CHUNK), self.all[1]));
        let types: Vec<Ty> = scores.iter().map(|score| score.ty()).collect();
        let mut scores = e.if_else(all, &types, || scores.clone(), masked);
        let largest = places.iter().map(|places| {
            let larger = |a: Val, b: Val| e.ptx_pure("max.f32 $0, $1, $2;", &[a.ty()], &[a, b])[0];
            let max = places.iter().fold(lowest, |max, i| larger(max, scores[*i]));
            let over = |max: Val, mask: u32| larger(max, e.shuffle_xor(max, mask));
            [1, 2].into_iter().fold(max, over)
        });
        let mut largest: Vec<Val> = largest.collect();
        if self.form == Form::Small {
            largest = self.over_warps(&largest);
        }
        let (mut maxima, mut factors) = ([before[0]; 2], [before[0]; 2]);
        for (half, places) in places.iter().enumerate() {
            let units = |score: Val| factor.map_or(score, |factor| e.mul(score, factor));
            let (max, ratio, shift) = advance(e, before[half], units(largest[half]));
            let down = e.neg(shift);
            for &i in places {
                let exponent = match factor {
                    Some(factor) => e.fma(scores[i], factor, down),
                    None => e.sub(scores[i], shift),
                };
                scores[i] = power_of_two(e, exponent);
            }
            maxima[half] = max;
            factors[half] = ratio;
        }
        (maxima, factors, scores)
    }

    /// Sums, scaled to new largest scores if any has changed.
    pub(in super::super) fn rescaled(
        &self,
        changed: Val,
        factors: [Val; 2],
        sums: &[Val],
    ) -> Vec<Val> {
        let e = &self.cx.e;
        let types: Vec<Ty> = sums.iter().map(|sum| sum.ty()).collect();
        let rescaled =
            || sums.iter().enumerate().map(|(i, sum)| e.mul(*sum, factors[i / 2 % 2])).collect();
        e.if_else(changed, &types, rescaled, || sums.to_vec())
    }

    /// Weights as left operands: sums of 16 x 8 lie in lanes as two of their four parts do.
    pub(in super::super) fn rounded(&self, weights: &[Val]) -> Vec<[Val; 4]> {
        let groups = weights.chunks_exact(8);
        groups.map(|g| [0, 2, 4, 6].map(|i| self.round([g[i], g[i + 1]]))).collect()
    }

    /// Multiplies scores or weights of the warp's keys with the scales of codes.
    fn rescale(&self, which: Scales, stage: Val, scores: &mut [Val]) {
        let e = &self.cx.e;
        let pair = e.shl(e.and(self.lane, e.i32(3)), 1);
        for (scores, group) in scores.chunks_exact_mut(8).zip(self.groups()) {
            let first = e.add(e.shl(group, 4), pair);
            for (half, scores) in (0..).zip(scores.chunks_exact_mut(4)) {
                let scales = self.chunks.scales(which, stage, e.add_const(first, 8 * half));
                for (i, score) in scores.iter_mut().enumerate() {
                    let scaled = e.mul(*score, scales[i % 2]);
                    *score = match which {
                        // Scores of keys that a row does not see are replaced.
                        Scales::OfKeys => scaled,
                        // A scale that no key has may be no number, and then the weight is zero.
                        Scales::OfValues => {
                            e.select(e.cmp(Cmp::Eq, *score, e.f32(0.0)), *score, scaled)
                        }
                    };
                }
            }
        }
    }

    /// Stores the weights of a group of keys to shared memory.
    fn put_weights(&self, to: Val, group: Val, weights: &[Val; 4]) {
        let e = &self.cx.e;
        let row = e.shr(self.lane, 2);
        let word = e.shl(e.and(self.lane, e.i32(3)), 2);
        for (i, value) in (0..).zip(weights) {
            let unit = e.add_const(e.shl(group, 1), i / 2);
            let at = place(e, e.add_const(row, i % 2 * 8), unit, CHUNK / 8);
            e.ptx("st.shared.b32 [$0], $1;", &[e.add(e.add(to, at), word), *value]);
        }
    }

    /// Runs `body` in those warps whose scores no other has.
    fn owns(&self, body: impl FnOnce()) {
        let e = &self.cx.e;
        if self.warps() > WARPS {
            e.if_then(e.cmp(Cmp::Lt, self.warp, e.i32(WARPS)), body);
        } else {
            body();
        }
    }

    /// The largest scores of both rows over all warps.
    fn over_warps(&self, largest: &[Val]) -> Vec<Val> {
        let e = &self.cx.e;
        let row = e.shr(self.lane, 2);
        let base = self.maxima_at();
        let at = |warp: Val, half: usize| {
            let row = e.add_const(row, 8 * i64::try_from(half).expect("two"));
            e.add(base, e.shl(e.add(e.mul_const(warp, SMALL), row), 2))
        };
        self.owns(|| {
            let leads = e.cmp(Cmp::Eq, e.and(self.lane, e.i32(3)), e.i32(0));
            e.if_then(leads, || {
                for (half, max) in largest.iter().enumerate() {
                    e.ptx("st.shared.f32 [$0], $1;", &[at(self.warp, half), *max]);
                }
            });
        });
        e.barrier(Barrier::Block);
        let f32 = Ty::Scalar(Elem::F32);
        let load = |warp: i64, half: usize| {
            e.ptx_values("ld.shared.f32 $0, [$1];", &[f32], &[at(e.i32(warp), half)])[0]
        };
        let over = |half: usize| {
            let found: Vec<Val> = (0..WARPS).map(|warp| load(warp, half)).collect();
            found[1..].iter().fold(found[0], |max, other| e.max(max, *other))
        };
        vec![over(0), over(1)]
    }
}
