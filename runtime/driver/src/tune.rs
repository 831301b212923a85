//! Searches schedules for the products of a model, or for common sizes.
//!
//! One size of a schedule at a time is varied around the best so far. Every candidate is compiled
//! into an artifact and run as models are; it must give the default schedule's results bit for
//! bit, and only then is timed, in turns with the best so far, since the speed of a machine moves.
//! A candidate replaces the best where its median time is clearly shorter. The default schedule
//! itself is what the tests of kernels compare with the interpreter.
//!
//! Products of GPUs have tiles, for several numbers of rows: [`gpu`].

mod device;
mod gpu;
mod trial;

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use codegen::{
    kernels::{gemm::Gemm, matmul::Matmul},
    library,
    schedule::{AXES, Entry, Family, Schedule, Tuning, class},
};
use exec::Device;
use ir::CudaArch;

use crate::{
    CompileError, CompileOptions,
    compile::{after_passes, codegen, specs},
};
pub use device::tuning_device;
pub use gpu::{Candidate, Clock, WallClock, tune_gpu};
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
    /// On GPUs, whether panels of two weights alternate.
    pub gated: bool,
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gate = if self.gated { "gated " } else { "" };
        write!(f, "{gate}{} {} x {}", self.family.name(), self.n, self.k)
    }
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Tuned {
    /// The schedule; the default one where nothing was faster.
    pub entry: Entry,
    /// Candidates that were run.
    pub candidates: usize,
    /// Few rows and many.
    pub rows: [u64; 2],
    /// The best schedule's time as a share of the default's, of so many rows; medians of runs in
    /// turns.
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

/// The same on GPUs: those of models of one and of eight thousand million parameters.
const COMMON_ON_GPUS: [(u64, u64); 6] =
    [(2048, 2048), (8192, 2048), (2048, 8192), (6144, 4096), (14336, 4096), (4096, 14336)];

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
        None => common(compile),
    };
    if compile.gpu_library.is_some() {
        // A gate is two products of a library, or one of twice as many columns.
        let halves = |p: &Product| [1, 2].map(|n| Product { n: n * p.n, gated: false, ..*p });
        let more: Vec<Product> = all.iter().filter(|p| p.gated).flat_map(halves).collect();
        all.extend(more);
    }
    all.retain(|p| options.families.is_empty() || options.families.contains(&p.family));
    all.sort();
    let key = |p: &Product| (p.family, p.gated, class(p.n), class(p.k));
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

fn common(compile: &CompileOptions) -> Vec<Product> {
    let Some(gpu) = compile.target.cuda else {
        let sizes = |family| COMMON.map(|(n, k)| Product { family, n, k, gated: false });
        return Family::ALL.into_iter().flat_map(sizes).collect();
    };
    let fp8 = (gpu.arch == CudaArch::Sm90a).then_some(Family::Fp8);
    let of = |family| COMMON_ON_GPUS.map(|(n, k)| Product { family, n, k, gated: n > 2 * k });
    Family::ALL.into_iter().chain(fp8).flat_map(of).collect()
}

fn of_model(model: &Path, compile: &CompileOptions) -> Result<Vec<Product>, CompileError> {
    let specs = after_passes(model, compile, &codegen(compile), specs)?;
    if compile.gpus.is_empty() {
        let of = |p: Matmul| Product { family: Family::of(&p), n: p.n, k: p.k, gated: false };
        return Ok(specs.iter().filter_map(codegen::lower::product).map(of).collect());
    }
    let of = |p: Gemm| {
        let size = |size: i64| size.cast_unsigned();
        Product { family: Family::of_gemm(&p), n: size(p.n), k: size(p.k), gated: p.gated }
    };
    let by_library = specs.iter().filter_map(library::product).map(|p| Product {
        family: p.family,
        n: p.n,
        k: p.k,
        gated: false,
    });
    Ok(specs.iter().filter_map(codegen::lower::gemm).map(of).chain(by_library).collect())
}

/// Searches a schedule for each product on a [`tuning_device`]; `found` hears of each when it is
/// done. Returns the table of those that beat the default.
///
/// # Errors
/// [`CompileError::Tune`] where a candidate gives other results than the default, or cannot be run;
/// what compiling reports.
pub fn tune(
    products: &[Product],
    options: &TuneOptions,
    compile: &CompileOptions,
    device: &Device,
    mut found: impl FnMut(&Product, &Tuned),
) -> Result<Tuning, CompileError> {
    if device.facts().is_some() {
        return tune_gpu(products, options, compile, device, &mut WallClock, found);
    }
    let end = Instant::now() + options.time_limit;
    let mut table = Tuning::default();
    for product in products {
        let mut search = Search { product, compile, device, end, candidates: 0 };
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
        let Product { family, n, k, .. } = *self.product;
        let entry = Entry::of(&self.compile.target, family, n, k);
        let entry = Entry { schedule: best.schedule, ..entry };
        Ok(Tuned { entry, candidates: self.candidates, rows: [ROWS[0], ROWS[1]], ratio })
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
    Ok(times.into_iter().map(median).collect())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
