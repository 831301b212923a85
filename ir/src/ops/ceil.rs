//! `ceil`.

use super::elementwise::unary;
use crate::op::onnx;

unary! {
    /// The smallest integer not below `x`.
    Ceil, "ceil", [onnx("Ceil")], Float, -9.0..9.0, f64::ceil, |_| unreachable!("floats only")
}
