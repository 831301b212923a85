//! The tokens of text files, made once and found again by what they were made from.
//!
//! A shard's name is the digest of the file's content, the tokenizer, the chat templates and the
//! settings that matter. It is written beside its name and renamed when it is whole. A lock lets
//! one process make it while others wait; where a file system has no locks, each makes its own and
//! the last one stays, which is the same.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use text::TextBundle;

use super::{
    chat,
    document::{Encoded, Encoder},
    error::{BadRecords, DataError},
    files::{Kind, SourceFile, unreadable},
    progress::{Stage, Watch},
    read::Reading,
    shard::{Shard, ShardWriter},
    tokenize,
};
use crate::config::{DataConfig, Format};

/// Told apart from digests of other things, and from those of other versions of this code.
const CONTEXT: &str = concat!("brolly train ", env!("CARGO_PKG_VERSION"), ": tokens, version 1");

/// Makes and finds shards for one configuration.
pub(super) struct Cache<'a> {
    dir: &'a Path,
    encoder: Encoder<'a>,
    config: &'a DataConfig,
    format: Format,
    /// Of everything but the file.
    settings: Vec<u8>,
    threads: usize,
    watch: Watch<'a>,
}

impl<'a> Cache<'a> {
    /// # Errors
    /// As [`Encoder::new`].
    pub(super) fn new(
        dir: &'a Path,
        bundle: &TextBundle,
        config: &'a DataConfig,
        threads: usize,
        watch: Watch<'a>,
    ) -> Result<Cache<'a>, DataError> {
        let format = if config.format == Format::Chat { Format::Chat } else { Format::Text };
        let encoder = Encoder::new(bundle, format, column(config, format))?;
        let templates = (format == Format::Chat).then_some(&bundle.chat_templates);
        let settings = serde_json::to_vec(&(
            &bundle.tokenizer_json,
            &bundle.special_tokens,
            (bundle.add_bos_token, bundle.add_eos_token, &bundle.generation.eos_token_ids),
            templates,
            (format, column(config, format)),
        ));
        let settings = settings.map_err(|error| DataError::Model(error.to_string()))?;
        Ok(Cache { dir, encoder, config, format, settings, threads, watch })
    }

    /// The tokens of a file, made now if they are not there.
    ///
    /// # Errors
    /// [`DataError::Read`] and its like for the file, [`DataError::Write`] for the cache.
    pub(super) fn shard(&self, file: &SourceFile) -> Result<(Shard, blake3::Hash), DataError> {
        let fail = |error| unreadable(&file.path, error);
        let before = Stamp::of(&file.path).map_err(fail)?;
        let content = self.digest(file).map_err(fail)?;
        let key = self.key(file.kind, &content);
        let path = self.dir.join(format!("{key}.tokens"));
        let open = || Shard::open(&path, &key, &self.watch);
        if let Ok(Some(shard)) = open() {
            return Ok((shard, key));
        }
        let unwritable = |source| DataError::Write { path: path.clone(), source };
        fs::create_dir_all(self.dir)
            .map_err(|source| DataError::Write { path: self.dir.to_owned(), source })?;
        let lock = self.lock(&path, file);
        if let Ok(Some(shard)) = open() {
            return Ok((shard, key));
        }
        if lock.is_some() {
            remove_leftovers(&path);
        }
        let mut unfinished = Unfinished::create(&path).map_err(unwritable)?;
        let unwritable = |source| DataError::Write { path: unfinished.path.clone(), source };
        let out = unfinished.file.take().ok_or_else(|| io::Error::other("is open elsewhere"));
        let mut writer = out.and_then(ShardWriter::new).map_err(unwritable)?;
        self.write(file, before.len, &mut writer, &unwritable)?;
        if Stamp::of(&file.path).map_err(fail)? != before {
            let reason = "was changed while it was read; start again".to_owned();
            return Err(DataError::File { path: file.path.clone(), reason });
        }
        writer.finish(&key).map_err(unwritable)?;
        let renamed = unfinished.rename(&path);
        // Whoever was quicker made the same.
        if let Ok(Some(shard)) = open() {
            return Ok((shard, key));
        }
        renamed.map_err(unwritable)?;
        let reason = "was damaged or removed as soon as it was written".to_owned();
        Err(DataError::File { path, reason })
    }

    /// Tokens of a file into a shard; all its bad records at once.
    fn write(
        &self,
        file: &SourceFile,
        total: u64,
        writer: &mut ShardWriter,
        unwritable: &dyn Fn(io::Error) -> DataError,
    ) -> Result<(), DataError> {
        let done = AtomicU64::new(0);
        let columns = [&[column(self.config, self.format)][..], &chat::COLUMNS].concat();
        let columns = if self.format == Format::Chat { &columns[..] } else { &columns[..1] };
        let separator = self.config.separator.as_deref();
        let reading = Reading { file, columns, separator, done: &done };
        let mut bad = BadRecords::new(file.path.clone(), file.kind.record());
        let mut lacking: Option<Vec<String>> = None;
        let mut lacks = 0;
        let take = |batch: Vec<Encoded>| {
            for encoded in batch {
                match encoded {
                    Encoded::Tokens(tokens) if bad.count() == 0 => {
                        writer.write(&tokens).map_err(unwritable)?;
                    }
                    Encoded::Tokens(_) | Encoded::Nothing => {}
                    Encoded::Bad { number, reason } => bad.add(number, || reason),
                    Encoded::NoField { number, fields } => {
                        let has = fields.join(", ");
                        bad.add(number, || format!("has no field `{}`; it has {has}", columns[0]));
                        lacking.get_or_insert(fields);
                        lacks += 1;
                    }
                }
            }
            let done = done.load(Ordering::Relaxed);
            self.watch.at(&file.path, Stage::Tokenize, done, total);
            Ok(())
        };
        let encoder = &self.encoder;
        let encode = |record: &_| encoder.encode(record);
        tokenize::run(self.threads, |sink| reading.run(sink), encode, take)?;
        let path = file.path.clone();
        match lacking {
            Some(fields) if lacks == bad.count() && writer.documents() == 0 => {
                Err(DataError::Column { path, column: columns[0].to_owned(), columns: fields })
            }
            _ if bad.count() > 0 => Err(DataError::Records(bad)),
            _ if writer.documents() == 0 => {
                let reason = "holds no documents: there is nothing to train on".to_owned();
                Err(DataError::File { path, reason })
            }
            _ => Ok(()),
        }
    }

    fn digest(&self, file: &SourceFile) -> io::Result<blake3::Hash> {
        let mut input = File::open(&file.path)?;
        let total = input.metadata()?.len();
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 20];
        let mut done = 0;
        loop {
            match input.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finalize()),
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                    done += n as u64;
                    self.watch.at(&file.path, Stage::Digest, done, total);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn key(&self, kind: Kind, content: &blake3::Hash) -> blake3::Hash {
        let separator = self.config.separator.as_deref().filter(|_| kind == Kind::Plain);
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        for part in [
            &self.settings[..],
            kind.record().as_bytes(),
            &[u8::from(kind == Kind::Plain), u8::from(separator.is_some())],
            separator.unwrap_or_default().as_bytes(),
            content.as_bytes(),
        ] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize()
    }

    /// Waits until no other process makes this shard; `None` where there are no locks.
    fn lock(&self, path: &Path, source: &SourceFile) -> Option<File> {
        let file = File::create(path.with_extension("lock")).ok()?;
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(_)) => return None,
        }
        self.watch.at(&source.path, Stage::Wait, 0, 0);
        file.lock().ok()?;
        Some(file)
    }
}

fn column(config: &DataConfig, format: Format) -> &str {
    config.column.as_deref().unwrap_or(if format == Format::Chat { "messages" } else { "text" })
}

/// What tells that a file was written to.
#[derive(PartialEq)]
struct Stamp {
    len: u64,
    modified: Option<std::time::SystemTime>,
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Stamp> {
        let meta = fs::metadata(path)?;
        Ok(Stamp { len: meta.len(), modified: meta.modified().ok() })
    }
}

/// A file that is removed unless it comes to its name.
struct Unfinished {
    path: PathBuf,
    file: Option<File>,
}

impl Unfinished {
    fn create(path: &Path) -> io::Result<Unfinished> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = path.with_extension(format!("{}-{number}.unfinished", std::process::id()));
        let file = Some(File::create(&path)?);
        Ok(Unfinished { path, file })
    }

    fn rename(&self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After a rename there is none.
        let _ = fs::remove_file(&self.path);
    }
}

/// What processes left that ended while they made this shard; whoever holds the lock is alone.
fn remove_leftovers(path: &Path) {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let Some(entries) = path.parent().and_then(|dir| fs::read_dir(dir).ok()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&stem) && name.ends_with(".unfinished") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests;
