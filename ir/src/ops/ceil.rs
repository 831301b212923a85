//! `ceil`.

use super::elementwise::unary;

unary! {
    /// The smallest integer not below `x`.
    Ceil, "ceil", ["Ceil"], Float, -9.0..9.0, f64::ceil, |_| unreachable!("floats only"),
    zero
}
