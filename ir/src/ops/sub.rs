//! `sub`.

use super::elementwise::binary;

binary! {
    /// `a - b`.
    Sub, "sub", ["Sub"], Number, -3.0..3.0, None,
    Some(|a, b, _| a.checked_add(&b.checked_mul(&crate::Dim::from(-1i64))?)),
    |a, b| a - b,
    i64::wrapping_sub,
    |_, _, dc| Ok(dc),
    |g, _, dc| g.neg(dc)
}
