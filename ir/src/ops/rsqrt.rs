//! `rsqrt`.

use super::adjoint::times;
use super::elementwise::unary;

unary! {
    /// `1 / sqrt(x)`.
    Rsqrt, "rsqrt", [], Float, 0.01..50.0, |x| x.sqrt().recip(), |_| unreachable!("floats only"),
    |b, x, y, dy| {
        let s = b.div(y, x)?;
        let s = times(b, s, -0.5)?;
        b.mul(dy, s)
    }
}
