//! `reciprocal`.

use super::elementwise::unary;
use crate::op::onnx;

unary! {
    /// `1 / x`.
    Reciprocal, "reciprocal", [onnx("Reciprocal")], Float, 0.01..50.0,
    f64::recip, |_| unreachable!("floats only")
}
