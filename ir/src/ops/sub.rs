//! `sub`.

use super::elementwise::binary;
use crate::op::onnx;

binary! {
    /// `a - b`.
    Sub, "sub", [onnx("Sub")], Number, -3.0..3.0, None,
    Some(|a, b| Some(a.clone() - b.clone())),
    |a, b| a - b,
    i64::wrapping_sub
}
