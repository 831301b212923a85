//! What a number may be.

use std::fmt;

/// Finite numbers between two bounds.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    lo: f64,
    is_above: bool,
    /// Above all that may be.
    hi: f64,
}

impl Limits {
    pub(super) const fn above(lo: f64) -> Limits {
        Limits { lo, is_above: true, hi: f64::INFINITY }
    }

    pub(super) const fn at_least(lo: f64) -> Limits {
        Limits { lo, is_above: false, hi: f64::INFINITY }
    }

    pub(super) const fn and_below(self, hi: f64) -> Limits {
        Limits { hi, ..self }
    }

    pub(super) fn hold(&self, x: f64) -> bool {
        let is_enough = if self.is_above { x > self.lo } else { x >= self.lo };
        x.is_finite() && is_enough && x < self.hi
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lo.is_finite() {
            let word = if self.is_above { "above" } else { "of at least" };
            write!(f, "a number {word} {}", self.lo)?;
        } else {
            f.write_str("a number")?;
        }
        if self.hi.is_finite() { write!(f, " and below {}", self.hi) } else { Ok(()) }
    }
}
