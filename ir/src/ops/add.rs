//! `add`.

use super::elementwise::binary;

binary! {
    /// `a + b`.
    Add, "add", ["Add"], Number, -3.0..3.0, None,
    Some(|a, b, _| a.checked_add(b)),
    |a, b| a + b,
    i64::wrapping_add,
    |_, _, dc| Ok(dc),
    |_, _, dc| Ok(dc)
}
