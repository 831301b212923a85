//! Searches schedules for the products of a model, or for common sizes.
//!
//! One size of a schedule at a time is varied around the best so far. Every candidate is compiled
//! into an artifact and run as models are; it must give the default schedule's results bit for
//! bit, and only then is timed, in turns with the best so far, since the speed of a machine moves.
//! A candidate replaces the best where its median time is clearly shorter. The default schedule
//! itself is what the tests of kernels compare with the interpreter.

mod trial;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use codegen::schedule::{AXES, Entry, Family, Schedule, Tuning, class};
use exec::Device;

use crate::{
    CompileError, CompileOptions,
    compile::{after_passes, codegen, specs},
    parallel,
};
use trial::{Trial, failure};

/// What is searched.
#[derive(Clone, Debug)]
pub struct TuneOptions {
    /// Whose products; common sizes where `None`.
    pub model: Option<PathBuf>,
    /// Families to search; all where it is empty.
    pub families: Vec<Family>,
    /// No further candidates are tried after this.
    pub time_limit: Duration,
}

/// A product whose schedule is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Product {
    /// What its weight is made of.
    pub family: Family,
    /// Columns of y.
    pub n: u64,
    /// Columns of x.
    pub k: u64,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Tuned {
    /// The schedule; the default one where nothing was faster.
    pub entry: Entry,
    /// Candidates that were run.
    pub candidates: usize,
    /// The best schedule's time as a share of the default's, of one row and of many; medians of
    /// runs in turns.
    pub ratio: [f64; 2],
}

/// Rows of the two runs that are timed, and of one more that is compared.
const ROWS: [u64; 3] = [1, 256, 53];

/// Rounds of which medians are taken.
const ROUNDS: usize = 7;

/// Share of the best time that a candidate must stay below: less may be noise.
const CLEARLY: f64 = 0.97;

/// Sizes where no model is given: a small and a larger transformer's.
const COMMON: [(u64, u64); 6] =
    [(384, 384), (1536, 384), (384, 1536), (2048, 2048), (8192, 2048), (2048, 8192)];

/// The products that would be searched, one for each class of shapes, the largest of it.
///
/// # Errors
/// As [`crate::check`].
pub fn products(
    options: &TuneOptions,
    compile: &CompileOptions,
) -> Result<Vec<Product>, CompileError> {
    let mut all: Vec<Product> = match &options.model {
        Some(model) => of_model(model, compile)?,
        None => {
            let sizes = |family| COMMON.map(|(n, k)| Product { family, n, k });
            Family::ALL.into_iter().flat_map(sizes).collect()
        }
    };
    all.retain(|p| options.families.is_empty() || options.families.contains(&p.family));
    all.sort();
    let key = |p: &Product| (p.family, class(p.n), class(p.k));
    let mut out: Vec<Product> = Vec::new();
    for product in all {
        match out.iter_mut().find(|p| key(p) == key(&product)) {
            Some(known) if known.n * known.k < product.n * product.k => *known = product,
            Some(_) => {}
            None => out.push(product),
        }
    }
    Ok(out)
}

fn of_model(model: &Path, compile: &CompileOptions) -> Result<Vec<Product>, CompileError> {
    let specs = after_passes(model, compile, &codegen(compile), specs)?;
    let products = specs.iter().filter_map(codegen::lower::product);
    Ok(products.map(|p| Product { family: Family::of(&p), n: p.n, k: p.k }).collect())
}

/// Searches a schedule for each product; `found` hears of each when it is done. Returns the table
/// of those that beat the default.
///
/// # Errors
/// [`CompileError::Tune`] where a candidate gives other results than the default, or cannot be run;
/// what compiling reports.
pub fn tune(
    products: &[Product],
    options: &TuneOptions,
    compile: &CompileOptions,
    mut found: impl FnMut(&Product, &Tuned),
) -> Result<Tuning, CompileError> {
    let threads: NonZeroUsize = parallel::threads(compile.threads);
    let device = Device::cpu(Some(threads))
        .map_err(|e| CompileError::Tune { product: "threads".into(), reason: e.to_string() })?;
    let end = Instant::now() + options.time_limit;
    let mut table = Tuning::default();
    for product in products {
        let mut search = Search { product, compile, device: &device, end, candidates: 0 };
        let tuned = search.run()?;
        found(product, &tuned);
        if tuned.entry.schedule != Schedule::default() {
            table.entries.push(tuned.entry);
        }
    }
    Ok(table)
}

struct Search<'a> {
    product: &'a Product,
    compile: &'a CompileOptions,
    device: &'a Device,
    end: Instant,
    candidates: usize,
}

impl Search<'_> {
    fn run(&mut self) -> Result<Tuned, CompileError> {
        let family = self.product.family;
        let mut first = self.trial(Schedule::default())?;
        let wanted = ROWS.map(|rows| first.results(rows)).into_iter();
        let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
        let mut best = self.trial(Schedule::default())?;
        for axis in AXES.iter().filter(|axis| axis.applies(family)) {
            if Instant::now() > self.end {
                break;
            }
            let mut others = Vec::new();
            for schedule in axis.around(best.schedule) {
                if schedule == best.schedule || schedule.check(family, &self.isa()).is_err() {
                    continue;
                }
                let mut other = self.trial(schedule)?;
                for (rows, want) in ROWS.into_iter().zip(&wanted) {
                    if other.results(rows)? != *want {
                        let reason = format!(
                            "{schedule:?} gives other results for {rows} rows than the default \
                             schedule: a bug of the code generator"
                        );
                        return Err(failure(self.product, reason));
                    }
                }
                self.candidates += 1;
                others.push(other);
            }
            let rows = if axis.few_rows { ROWS[0] } else { ROWS[1] };
            let mut all: Vec<&mut Trial> = std::iter::once(&mut best).chain(&mut others).collect();
            let times = in_turns(&mut all, rows)?;
            let fastest = (1..times.len()).min_by(|a, b| times[*a].total_cmp(&times[*b]));
            if let Some(i) = fastest.filter(|i| times[*i] < CLEARLY * times[0]) {
                best = others.swap_remove(i - 1);
            }
        }
        let mut ratio = [1.0; 2];
        if best.schedule != Schedule::default() {
            for (ratio, rows) in ratio.iter_mut().zip(ROWS) {
                let times = in_turns(&mut [&mut first, &mut best], rows)?;
                *ratio = times[1] / times[0];
            }
            // What was faster by chance is not worth an entry.
            if ratio[0].max(ratio[1]) > 1.0 / CLEARLY || ratio[0].min(ratio[1]) > CLEARLY {
                best.schedule = Schedule::default();
                ratio = [1.0; 2];
            }
        }
        let Product { family, n, k } = *self.product;
        let target = self.compile.target.cpu.clone();
        let schedule = best.schedule;
        let entry = Entry { target, family, n: class(n), k: class(k), schedule };
        Ok(Tuned { entry, candidates: self.candidates, ratio })
    }

    fn isa(&self) -> codegen::Isa {
        codegen::Isa::of(&self.compile.target)
    }

    fn trial(&self, schedule: Schedule) -> Result<Trial, CompileError> {
        Trial::new(self.product, schedule, self.compile, self.device)
    }
}

/// The median time of each, in seconds.
fn in_turns(trials: &mut [&mut Trial], rows: u64) -> Result<Vec<f64>, CompileError> {
    let mut times = vec![Vec::with_capacity(ROUNDS); trials.len()];
    for _ in 0..ROUNDS {
        for (times, trial) in times.iter_mut().zip(trials.iter_mut()) {
            times.push(trial.seconds(rows)?);
        }
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    Ok(times.into_iter().map(median).collect())
}
