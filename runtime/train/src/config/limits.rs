//! What a number may be.

use std::fmt;

/// Finite numbers between two bounds.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    lo: f64,
    is_above: bool,
    hi: f64,
    is_below: bool,
}

impl Limits {
    pub(super) const fn above(lo: f64) -> Limits {
        Limits { lo, is_above: true, hi: f64::INFINITY, is_below: true }
    }

    pub(super) const fn at_least(lo: f64) -> Limits {
        Limits { lo, is_above: false, hi: f64::INFINITY, is_below: true }
    }

    pub(super) const fn and_below(self, hi: f64) -> Limits {
        Limits { hi, is_below: true, ..self }
    }

    pub(super) const fn and_at_most(self, hi: f64) -> Limits {
        Limits { hi, is_below: false, ..self }
    }

    pub(super) fn hold(&self, x: f64) -> bool {
        x.is_finite()
            && if self.is_above { x > self.lo } else { x >= self.lo }
            && if self.is_below { x < self.hi } else { x <= self.hi }
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
        match (self.hi.is_finite(), self.is_below) {
            (false, _) => Ok(()),
            (true, true) => write!(f, " and below {}", self.hi),
            (true, false) => write!(f, " and at most {}", self.hi),
        }
    }
}
