//! `reduce_sum`.

use super::reduction::reduction;

reduction! {
    /// Sum over axes, kept with extent one where `keep` is set.
    ReduceSum, "reduce_sum", (0.0, |a, b| a + b), (0, i64::wrapping_add)
}
