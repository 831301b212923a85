//! `neg`.

use super::elementwise::unary;
use crate::op::onnx;

unary! {
    /// `-x`.
    Neg, "neg", [onnx("Neg")], Number, -3.0..3.0, |x| -x, i64::wrapping_neg
}
