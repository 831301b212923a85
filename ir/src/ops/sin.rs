//! `sin`.

use super::elementwise::unary;

unary! {
    /// Sine of an angle in radians.
    Sin, "sin", ["Sin"], Float, -100.0..100.0, f64::sin, |_| unreachable!("floats only"),
    |b, x, _, dy| {
        let s = b.cos(x)?;
        b.mul(dy, s)
    }
}
