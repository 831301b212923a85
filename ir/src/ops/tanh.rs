//! `tanh`.

use super::elementwise::unary;

unary! {
    /// Hyperbolic tangent.
    Tanh, "tanh", ["Tanh"], Float, -6.0..6.0, f64::tanh, |_| unreachable!("floats only")
}
