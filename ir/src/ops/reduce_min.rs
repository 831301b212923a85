//! `reduce_min`.

use super::reduction::{extremum, reduction};

reduction! {
    /// Smallest element over axes; NaN if any is, kept with extent one where `keep` is set.
    ReduceMin, "reduce_min",
    (f64::INFINITY, |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }),
    (i64::MAX, i64::min),
    extremum
}
