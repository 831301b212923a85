//! `xor`.

use super::elementwise::binary;
use crate::op::onnx;

binary! {
    /// Exclusive disjunction.
    Xor, "xor", [onnx("Xor")], Bool, 0.0..2.0, None,
    None,
    |_, _| unreachable!("booleans only"),
    |a, b| a ^ b
}
