//! `tanh`.

use super::adjoint::one_minus_square;
use super::elementwise::unary;

unary! {
    /// Hyperbolic tangent.
    Tanh, "tanh", ["Tanh"], Float, -6.0..6.0, f64::tanh, |_| unreachable!("floats only"),
    |b, _, y, dy| {
        let s = one_minus_square(b, y)?;
        b.mul(dy, s)
    }
}
