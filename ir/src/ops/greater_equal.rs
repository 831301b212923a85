//! `greater_equal`.

use super::elementwise::binary;
use crate::op::onnx;

binary! {
    /// `a ≥ b`.
    GreaterEqual, "greater_equal", [onnx("GreaterOrEqual")], Number,
    -3.0..3.0, Some(crate::DType::Bool),
    None,
    |a, b| f64::from(u8::from(a >= b)),
    |a, b| i64::from(a >= b)
}
