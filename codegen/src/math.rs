//! Elementary functions as polynomials over f32 scalars or vectors.
//!
//! Every function is straight-line code without tables, branches or library calls, so it has the
//! same rounding at every width and on every target. Errors below are the greatest over a sweep of
//! the stated range, against f64, and are asserted in the tests. NaN in gives NaN out.
//!
//! Minimax coefficients of exp, log, sin and cos are Moshier's (Cephes, `single/`); the rational
//! approximations of tanh and erf are weighted least-squares (Lawson) fits of relative error.

use crate::emit::{Cmp, Elem, Emitter, Val};

/// Horner's scheme, highest coefficient first.
fn horner(e: &Emitter, x: Val, coefficients: &[f64]) -> Val {
    let (first, rest) = coefficients.split_first().expect("a polynomial has a coefficient");
    rest.iter().fold(e.like(x, *first), |sum, &c| e.fma(sum, x, e.like(x, c)))
}

/// Clamps to `lo..=hi` and keeps NaN.
fn clamp(e: &Emitter, x: Val, lo: f64, hi: f64) -> Val {
    // `max` and `min` return their second operand where either is NaN.
    e.min(e.like(x, hi), e.max(e.like(x, lo), x))
}

/// Adding this rounds an f32 below 2^22 to a whole number, held in the low mantissa bits.
const ROUND: f64 = 12_582_912.0;

/// `e^x`. Relative error 1.1e-7 where the result is above 2^-125; below, exactly 0. `exp(0)` is 1.
#[must_use]
pub fn exp(e: &Emitter, x: Val) -> Val {
    let x = clamp(e, x, -87.3, 89.0);
    // The biased exponent of 2^(n-1) sits in the low bits: 126 more than n. The other factor 2 is
    // in the coefficients, so that n = 128 does not overflow and n = -126 gives 0.
    let biased = ROUND + 126.0;
    let shifted = e.fma(x, e.like(x, std::f64::consts::LOG2_E), e.like(x, biased));
    let n = e.sub(shifted, e.like(x, biased));
    let r = e.fma(n, e.like(x, -0.693_359_375), x);
    let r = e.fma(n, e.like(x, 2.121_944_4e-4), r);
    let p = horner(
        e,
        r,
        &[
            2.0 * 1.987_569_15e-4,
            2.0 * 1.398_199_950_7e-3,
            2.0 * 8.333_451_907_3e-3,
            2.0 * 4.166_579_589_4e-2,
            2.0 * 1.666_666_545_9e-1,
            2.0 * 5.000_000_120_1e-1,
            2.0,
            2.0,
        ],
    );
    let bits = e.bitcast(shifted, x.ty().with_elem(Elem::I32));
    e.mul(p, e.bitcast(e.shl(bits, 23), x.ty()))
}

/// Natural logarithm. Relative error 1.2e-7 away from 1, absolute error 6e-8 near it.
///
/// `log(0)` is -inf, of a negative number NaN, of inf inf; subnormals are exact inputs.
#[must_use]
pub fn log(e: &Emitter, x: Val) -> Val {
    let int_ty = x.ty().with_elem(Elem::I32);
    let int = |value| e.int(int_ty, value);
    let tiny = e.cmp(Cmp::Lt, x, e.like(x, f32::MIN_POSITIVE.into()));
    let scaled = e.select(tiny, e.mul(x, e.like(x, 8_388_608.0)), x);
    // Mantissa in [sqrt(1/2), sqrt(2)): 0x3f3504f3 is sqrt(1/2).
    let offset = e.sub(e.bitcast(scaled, int_ty), int(0x3f35_04f3));
    let exponent = e.cast(e.shr_signed(offset, 23), Elem::F32);
    let exponent = e.select(tiny, e.sub(exponent, e.like(x, 23.0)), exponent);
    let mantissa = e.add(e.and(offset, int(0x007f_ffff)), int(0x3f35_04f3));
    let f = e.sub(e.bitcast(mantissa, x.ty()), e.like(x, 1.0));
    let p = horner(
        e,
        f,
        &[
            7.037_683_629_2e-2,
            -1.151_461_031e-1,
            1.167_699_874e-1,
            -1.242_014_084_6e-1,
            1.424_932_278_7e-1,
            -1.666_805_766_5e-1,
            2.000_071_476_5e-1,
            -2.499_999_399_3e-1,
            3.333_333_117_4e-1,
        ],
    );
    let square = e.mul(f, f);
    let low = e.fma(exponent, e.like(x, -2.121_944_4e-4), e.mul(e.mul(square, f), p));
    let low = e.fma(square, e.like(x, -0.5), low);
    let y = e.fma(exponent, e.like(x, 0.693_359_375), e.add(f, low));
    let infinite = e.cmp(Cmp::Eq, x, e.like(x, f64::INFINITY));
    let y = e.select(infinite, x, y);
    let y = e.select(e.cmp(Cmp::Eq, x, e.like(x, 0.0)), e.like(x, f64::NEG_INFINITY), y);
    e.select(e.cmp(Cmp::Ge, x, e.like(x, 0.0)), y, e.like(x, f64::NAN))
}

/// An angle as a multiple of pi/2 and a rest in [-pi/4, pi/4] (Cody and Waite, three terms by fma).
fn reduce_angle(e: &Emitter, x: Val) -> (Val, Val) {
    let shifted = e.fma(x, e.like(x, std::f64::consts::FRAC_2_PI), e.like(x, ROUND));
    let n = e.sub(shifted, e.like(x, ROUND));
    let r = e.fma(n, e.like(x, -1.570_796_370_506_286_6), x);
    let r = e.fma(n, e.like(x, 4.371_138_828_673_793e-8), r);
    let r = e.fma(n, e.like(x, 1.715_124_510_005_881_9e-15), r);
    (e.bitcast(shifted, x.ty().with_elem(Elem::I32)), r)
}

/// Sine of the rest in even quadrants, cosine in odd ones, negative in the upper two.
fn sine_in_quadrant(e: &Emitter, quadrant: Val, r: Val) -> Val {
    let square = e.mul(r, r);
    let s = horner(e, square, &[-1.951_529_589_1e-4, 8.332_160_873_6e-3, -1.666_665_461_1e-1]);
    let s = e.fma(e.mul(s, square), r, r);
    let c = horner(
        e,
        square,
        &[2.443_315_711_809_948e-5, -1.388_731_625_493_765e-3, 4.166_664_568_298_827e-2, -0.5, 1.0],
    );
    let int = |value| e.int(quadrant.ty(), value);
    let odd = e.cmp(Cmp::Ne, e.and(quadrant, int(1)), int(0));
    let y = e.select(odd, c, s);
    let sign = e.shl(e.and(quadrant, int(2)), 30);
    e.bitcast(e.xor(e.bitcast(y, quadrant.ty()), sign), r.ty())
}

/// Sine. Absolute error 1e-7 for `|x| <= 1e5`; no accuracy beyond 6e6.
#[must_use]
pub fn sin(e: &Emitter, x: Val) -> Val {
    let (quadrant, r) = reduce_angle(e, x);
    sine_in_quadrant(e, quadrant, r)
}

/// Cosine. Absolute error 1e-7 for `|x| <= 1e5`; no accuracy beyond 6e6.
#[must_use]
pub fn cos(e: &Emitter, x: Val) -> Val {
    let (quadrant, r) = reduce_angle(e, x);
    sine_in_quadrant(e, e.add_const(quadrant, 1), r)
}

/// Hyperbolic tangent. Relative error 3.5e-7; never beyond ±1.
#[must_use]
pub fn tanh(e: &Emitter, x: Val) -> Val {
    let numerator = [
        -8.435_653_574_719_926e-14,
        5.257_646_809_839_903e-11,
        -2.018_374_551_079_825e-8,
        1.114_422_149_552_852_5e-5,
        3.102_998_461_893_465e-3,
        1.308_315_469_072_7e-1,
        9.999_999_932_802_424e-1,
    ];
    let denominator =
        [2.544_746_306_217_056e-4, 2.449_137_074_191_256_5e-2, 4.641_648_167_518_939e-1, 1.0];
    odd_rational(e, clamp(e, x, -9.02, 9.02), &numerator, &denominator)
}

/// Error function. Relative error 3.6e-7; never beyond ±1.
#[must_use]
pub fn erf(e: &Emitter, x: Val) -> Val {
    let numerator = [
        2.050_061_821_927_606e-6,
        2.848_648_759_171_874e-4,
        3.765_159_202_397_155e-3,
        5.274_727_744_929_885e-2,
        1.903_968_797_739_895_6e-1,
        1.128_379_146_303_263_3,
    ];
    let denominator = [
        3.809_051_703_552_738_5e-5,
        1.162_410_552_679_441_5e-3,
        1.496_830_275_812_011_5e-2,
        1.141_049_891_598_997_2e-1,
        5.020_675_848_454_604e-1,
        1.0,
    ];
    odd_rational(e, clamp(e, x, -3.92, 3.92), &numerator, &denominator)
}

/// `x P(x²) / Q(x²)`, clamped to ±1.
fn odd_rational(e: &Emitter, x: Val, numerator: &[f64], denominator: &[f64]) -> Val {
    let square = e.mul(x, x);
    let p = e.mul(x, horner(e, square, numerator));
    let q = horner(e, square, denominator);
    clamp(e, e.div(p, q), -1.0, 1.0)
}

/// `1 / sqrt(x)`, both operations correctly rounded.
#[must_use]
pub fn rsqrt(e: &Emitter, x: Val) -> Val {
    e.div(e.like(x, 1.0), e.sqrt(x))
}

/// `1 / (1 + e^-x)`. Relative error 3e-7 for `x > -86`; 0 below.
#[must_use]
pub fn sigmoid(e: &Emitter, x: Val) -> Val {
    e.div(e.like(x, 1.0), e.add(e.like(x, 1.0), exp(e, e.neg(x))))
}

/// `x / (1 + e^-x)`. Relative error 3e-7 for `x > -86`; NaN at -inf, as the formula says.
#[must_use]
pub fn silu(e: &Emitter, x: Val) -> Val {
    e.div(x, e.add(e.like(x, 1.0), exp(e, e.neg(x))))
}

/// `x/2 (1 + erf(x/√2))`. Absolute error 3e-7·max(1, |x|).
#[must_use]
pub fn gelu_erf(e: &Emitter, x: Val) -> Val {
    let inner = erf(e, e.mul(x, e.like(x, std::f64::consts::FRAC_1_SQRT_2)));
    e.mul(e.mul(x, e.like(x, 0.5)), e.add(inner, e.like(x, 1.0)))
}

/// `x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))`. Absolute error 4e-7·max(1, |x|).
#[must_use]
pub fn gelu_tanh(e: &Emitter, x: Val) -> Val {
    let square = e.mul(x, x);
    let scale = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
    let slope = e.fma(square, e.like(x, 0.044_715 * scale), e.like(x, scale));
    let inner = tanh(e, e.mul(x, slope));
    e.mul(e.mul(x, e.like(x, 0.5)), e.add(inner, e.like(x, 1.0)))
}

/// `max(x, 0)`.
#[must_use]
pub fn relu(e: &Emitter, x: Val) -> Val {
    e.max(e.like(x, 0.0), x)
}

#[cfg(test)]
mod tests;
