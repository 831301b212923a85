//! `or`.

use super::elementwise::binary;

binary! {
    /// Logical disjunction.
    Or, "or", ["Or"], Bool, 0.0..2.0, None,
    None,
    |_, _| unreachable!("booleans only"),
    |a, b| a | b,
    zero
}
