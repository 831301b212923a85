//! One source of a blend: the rows of its files, and the order in which they are taken.

use std::path::Path;

use super::{
    DataContext,
    cache::Cache,
    error::DataError,
    files::{self, Kind, SourceFile},
    npy::Npy,
    progress::Watch,
    rows::{Batch, Part},
    shuffle::Shuffle,
};
use crate::config::{DataConfig, Format};

/// Files whose rows follow each other.
#[derive(Debug)]
pub(super) struct Source {
    parts: Vec<Part>,
    /// Where each part's rows end.
    ends: Vec<u64>,
    digests: Vec<blake3::Hash>,
    shuffles: bool,
}

impl Source {
    /// Opens a file or folder; `cache` is made when a file needs it.
    ///
    /// # Errors
    /// Everything that is wrong with its files.
    pub(super) fn open<'a>(
        path: &Path,
        config: &'a DataConfig,
        cx: &DataContext<'a>,
        cache: &mut Option<Cache<'a>>,
    ) -> Result<Source, Vec<DataError>> {
        let is_npy = crate::config::is_npy(path);
        let format = if is_npy { Format::Tokens } else { config.format };
        let (mut parts, mut digests, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        let files = files::list(path, format).map_err(|error| vec![error])?;
        for file in &files {
            match part(file, config, cx, cache) {
                Ok((part, digest)) => {
                    parts.push(part);
                    digests.push(digest);
                }
                // The model's faults are the same for every file.
                Err(error @ (DataError::Text(_) | DataError::Model(_))) => {
                    errors.push(error);
                    break;
                }
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut end = 0;
        let ends = parts.iter().map(|part| {
            end += part.rows(config.seq_len);
            end
        });
        let ends = ends.collect();
        let shuffles = config.shuffle && files.iter().all(|file| file.kind != Kind::Npy);
        Ok(Source { parts, ends, digests, shuffles })
    }

    pub(super) fn rows(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    pub(super) fn documents(&self) -> u64 {
        let each = self.parts.iter().map(|part| match part {
            Part::Shard(shard) => shard.documents(),
            Part::Npy(npy) => npy.rows(),
        });
        each.sum()
    }

    /// The row at a place of an epoch.
    pub(super) fn row(&self, place: u64, seed: u64, source: u64, epoch: u64) -> u64 {
        if !self.shuffles {
            return place;
        }
        Shuffle::new(self.rows(), seed, source, epoch).row(place)
    }

    pub(super) fn targets(&self, row: u64, seq_len: usize) -> u64 {
        let (part, row) = self.find(row);
        part.targets(row, seq_len)
    }

    pub(super) fn add_to(&self, batch: &mut Batch, row: u64, seq_len: usize) {
        let (part, row) = self.find(row);
        part.add_to(batch, row, seq_len);
    }

    pub(super) fn max_segments(&self, seq_len: usize) -> usize {
        let each = self
            .parts
            .iter()
            .flat_map(|part| (0..part.rows(seq_len)).map(move |row| part.segments(row, seq_len)));
        each.max().unwrap_or(0)
    }

    /// Adds what the order of its rows follows from.
    pub(super) fn identify(&self, hasher: &mut blake3::Hasher) {
        hasher.update(format!("{} {:?}", self.shuffles, self.ends).as_bytes());
        for digest in &self.digests {
            hasher.update(digest.as_bytes());
        }
    }

    fn find(&self, row: u64) -> (&Part, u64) {
        let index = self.ends.partition_point(|end| *end <= row);
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        (&self.parts[index], row - start)
    }
}

fn part<'a>(
    file: &SourceFile,
    config: &'a DataConfig,
    cx: &DataContext<'a>,
    cache: &mut Option<Cache<'a>>,
) -> Result<(Part, blake3::Hash), DataError> {
    let watch = Watch(cx.progress);
    if file.kind == Kind::Npy {
        let npy = Npy::open(&file.path, config.seq_len, cx.vocab_size, &watch)?;
        let digest = npy.digest;
        return Ok((Part::Npy(npy), digest));
    }
    if cache.is_none() {
        *cache = Some(Cache::new(cx.cache_dir, cx.bundle, config, cx.threads, watch)?);
    }
    let Some(cache) = cache else { return Err(DataError::Model("has no tokenizer".into())) };
    let (shard, key) = cache.shard(file)?;
    if shard.max_id() as usize >= cx.vocab_size {
        let (path, vocab_size) = (file.path.clone(), cx.vocab_size);
        return Err(DataError::Vocabulary { path, id: shard.max_id(), vocab_size });
    }
    Ok((Part::Shard(shard), key))
}
