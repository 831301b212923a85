//! `pow`.

use super::elementwise::binary;

binary! {
    /// `a` to the power `b`, of one element type.
    Pow, "pow", [], Number, 0.5..3.0, None,
    None,
    f64::powf,
    |a, b| u32::try_from(b).map_or(0, |b| a.wrapping_pow(b))
}
