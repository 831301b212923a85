//! `erf`.

use super::adjoint::times;
use super::elementwise::unary;

unary! {
    /// The error function, `2/√π ∫₀ˣ exp(-t²) dt`.
    Erf, "erf", ["Erf"], Float, -4.0..4.0, erf, |_| unreachable!("floats only"),
    |b, x, _, dy| {
        let e = b.mul(x, x)?;
        let e = b.neg(e)?;
        let e = b.exp(e)?;
        let e = times(b, e, std::f64::consts::FRAC_2_SQRT_PI)?;
        b.mul(dy, e)
    }
}

/// By its Maclaurin series for |x| < 3 and a continued fraction beyond (Abramowitz & Stegun 7.1.5
/// and 7.1.14), to about 1e-15.
pub(super) fn erf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let a = x.abs();
    if a < 3.0 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term.abs() > 1e-18 * sum.abs() {
            n += 1.0;
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
        }
        return x.signum() * sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    if a > 6.5 {
        return x.signum();
    }
    let fraction = (1..=60).rev().fold(a, |f, k| a + f64::from(k) / 2.0 / f);
    x.signum() * (1.0 - (-a * a).exp() / fraction * std::f64::consts::FRAC_2_SQRT_PI / 2.0)
}
