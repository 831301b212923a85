//! `and`.

use super::elementwise::binary;

binary! {
    /// Logical conjunction.
    And, "and", ["And"], Bool, 0.0..2.0, None,
    None,
    |_, _| unreachable!("booleans only"),
    |a, b| a & b,
    zero
}
