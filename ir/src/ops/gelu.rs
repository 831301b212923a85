//! `gelu`.

use super::elementwise::activation;

activation! {
    /// `x · Φ(x)` by the error function. Hendrycks & Gimpel 2016, arXiv:1606.08415.
    Gelu, "gelu", [], -5.0..5.0, |b, x| {
        let dtype = b.ty(x).dtype;
        let c = b.scalar(dtype, std::f64::consts::FRAC_1_SQRT_2)?;
        let (half, one) = (b.scalar(dtype, 0.5)?, b.scalar(dtype, 1.0)?);
        let e = b.mul(x, c)?;
        let e = b.unary("erf", e)?;
        let e = b.add(e, one)?;
        let h = b.mul(x, half)?;
        b.mul(h, e)
    }
}
