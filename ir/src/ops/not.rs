//! `not`.

use super::elementwise::unary;

unary! {
    /// Logical negation.
    Not, "not", ["Not"], Bool, 0.0..2.0,
    |_| unreachable!("booleans only"), |x| i64::from(x == 0),
    zero
}
