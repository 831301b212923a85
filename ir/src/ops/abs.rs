//! `abs`.

use super::elementwise::unary;
use crate::op::onnx;

unary! {
    /// `|x|`.
    Abs, "abs", [onnx("Abs")], Number, -3.0..3.0, f64::abs, i64::wrapping_abs
}
