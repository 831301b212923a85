//! `neg`.

use super::elementwise::unary;

unary! {
    /// `-x`.
    Neg, "neg", ["Neg"], Number, -3.0..3.0, |x| -x, i64::wrapping_neg,
    |b, _, _, dy| b.neg(dy)
}
