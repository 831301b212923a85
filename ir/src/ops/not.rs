//! `not`.

use super::elementwise::unary;
use crate::op::onnx;

unary! {
    /// Logical negation.
    Not, "not", [onnx("Not")], Bool, 0.0..2.0,
    |_| unreachable!("booleans only"), |x| i64::from(x == 0)
}
