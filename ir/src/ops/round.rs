//! `round`.

use super::elementwise::unary;
use crate::op::onnx;

unary! {
    /// The nearest integer, halves to even.
    Round, "round", [onnx("Round")], Float, -9.0..9.0,
    f64::round_ties_even, |_| unreachable!("floats only")
}
