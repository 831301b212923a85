//! `bit_and`.

use super::elementwise::binary;

binary! {
    /// Conjunction of two integers, bit by bit, in two's complement.
    BitAnd, "bit_and", ["BitwiseAnd"], Int, 0.0..1.0, None,
    None,
    |_, _| unreachable!("integers only"),
    |a, b| a & b,
    zero
}
