//! `round`.

use super::elementwise::unary;

unary! {
    /// The nearest integer, halves to even.
    Round, "round", ["Round"], Float, -9.0..9.0,
    f64::round_ties_even, |_| unreachable!("floats only"),
    zero
}
