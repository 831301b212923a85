//! `sin`.

use super::elementwise::unary;
use crate::op::onnx;

unary! {
    /// Sine of an angle in radians.
    Sin, "sin", [onnx("Sin")], Float, -100.0..100.0, f64::sin, |_| unreachable!("floats only")
}
