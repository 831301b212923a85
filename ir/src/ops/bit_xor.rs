//! `bit_xor`.

use super::elementwise::binary;

binary! {
    /// Exclusive disjunction of two integers, bit by bit, in two's complement.
    BitXor, "bit_xor", ["BitwiseXor"], Int, 0.0..1.0, None,
    None,
    |_, _| unreachable!("integers only"),
    |a, b| a ^ b,
    zero
}
