//! `cos`.

use super::elementwise::unary;
use crate::op::onnx;

unary! {
    /// Cosine of an angle in radians.
    Cos, "cos", [onnx("Cos")], Float, -100.0..100.0, f64::cos, |_| unreachable!("floats only")
}
