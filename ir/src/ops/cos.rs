//! `cos`.

use super::elementwise::unary;

unary! {
    /// Cosine of an angle in radians.
    Cos, "cos", ["Cos"], Float, -100.0..100.0, f64::cos, |_| unreachable!("floats only"),
    |b, x, _, dy| {
        let s = b.sin(x)?;
        let s = b.neg(s)?;
        b.mul(dy, s)
    }
}
