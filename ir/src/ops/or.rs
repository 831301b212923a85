//! `or`.

use super::elementwise::binary;
use crate::op::onnx;

binary! {
    /// Logical disjunction.
    Or, "or", [onnx("Or")], Bool, 0.0..2.0, None,
    None,
    |_, _| unreachable!("booleans only"),
    |a, b| a | b
}
