//! The table of schedules, as TOML.

use std::sync::LazyLock;

use ir::Target;
use serde::{Deserialize, Serialize};

use super::{Family, Schedule};
use crate::{Isa, kernels::matmul::Matmul};

/// A schedule for products of one class of shape on one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The target's processor, as LLVM names it.
    pub target: String,
    /// What the weight is made of.
    pub family: Family,
    /// Fewest columns of y, a power of two: the class ends before twice as many.
    pub n: u64,
    /// Fewest columns of x, likewise.
    pub k: u64,
    /// The schedule.
    pub schedule: Schedule,
}

/// Schedules by target, family and class of shape; of several that fit, the last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// The schedules.
    #[serde(default, rename = "entry")]
    pub entries: Vec<Entry>,
}

/// A table that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TuningError(String);

pub(super) const BUILTIN: &str = include_str!("x86-64-v3.toml");

impl Tuning {
    /// The table that the compiler comes with.
    pub fn builtin() -> &'static Tuning {
        static TABLE: LazyLock<Tuning> = LazyLock::new(|| {
            Tuning::parse(BUILTIN).expect("the table in this repository is checked by a test")
        });
        &TABLE
    }

    /// Reads a table, `[[entry]]` by `[[entry]]`.
    ///
    /// # Errors
    /// [`TuningError`] with the line, or the entry's number, and what may stand there.
    pub fn parse(text: &str) -> Result<Tuning, TuningError> {
        let table: Tuning = toml::from_str(text).map_err(|e| TuningError(e.to_string()))?;
        for (number, entry) in (1..).zip(&table.entries) {
            let wrong = |why: String| TuningError(format!("entry {number}: {why}"));
            for (name, value) in [("n", entry.n), ("k", entry.k)] {
                if !value.is_power_of_two() {
                    return Err(wrong(format!("`{name}` is {value}; it must be a power of two")));
                }
            }
            let isa = if entry.target == "x86-64-v4" { Isa::x86_64_v4() } else { Isa::x86_64_v3() };
            entry.schedule.check(entry.family, &isa).map_err(wrong)?;
        }
        Ok(table)
    }

    /// The table as TOML.
    #[must_use]
    pub fn text(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }

    /// The schedule of a product; the default one where there is none for its class.
    #[must_use]
    pub fn find(&self, target: &Target, product: &Matmul) -> Schedule {
        let family = Family::of(product);
        let fits = |entry: &&Entry| {
            entry.target == target.cpu
                && entry.family == family
                && (entry.n, entry.k) == (class(product.n), class(product.k))
        };
        self.entries.iter().rev().find(fits).map_or_else(Schedule::default, |e| e.schedule)
    }

    /// These schedules, and the entries of `other` before them.
    #[must_use]
    pub fn over(self, other: &Tuning) -> Tuning {
        Tuning { entries: other.entries.iter().cloned().chain(self.entries).collect() }
    }
}

/// The least size of a size's class.
#[must_use]
pub const fn class(size: u64) -> u64 {
    if size == 0 { 1 } else { 1 << size.ilog2() }
}
