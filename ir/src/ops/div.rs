//! `div`.

use super::elementwise::binary;
use crate::op::onnx;

binary! {
    /// `a / b`; integers truncate towards zero, and division by zero gives zero.
    Div, "div", [onnx("Div")], Number, 1.0..9.0, None,
    Some(|a, b| a.exact_div(b).or_else(|| b.as_const().filter(|n| *n > 0).map(|n| a.floor_div(n)))),
    |a, b| a / b,
    |a, b| if b == 0 { 0 } else { a.wrapping_div(b) }
}
