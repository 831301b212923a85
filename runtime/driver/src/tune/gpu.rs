//! Searches tiles for the products of a GPU.
//!
//! For each number of rows that has a tile of its own, all legal neighbours of the best tile are
//! compiled, and run on the device at the largest of these numbers; the fastest replaces the best
//! if it is clearly faster, until none is. What a row gives must not depend on any of that: results
//! of a candidate are compared, bit for bit, with those of the default tiles for the most rows.
//!
//! Where a library is asked for, it is timed beside the best tiles, for several numbers of rows.

mod trial;

use std::time::Instant;

use codegen::schedule::{Entry, Family, Place, Tile, Timed, Tuning, Variant};
use exec::Device;

use super::{CLEARLY, Product, ROUNDS, TuneOptions, Tuned, median, trial::failure};
use crate::{CompileError, CompileOptions, parallel};
use trial::{Bench, Trial};

/// Rounds of neighbours of the best tile.
const MOST_STEPS: usize = 6;

/// Rows for which a library is timed, those that there may be.
const LIBRARY_ROWS: [u64; 8] = [1, 4, 16, 64, 256, 1024, 4096, 16384];
/// Columns that a library is given are multiples of this.
const LIBRARY_ALIGN: u64 = 8;

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// A generated kernel; of several for different numbers of rows, that for the fewest.
    Tile(Tile),
    /// The library's.
    Library,
}

/// How long runs of a candidate take.
pub trait Clock {
    /// Seconds of a run of so many rows, which `run` makes.
    ///
    /// # Errors
    /// Those of `run`.
    fn seconds(
        &mut self,
        candidate: Candidate,
        rows: u64,
        run: &mut dyn FnMut() -> Result<(), String>,
    ) -> Result<f64, String>;
}

/// The shortest of a few runs, from the first launch to the last one's end: from the third run of a
/// size on, launches are a graph.
#[derive(Clone, Copy, Debug, Default)]
pub struct WallClock;

impl Clock for WallClock {
    fn seconds(
        &mut self,
        _: Candidate,
        _: u64,
        run: &mut dyn FnMut() -> Result<(), String>,
    ) -> Result<f64, String> {
        let mut best = f64::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            run()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(best)
    }
}

/// As [`super::tune`], on a GPU that the options are for, by a clock.
///
/// # Errors
/// As [`super::tune`].
pub fn tune_gpu(
    products: &[Product],
    options: &TuneOptions,
    compile: &CompileOptions,
    device: &Device,
    clock: &mut dyn Clock,
    mut found: impl FnMut(&Product, &Tuned),
) -> Result<Tuning, CompileError> {
    let end = Instant::now() + options.time_limit;
    let mut table = Tuning::default();
    for product in products {
        let (bench, base) = Bench::new(product, compile, device)?;
        let mut search = Search { bench, end, clock: &mut *clock, candidates: 0 };
        let mut tuned = search.run(&base)?;
        if compile.gpu_library.is_some() && is_for_library(product) {
            tuned.entry.library = search.library(&tuned.entry.tiles)?;
        }
        found(product, &tuned);
        let mut entry = tuned.entry;
        if entry.tiles == base {
            entry.tiles.clear();
        }
        if !entry.tiles.is_empty() || !entry.library.is_empty() {
            table.entries.push(entry);
        }
    }
    Ok(table)
}

/// Whether the library is asked for such products.
fn is_for_library(product: &Product) -> bool {
    let Product { family, n, k, gated } = *product;
    let is_half = matches!(family, Family::Bf16 | Family::F16);
    is_half && !gated && [n, k].iter().all(|size| size.is_multiple_of(LIBRARY_ALIGN))
}

struct Search<'a> {
    bench: Bench<'a>,
    end: Instant,
    clock: &'a mut dyn Clock,
    candidates: usize,
}

/// A tile for some rows, beside the one that was there.
struct Found {
    tile: Tile,
    rows: u64,
    /// Its time as a share of the other's.
    ratio: f64,
}

impl Search<'_> {
    fn run(&mut self, base: &[Variant]) -> Result<Tuned, CompileError> {
        let Product { family, n, k, gated } = *self.bench.product;
        let most = self.bench.compile.import.max_batch_tokens.max(1);
        let wanted = self.bench.trial(base, most)?.results(most)?;
        let mut tiles: Vec<Variant> = Vec::new();
        let mut all: Vec<Found> = Vec::new();
        let mut done = 0;
        for variant in base {
            let rows = variant.rows.map_or(most, |rows| rows.cast_unsigned().min(most));
            let mut tile = variant.tile;
            if rows > done {
                let found = self.best(tile, (done, rows), &wanted)?;
                (tile, done) = (found.tile, rows);
                all.push(found);
            }
            match tiles.last_mut() {
                Some(last) if last.tile == tile && tile.most_rows().is_none() => {
                    last.rows = variant.rows;
                }
                _ => tiles.push(Variant { rows: variant.rows, tile }),
            }
        }
        // The same tiles, divided otherwise, are no other schedule.
        if all.iter().all(|found| found.ratio >= 1.0) {
            tiles = base.to_vec();
        }
        let ends = [all.first(), all.last()].map(|found| found.expect("at least one row"));
        let entry = Entry::of(&self.bench.compile.target, family, n, k);
        Ok(Tuned {
            entry: Entry { gated, tiles, ..entry },
            candidates: self.candidates,
            rows: ends.map(|found| found.rows),
            ratio: ends.map(|found| found.ratio),
        })
    }

    /// Times of the library beside those of the tiles.
    #[allow(clippy::cast_possible_truncation, reason = "nanoseconds of a product")]
    fn library(&mut self, tiles: &[Variant]) -> Result<Vec<Timed>, CompileError> {
        let most = self.bench.compile.import.max_batch_tokens.max(1);
        let mut all: Vec<u64> = LIBRARY_ROWS.into_iter().filter(|rows| *rows < most).collect();
        all.push(most);
        let mut times = Vec::new();
        for rows in all {
            let mut generated = self.bench.trial(tiles, rows)?;
            let mut library = self.bench.library(rows)?;
            let seconds = self.in_turns(&mut [&mut generated, &mut library], rows)?;
            let each = |seconds: f64| (seconds * 1e9 / generated.weights as f64).round().max(1.0);
            let [generated_ns, cublaslt_ns] = [seconds[0], seconds[1]].map(|s| each(s) as u64);
            times.push(Timed { rows, generated_ns, cublaslt_ns });
        }
        Ok(times)
    }

    /// The fastest tile for more than `above` and up to so many rows.
    fn best(
        &mut self,
        base: Tile,
        (above, rows): (u64, u64),
        wanted: &[u8],
    ) -> Result<Found, CompileError> {
        let Product { family, gated, .. } = *self.bench.product;
        let place = Place { family, gated, gpu: self.bench.gpu };
        let mut first = self.bench.trial(&[Variant { rows: None, tile: base }], rows)?;
        let mut best = self.bench.trial(&[Variant { rows: None, tile: base }], rows)?;
        let (mut tile, mut tried) = (base, vec![base]);
        for _ in 0..MOST_STEPS {
            let mut near = place.around(tile, rows.cast_signed());
            near.retain(|tile| !tried.contains(tile) && self.bench.computes(*tile));
            if near.is_empty() || Instant::now() > self.end {
                break;
            }
            tried.extend(&near);
            self.candidates += near.len();
            let mut others = self.bench.trials(&near, rows)?;
            for other in &mut others {
                self.check(other, [rows, above + 1, above.midpoint(rows)], wanted)?;
            }
            let mut all: Vec<&mut Trial> = std::iter::once(&mut best).chain(&mut others).collect();
            let times = self.in_turns(&mut all, rows)?;
            let fastest = (1..times.len()).min_by(|a, b| times[*a].total_cmp(&times[*b]));
            match fastest.filter(|i| times[*i] < CLEARLY * times[0]) {
                Some(i) => (tile, best) = (near[i - 1], others.swap_remove(i - 1)),
                None => break,
            }
        }
        let same = Found { tile: base, rows, ratio: 1.0 };
        if tile == base {
            return Ok(same);
        }
        let times = self.in_turns(&mut [&mut first, &mut best], rows)?;
        // What was faster by chance is not worth an entry.
        let ratio = times[1] / times[0];
        Ok(if ratio < CLEARLY { Found { tile, rows, ratio } } else { same })
    }

    /// Compares a candidate's results with the beginning of those of the most rows.
    fn check(&self, other: &mut Trial, rows: [u64; 3], wanted: &[u8]) -> Result<(), CompileError> {
        for rows in rows.into_iter().filter(|rows| *rows > 0) {
            let got = other.results(rows)?;
            if got.is_empty() || !wanted.starts_with(&got) {
                let reason = format!(
                    "{:?} gives other results for {rows} rows than the default tiles: a bug of the \
                     code generator",
                    other.candidate
                );
                return Err(failure(self.bench.product, reason));
            }
        }
        Ok(())
    }

    /// The median time of each, in seconds.
    fn in_turns(&mut self, trials: &mut [&mut Trial], rows: u64) -> Result<Vec<f64>, CompileError> {
        let mut times = vec![Vec::with_capacity(ROUNDS); trials.len()];
        for _ in 0..ROUNDS {
            for (times, trial) in times.iter_mut().zip(trials.iter_mut()) {
                let candidate = trial.candidate;
                let seconds = self.clock.seconds(candidate, rows, &mut || trial.run(rows));
                times.push(seconds.map_err(|reason| failure(self.bench.product, reason))?);
            }
        }
        Ok(times.into_iter().map(median).collect())
    }
}

impl Bench<'_> {
    /// Candidates, compiled side by side.
    fn trials(&self, tiles: &[Tile], rows: u64) -> Result<Vec<Trial>, CompileError> {
        let threads = parallel::threads(self.compile.threads);
        let write = |tile: &Tile| self.write(&[Variant { rows: None, tile: *tile }], rows);
        let files = parallel::map(tiles, threads, write);
        files.into_iter().map(|file| self.open(file?)).collect()
    }
}
