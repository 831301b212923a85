//! `xor`.

use super::elementwise::binary;

binary! {
    /// Exclusive disjunction.
    Xor, "xor", ["Xor"], Bool, 0.0..2.0, None,
    None,
    |_, _| unreachable!("booleans only"),
    |a, b| a ^ b,
    zero
}
