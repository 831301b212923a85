//! `rem`.

use super::elementwise::binary;
use crate::op::onnx;

binary! {
    /// Remainder with the sign of the divisor for integers (ONNX `Mod`), of the dividend for floats.
    Rem, "rem", [onnx("Mod")], Number, 1.0..9.0, None,
    None,
    |a, b| a % b,
    |a, b| if b == 0 { 0 } else { let r = a.wrapping_rem(b); if r != 0 && (r < 0) != (b < 0) { r + b } else { r } }
}
