//! `floor`.

use super::elementwise::unary;

unary! {
    /// The largest integer not above `x`.
    Floor, "floor", ["Floor"], Float, -9.0..9.0, f64::floor, |_| unreachable!("floats only"),
    zero
}
