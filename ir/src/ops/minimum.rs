//! `minimum`.

use super::adjoint::extremum;
use super::elementwise::binary;

binary! {
    /// The smaller; NaN if either is.
    Minimum, "minimum", [], Number, -3.0..3.0, None,
    Some(|a, b, _| Some(a.minimum(b))),
    |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) },
    i64::min,
    |g, [a, b, _], dc| extremum(g, "less", a, b, dc),
    |g, [a, b, _], dc| extremum(g, "less", b, a, dc)
}
