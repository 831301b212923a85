//! `gelu`.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use super::adjoint::times;
use super::elementwise::activation;

activation! {
    /// `x · Φ(x)` by the error function. Hendrycks & Gimpel 2016, arXiv:1606.08415.
    Gelu, "gelu", [], -5.0..5.0, |b, x| {
        let dtype = b.ty(x).dtype;
        let c = b.scalar(dtype, FRAC_1_SQRT_2)?;
        let (half, one) = (b.scalar(dtype, 0.5)?, b.scalar(dtype, 1.0)?);
        let e = b.mul(x, c)?;
        let e = b.unary("erf", e)?;
        let e = b.add(e, one)?;
        let h = b.mul(x, half)?;
        b.mul(h, e)
    },
    |b, x, _, dy| {
        let e = times(b, x, FRAC_1_SQRT_2)?;
        let e = b.unary("erf", e)?;
        let e = times(b, e, 0.5)?;
        let half = b.scalar(b.ty(x).dtype, 0.5)?;
        let below = b.add(e, half)?;
        let d = b.mul(x, x)?;
        let d = times(b, d, -0.5)?;
        let d = b.exp(d)?;
        let d = times(b, d, FRAC_1_SQRT_2 * FRAC_2_SQRT_PI * 0.5)?;
        let d = b.mul(x, d)?;
        let s = b.add(below, d)?;
        b.mul(dy, s)
    }
}
