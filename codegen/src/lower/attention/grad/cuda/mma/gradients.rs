//! From products and `dy · v` to weights and gradients of scores.

use super::{Block, F32, WORD};
use crate::{
    emit::{Elem, Ty, Val},
    lower::attention::cuda::softmax::power_of_two,
    math,
};

/// Numbers of the queries that a score of this thread belongs to: given the row's half and the
/// column, the logarithm of its sum in units of log2, and `dy · y`.
pub(super) type Stats<'s> = dyn Fn(usize, usize) -> [Val; 2] + 's;

impl Block<'_> {
    /// A word's two numbers.
    pub(super) fn floats(&self, word: Val) -> [Val; 2] {
        let e = &self.cx.e;
        let bits = match self.elem() {
            Elem::Bf16 => [e.shl(word, 16), e.and(word, e.i32(-0x1_0000))],
            _ => [word, e.shr(word, 16)].map(|word| {
                let half = e.bitcast(e.cast(word, Elem::I16), Ty::Scalar(Elem::F16));
                e.bitcast(e.cast(half, Elem::F32), WORD)
            }),
        };
        bits.map(|word| e.bitcast(word, F32))
    }

    /// The column within its chunk of sum `i` of a row's.
    pub(super) fn column(&self, i: usize) -> Val {
        let e = &self.cx.e;
        let pair = e.shl(e.and(self.lane, e.i32(3)), 1);
        let behind = i64::try_from(i / 4 * 8 + i % 2).expect("small");
        e.add_const(pair, behind)
    }

    /// Weights of products, and gradients of them but for the scale, given `dy · v`; zero where
    /// `seen(half, column)` is not, unless `all` are.
    pub(super) fn gradients(
        &self,
        products: &[Val],
        slopes: &[Val],
        stats: &Stats<'_>,
        (all, seen): (Val, &dyn Fn(usize, Val) -> Val),
    ) -> [Vec<Val>; 2] {
        let (e, attrs) = (&self.cx.e, &self.cx.spec.attrs);
        let (scale, cap) = (attrs.float("scale"), attrs.float("softcap"));
        let units = std::f64::consts::LOG2_E;
        let (mut weights, mut caps) = (Vec::new(), Vec::new());
        for (i, product) in products.iter().enumerate() {
            let [log_sum, _] = stats(i / 2 % 2, i);
            let exponent = if cap > 0.0 {
                let inner = math::tanh(e, e.mul(*product, e.like(*product, scale / cap)));
                caps.push(e.sub(e.f32(1.0), e.mul(inner, inner)));
                e.sub(e.mul(inner, e.like(inner, cap * units)), log_sum)
            } else {
                e.fma(*product, e.like(*product, scale * units), e.neg(log_sum))
            };
            weights.push(power_of_two(e, exponent));
        }
        let types: Vec<Ty> = weights.iter().map(|weight| weight.ty()).collect();
        let masked = || {
            let zero = e.f32(0.0);
            let one = |(i, weight): (usize, &Val)| {
                e.select(seen(i / 2 % 2, self.column(i)), *weight, zero)
            };
            weights.iter().enumerate().map(one).collect()
        };
        let weights = e.if_else(all, &types, || weights.clone(), masked);
        let mut gradients = Vec::new();
        for (i, (weight, slope)) in weights.iter().zip(slopes).enumerate() {
            let [_, mean] = stats(i / 2 % 2, i);
            let mut gradient = e.mul(*weight, e.sub(*slope, mean));
            if let Some(cap) = caps.get(i) {
                gradient = e.mul(gradient, *cap);
            }
            gradients.push(gradient);
        }
        [weights, gradients]
    }
}
