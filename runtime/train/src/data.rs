//! What a run is fed: rows of tokens, in an order that follows from the data and a seed.
//!
//! # From files to rows
//!
//! Text is made to tokens once, on all threads, and kept in mapped shards that are found by the
//! digest of what they were made from: no second tool has to be run, and no stale cache can be
//! used. Rows are windows of `seq_len` tokens over a file's documents, which do not see each
//! other; a document that is cut goes on in the next row, with no target lost.
//! `.npy` rows are taken as they are.
//!
//! # The order of samples
//!
//! Sample n of a run is a function of n: [turns](blend) say which source it comes from, a
//! [keyed bijection](shuffle) of each source's rows says which row. There is no index of samples
//! to build, no buffer to fill, and no state but a few counts ([`Position`]); a step takes the next
//! samples, and ranks take contiguous parts of them. So a run goes on exactly where it was, on
//! another number of ranks too.
//!
//! # Why not as others do
//!
//! Megatron-LM preprocesses by a separate tool and shuffles by three index arrays, which are built
//! for all epochs of a run and kept as files, keyed by its length: a longer run has another order.
//! torchtitan streams documents to each rank and saves the loader's state of each rank, which
//! cannot be dealt to another number of them. llm.c permutes shards and windows within a shard, and
//! resumes at a shard and batch of the same number of processes. Packing that fits whole documents
//! into rows (best fit) cuts fewer of them, but has to look at all of them first, and their order
//! is then that of their lengths. Documents here stay in the order of their file within rows, and
//! rows are shuffled; what stands beside a document in a row does not matter, for it is not seen.

mod blend;
mod cache;
mod chat;
mod document;
mod error;
mod files;
mod npy;
mod order;
mod progress;
mod read;
mod rows;
mod shard;
mod shuffle;
mod source;
mod step;
#[cfg(test)]
mod testing;
mod token;
mod tokenize;

use std::{collections::BTreeSet, path::Path};

use ::text::TextBundle;

use crate::config::DataConfig;

pub use error::{BadRecords, DataError};
pub use order::{BatchShape, Position};
pub use progress::{Progress, Stage};
pub use rows::{Batch, IGNORED};
pub use step::{Sample, Step};

use blend::Blend;
use source::Source;

/// The most rows of a step.
const MAX_ROWS: usize = 1 << 24;

/// What opening data takes beside its configuration.
pub struct DataContext<'a> {
    /// What the model's folder says about text; rows of tokens do without.
    pub bundle: &'a TextBundle,
    /// Tokens that the model has: rows of its embedding.
    pub vocab_size: usize,
    /// Where tokens are kept. It may be shared and is made if it is not there.
    pub cache_dir: &'a Path,
    /// Of the order of rows.
    pub seed: u64,
    /// Threads that make tokens.
    pub threads: usize,
    /// Told how far it is, on the calling thread.
    pub progress: &'a dyn Fn(Progress<'_>),
}

/// Data that is ready to be trained on.
#[derive(Debug)]
pub struct Dataset {
    sources: Vec<Source>,
    blend: Blend,
    seq_len: usize,
    seed: u64,
    /// The digest of what the order of samples follows from.
    order: String,
}

impl Dataset {
    /// Opens all sources: finds or makes their tokens, and checks them.
    ///
    /// # Errors
    /// What is wrong with any of the files, all of it.
    pub fn open(config: &DataConfig, cx: &DataContext<'_>) -> Result<Dataset, Vec<DataError>> {
        let entries = config.sources();
        let mut errors = Vec::new();
        let mut keep = |result: Result<Source, Vec<DataError>>| {
            result.map_err(|found| errors.extend(found)).ok()
        };
        let mut cache = None;
        let sources: Vec<Option<Source>> = entries
            .iter()
            .map(|entry| keep(Source::open(&entry.path, config, cx, &mut cache)))
            .collect();
        let weights: Vec<f64> = entries.iter().map(|entry| entry.weight).collect();
        let blend = Blend::new(&weights).map_err(|error| errors.push(error)).ok();
        match (sources.into_iter().collect::<Option<Vec<_>>>(), blend) {
            (Some(sources), Some(blend)) if errors.is_empty() => {
                let (seq_len, seed) = (config.seq_len, cx.seed);
                let order = digest(&sources, &blend, seq_len, seed);
                Ok(Dataset { sources, blend, seq_len, seed, order })
            }
            _ => {
                // What the model's folder lacks, all files lack.
                let mut told = BTreeSet::new();
                errors.retain(|error| told.insert(error.to_string()));
                Err(errors)
            }
        }
    }

    /// Rows of all sources together.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.sources.iter().map(Source::rows).sum()
    }

    /// Documents of all sources together; a row of `.npy` is one.
    #[must_use]
    pub fn documents(&self) -> u64 {
        self.sources.iter().map(Source::documents).sum()
    }

    /// Tokens of a row.
    #[must_use]
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// The most segments that any row has, for planning memory. Looks at all tokens.
    #[must_use]
    pub fn max_segments_per_row(&self) -> usize {
        self.sources.iter().map(|source| source.max_segments(self.seq_len)).max().unwrap_or(0)
    }

    /// Where a run begins.
    #[must_use]
    pub fn start(&self) -> Position {
        let taken = vec![0; self.sources.len()];
        Position { samples: 0, taken, order: self.order.clone() }
    }

    /// How often the data was gone through at a position: for the source that was most often.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    pub fn epochs(&self, at: &Position) -> f64 {
        let each = at.taken.iter().zip(&self.sources);
        each.map(|(taken, source)| *taken as f64 / source.rows() as f64).fold(0.0, f64::max)
    }

    /// Whether a run can go on from a position.
    ///
    /// # Errors
    /// [`DataError::Position`] if it belongs to other data, another `seq_len`, blend or seed.
    pub fn check(&self, at: &Position) -> Result<(), DataError> {
        let refuse = |reason: &str| Err(DataError::Position(reason.to_owned()));
        if at.order != self.order {
            return refuse(
                "the data, the tokenizer, `data.seq_len`, `data.shuffle`, the blend or \
                 `train.seed` is another one than when its checkpoint was written; restore it, or \
                 start a new run from the checkpoint's weights",
            );
        }
        let sum = at.taken.iter().try_fold(0u64, |sum, n| sum.checked_add(*n));
        if sum != Some(at.samples) || !self.blend.admits(&at.taken) {
            return refuse("the counts of samples in its checkpoint contradict each other");
        }
        Ok(())
    }

    /// The next step's samples from a position on.
    ///
    /// # Errors
    /// [`DataError::Position`] as [`check`](Self::check), and for shapes of no or of too many rows.
    pub fn step(&self, at: &Position, shape: BatchShape) -> Result<Step<'_>, DataError> {
        self.check(at)?;
        let rows = self.rows_of(shape)?;
        let mut next = at.clone();
        let samples = (0..rows).map(|_| {
            let source = self.blend.take(&mut next.taken);
            next.samples += 1;
            Some(self.sample(source, next.taken[source] - 1))
        });
        let samples = samples.collect();
        Ok(Step::new(self, shape, samples, next))
    }

    /// Batch `index` from 0 of a single pass over all rows in the order of the files; `None` behind
    /// the end. Rows behind the end are padding.
    ///
    /// # Errors
    /// [`DataError::Position`] for shapes of no or of too many rows.
    pub fn pass(&self, index: u64, shape: BatchShape) -> Result<Option<Step<'_>>, DataError> {
        let rows = self.rows_of(shape)? as u64;
        let first = index.checked_mul(rows).filter(|first| *first < self.rows());
        let Some(first) = first else { return Ok(None) };
        let samples = (first..first.saturating_add(rows)).map(|place| self.in_order(place));
        Ok(Some(Step::new(self, shape, samples.collect(), self.start())))
    }

    /// Rows of a step of a shape.
    fn rows_of(&self, shape: BatchShape) -> Result<usize, DataError> {
        let tokens = shape.micro_batch.checked_mul(self.seq_len);
        let is_indexable = tokens.is_some_and(|tokens| i32::try_from(tokens).is_ok());
        let rows = shape.rows().filter(|rows| is_indexable && (1..=MAX_ROWS).contains(rows));
        rows.ok_or_else(|| {
            let BatchShape { micro_batch, data_ranks, grad_accum } = shape;
            DataError::Position(format!(
                "a step cannot take {micro_batch} rows x {data_ranks} ranks x {grad_accum} \
                 micro-steps of {} tokens",
                self.seq_len
            ))
        })
    }

    /// Sample `n` of a source.
    fn sample(&self, source: usize, n: u64) -> Sample {
        let rows = self.sources[source].rows();
        let (epoch, place) = (n / rows, n % rows);
        let row = self.sources[source].row(place, self.seed, source as u64, epoch);
        Sample { source, epoch, row }
    }

    fn in_order(&self, mut row: u64) -> Option<Sample> {
        for (source, rows) in self.sources.iter().map(Source::rows).enumerate() {
            if row < rows {
                return Some(Sample { source, epoch: 0, row });
            }
            row -= rows;
        }
        None
    }
}

fn digest(sources: &[Source], blend: &Blend, seq_len: usize, seed: u64) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("brolly train: order of samples, version 1");
    for source in sources {
        source.identify(&mut hasher);
    }
    hasher.update(format!("{blend:?} {seq_len} {seed}").as_bytes());
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests;
