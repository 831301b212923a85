//! `maximum`.

use super::adjoint::extremum;
use super::elementwise::binary;

binary! {
    /// The larger; NaN if either is.
    Maximum, "maximum", [], Number, -3.0..3.0, None,
    Some(|a, b, _| Some(a.maximum(b))),
    |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) },
    i64::max,
    |g, [a, b, _], dc| extremum(g, "greater", a, b, dc),
    |g, [a, b, _], dc| extremum(g, "greater", b, a, dc)
}
