//! `less_equal`.

use super::elementwise::binary;

binary! {
    /// `a ≤ b`.
    LessEqual, "less_equal", ["LessOrEqual"], Number, -3.0..3.0, Some(crate::DType::Bool),
    None,
    |a, b| f64::from(u8::from(a <= b)),
    |a, b| i64::from(a <= b),
    zero
}
