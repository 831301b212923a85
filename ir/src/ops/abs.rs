//! `abs`.

use super::elementwise::unary;

unary! {
    /// `|x|`.
    Abs, "abs", ["Abs"], Number, -3.0..3.0, f64::abs, i64::wrapping_abs,
    |b, x, _, dy| {
        let s = b.unary("sign", x)?;
        b.mul(dy, s)
    }
}
