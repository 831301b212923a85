//! `reciprocal`.

use super::elementwise::unary;

unary! {
    /// `1 / x`.
    Reciprocal, "reciprocal", ["Reciprocal"], Float, 0.01..50.0,
    f64::recip, |_| unreachable!("floats only"),
    |b, _, y, dy| {
        let s = b.mul(y, y)?;
        let s = b.neg(s)?;
        b.mul(dy, s)
    }
}
