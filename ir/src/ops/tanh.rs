//! `tanh`.

use super::elementwise::unary;
use crate::op::onnx;

unary! {
    /// Hyperbolic tangent.
    Tanh, "tanh", [onnx("Tanh")], Float, -6.0..6.0, f64::tanh, |_| unreachable!("floats only")
}
