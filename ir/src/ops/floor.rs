//! `floor`.

use super::elementwise::unary;
use crate::op::onnx;

unary! {
    /// The largest integer not above `x`.
    Floor, "floor", [onnx("Floor")], Float, -9.0..9.0, f64::floor, |_| unreachable!("floats only")
}
