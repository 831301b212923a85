//! `reduce_max`.

use super::reduction::{extremum, reduction};

reduction! {
    /// Largest element over axes; NaN if any is, kept with extent one where `keep` is set.
    ReduceMax, "reduce_max",
    (f64::NEG_INFINITY, |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }),
    (i64::MIN, i64::max),
    extremum
}
