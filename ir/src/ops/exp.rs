//! `exp`.

use super::elementwise::unary;
use crate::op::onnx;

unary! {
    /// `eˣ`.
    Exp, "exp", [onnx("Exp")], Float, -20.0..20.0, f64::exp, |_| unreachable!("floats only")
}
