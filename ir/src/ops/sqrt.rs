//! `sqrt`.

use super::elementwise::unary;
use crate::op::onnx;

unary! {
    /// Square root.
    Sqrt, "sqrt", [onnx("Sqrt")], Float, 0.0..50.0, f64::sqrt, |_| unreachable!("floats only")
}
