//! `mul`.

use super::elementwise::binary;

binary! {
    /// `a · b`.
    Mul, "mul", ["Mul"], Number, -3.0..3.0, None,
    Some(|a, b, _| a.checked_mul(b)),
    |a, b| a * b,
    i64::wrapping_mul,
    |g, [_, b, _], dc| g.mul(dc, b),
    |g, [a, _, _], dc| g.mul(dc, a)
}
