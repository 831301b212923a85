//! `sign`.

use super::elementwise::unary;

unary! {
    /// -1, 0 or 1 by the sign of `x`; NaN stays NaN.
    Sign, "sign", ["Sign"], Number, -3.0..3.0,
    |x| if x == 0.0 || x.is_nan() { x } else { x.signum() }, i64::signum,
    zero
}
