//! `reduce_prod`.

use super::reduction::reduction;

reduction! {
    /// Product over axes, kept with extent one where `keep` is set.
    ReduceProd, "reduce_prod", (1.0, |a, b| a * b), (1, i64::wrapping_mul)
}
