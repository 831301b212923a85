//! Scores to weights, chunk by chunk (Milakov & Gimelshein 2018, arXiv:1805.02867), and strands to
//! one sum.

use crate::{
    emit::{Cmp, Elem, Emitter, Ty, Val},
    lower::cx::Cx,
    math,
};

/// A product of query and key as a score in units of log2, capped if the operator says so.
pub(in crate::lower::attention) fn scaled(cx: &Cx<'_>, product: Val) -> Val {
    let (e, attrs) = (&cx.e, &cx.spec.attrs);
    let (scale, cap) = (attrs.float("scale"), attrs.float("softcap"));
    let units = std::f64::consts::LOG2_E;
    if cap > 0.0 {
        let capped = math::tanh(e, e.mul(product, e.like(product, scale / cap)));
        return e.mul(capped, e.like(product, cap * units));
    }
    e.mul(product, e.like(product, scale * units))
}

/// What products are multiplied with, and nothing else, to be scores in units of log2, if it is
/// positive: then the largest product is the largest score.
pub(in crate::lower::attention) fn factor(cx: &Cx<'_>) -> Option<Val> {
    let attrs = &cx.spec.attrs;
    let factor = attrs.float("scale") * std::f64::consts::LOG2_E;
    let plain = attrs.float("softcap") <= 0.0 && factor > 0.0;
    plain.then(|| cx.e.float(Ty::Scalar(Elem::F32), factor))
}

/// The largest score so far and the factor that what was summed so far gets, given the one before
/// and the chunk's. Until a row has seen a key, its largest score is -inf, and it is compared with
/// zero: the last value is what scores are compared with.
pub(in crate::lower::attention) fn advance(
    e: &Emitter,
    before: Val,
    chunk: Val,
) -> (Val, Val, Val) {
    let max = e.max(before, chunk);
    let some = e.cmp(Cmp::Gt, max, e.f32(f32::NEG_INFINITY));
    let shift = e.select(some, max, e.f32(0.0));
    (max, power_of_two(e, e.sub(before, shift)), shift)
}

/// How a strand joins those before it, given the largest scores of both: that of all, and the
/// factors of what the strands before summed and of what this one did.
pub(in crate::lower::attention) fn joining(
    e: &Emitter,
    total: Val,
    strand: Val,
) -> (Val, [Val; 2]) {
    let (max, factor, shift) = advance(e, total, strand);
    (max, [factor, power_of_two(e, e.sub(strand, shift))])
}

/// A strand's sum joined to that of those before it.
pub(in crate::lower::attention) fn join(
    e: &Emitter,
    total: Val,
    strand: Val,
    factors: [Val; 2],
) -> Val {
    e.fma(strand, factors[1], e.mul(total, factors[0]))
}

/// What sums of values are multiplied with, given the sum of weights.
pub(in crate::lower::attention) fn reciprocal(e: &Emitter, total: Val) -> Val {
    let none = e.cmp(Cmp::Eq, total, e.f32(0.0));
    e.select(none, e.f32(0.0), e.div(e.f32(1.0), total))
}

/// The logarithm of a sum of exponentials, from the largest score in units of log2 and the sum of
/// weights; -inf where there is none.
pub(in crate::lower::attention) fn log_sum(e: &Emitter, max: Val, total: Val) -> Val {
    let some = e.cmp(Cmp::Gt, max, e.f32(f32::NEG_INFINITY));
    let max = e.mul(max, e.f32(std::f32::consts::LN_2));
    e.select(some, e.add(math::log(e, total), max), e.f32(f32::NEG_INFINITY))
}

/// `2^x`, to two units in the last place; results below 2^-126 are zero.
pub(in crate::lower::attention) fn power_of_two(e: &Emitter, x: Val) -> Val {
    e.ptx_pure("ex2.approx.ftz.f32 $0, $1;", &[x.ty()], &[x])[0]
}
