//! `log`.

use super::elementwise::unary;
use crate::op::onnx;

unary! {
    /// Natural logarithm.
    Log, "log", [onnx("Log")], Float, 0.01..50.0, f64::ln, |_| unreachable!("floats only")
}
