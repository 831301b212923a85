//! The table of schedules, as TOML.

use std::sync::LazyLock;

use ir::{CudaTarget, Target};
use serde::{Deserialize, Serialize};

use super::{Family, Place, Schedule, Variant};
use crate::{
    Isa,
    kernels::{
        gemm::{Gemm, tile},
        matmul::Matmul,
    },
    library::LibraryProduct,
};

/// A schedule for products of one class of shape on one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The target's processor, as LLVM names it: `x86-64-v3`, `sm_90a`.
    pub target: String,
    /// What the weight is made of.
    pub family: Family,
    /// Fewest columns of y, a power of two: the class ends before twice as many.
    pub n: u64,
    /// Fewest columns of x, likewise.
    pub k: u64,
    /// On GPUs, whether panels of two weights alternate.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gated: bool,
    /// On CPUs, the schedule.
    #[serde(default, skip_serializing_if = "is_default")]
    pub schedule: Schedule,
    /// On GPUs, tiles, those for fewer rows first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiles: Vec<Variant>,
    /// On GPUs, times beside those of cuBLASLt, those of fewer rows first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub library: Vec<Timed>,
}

/// Times of a product of so many rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timed {
    /// How many.
    pub rows: u64,
    /// Nanoseconds of the generated kernel.
    pub generated_ns: u64,
    /// Nanoseconds of cuBLASLt.
    pub cublaslt_ns: u64,
}

impl Timed {
    /// The library's time as a share of the generated kernel's.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.cublaslt_ns as f64 / self.generated_ns as f64
    }
}

fn is_default(schedule: &Schedule) -> bool {
    *schedule == Schedule::default()
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

pub(super) const BUILTIN: [&str; 3] =
    [include_str!("x86-64-v3.toml"), include_str!("sm_80.toml"), include_str!("sm_90a.toml")];

/// The GPU of that name.
fn gpu(name: &str) -> Option<CudaTarget> {
    [Target::sm_80(), Target::sm_90a()].into_iter().find(|gpu| gpu.cpu == name)?.cuda
}

impl Tuning {
    /// The tables that the compiler comes with.
    pub fn builtin() -> &'static Tuning {
        static TABLE: LazyLock<Tuning> = LazyLock::new(|| {
            let parse = |text: &&str| Tuning::parse(text).expect("checked by a test").entries;
            Tuning { entries: BUILTIN.iter().flat_map(parse).collect() }
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
            entry.check().map_err(wrong)?;
        }
        Ok(table)
    }

    /// The table as TOML.
    #[must_use]
    pub fn text(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }

    /// The tiles of a product on a GPU; those that follow from its size where there are none for
    /// its class, or one of them does not compute the product.
    #[must_use]
    pub fn tiles(&self, target: &Target, gpu: &CudaTarget, product: &Gemm) -> Vec<Variant> {
        let size = |size: i64| class(u64::try_from(size).unwrap_or(0));
        let sizes = (size(product.n), size(product.k));
        let family = Family::of_gemm(product);
        let fits = |entry: &&Entry| {
            entry.target == target.cpu
                && (entry.family, entry.gated) == (family, product.gated)
                && (entry.n, entry.k) == sizes
                && !entry.tiles.is_empty()
        };
        let fitted = |entry: &Entry| -> Option<Vec<Variant>> {
            let fitted = |v: &Variant| Some(Variant { tile: v.tile.fitted(product, gpu)?, ..*v });
            entry.tiles.iter().map(fitted).collect()
        };
        let found = self.entries.iter().rev().find(fits).and_then(fitted);
        found.unwrap_or_else(|| tile::defaults(product, gpu))
    }

    /// Whether cuBLASLt has been measured on a target at all.
    #[must_use]
    pub fn has_library(&self, target: &Target) -> bool {
        self.entries.iter().any(|e| e.target == target.cpu && !e.library.is_empty())
    }

    /// The time of cuBLASLt for a product of so many rows as a share of the generated kernel's, as
    /// measured for its class at the nearest number of rows; `None` where nothing was.
    #[must_use]
    pub fn library_ratio(
        &self,
        target: &Target,
        product: &LibraryProduct,
        rows: i64,
    ) -> Option<f64> {
        let LibraryProduct { family, n, k } = *product;
        let fits = |entry: &&Entry| {
            entry.target == target.cpu
                && (entry.family, entry.gated) == (family, false)
                && (entry.n, entry.k) == (class(n), class(k))
                && !entry.library.is_empty()
        };
        let measured = &self.entries.iter().rev().find(fits)?.library;
        let away = |timed: &&Timed| (timed.rows as f64 / rows.max(1) as f64).ln().abs();
        let nearest = measured.iter().min_by(|a, b| away(a).total_cmp(&away(b)));
        nearest.map(Timed::ratio)
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

impl Entry {
    /// No schedule and no tiles yet, for products of this class.
    #[must_use]
    pub fn of(target: &Target, family: Family, n: u64, k: u64) -> Entry {
        Entry {
            target: target.cpu.clone(),
            family,
            n: class(n),
            k: class(k),
            gated: false,
            schedule: Schedule::default(),
            tiles: Vec::new(),
            library: Vec::new(),
        }
    }

    /// Whether the target's kernels can be scheduled so.
    fn check(&self) -> Result<(), String> {
        if let Some(gpu) = gpu(&self.target) {
            if !is_default(&self.schedule) {
                return Err(format!("`schedule` is for CPUs; {} has `tiles`", self.target));
            }
            self.check_library()?;
            if self.tiles.is_empty() && !self.library.is_empty() {
                return Ok(());
            }
            return Place { family: self.family, gated: self.gated, gpu }.check(&self.tiles);
        }
        if self.gated || !self.tiles.is_empty() || !self.library.is_empty() {
            let name = match (self.gated, self.tiles.is_empty()) {
                (true, _) => "gated",
                (false, false) => "tiles",
                (false, true) => "library",
            };
            return Err(format!("`{name}` is for GPUs, sm_80 and sm_90a, not for {}", self.target));
        }
        let isa = if self.target == "x86-64-v4" { Isa::x86_64_v4() } else { Isa::x86_64_v3() };
        self.schedule.check(self.family, &isa)
    }
}

impl Entry {
    /// Whether times are such of products that the library computes.
    fn check_library(&self) -> Result<(), String> {
        let is_half = matches!(self.family, Family::Bf16 | Family::F16);
        if !self.library.is_empty() && (self.gated || !is_half) {
            return Err("`library` is for products of bf16 and f16 that are not gated".into());
        }
        let mut before = 0;
        for Timed { rows, generated_ns, cublaslt_ns } in &self.library {
            if *rows <= before {
                return Err(format!("`library`: `rows` is {rows}, behind {before}"));
            }
            before = *rows;
            if [generated_ns, cublaslt_ns].contains(&&0) {
                return Err(format!("`library`: a time of {rows} rows is 0"));
            }
        }
        Ok(())
    }
}

/// The least size of a size's class.
#[must_use]
pub const fn class(size: u64) -> u64 {
    if size == 0 { 1 } else { 1 << size.ilog2() }
}
