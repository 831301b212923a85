//! What can be wrong with data, named so that it can be found and put right.

use std::{fmt, io, path::PathBuf};

use text::TextError;

/// Records that are told one by one; of further ones, only the number.
const TOLD: usize = 20;

/// Why data cannot be trained on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// There is no such file or folder.
    #[error("{}: is missing", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file is there but cannot be read.
    #[error("{}: cannot be read: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file of the cache cannot be written.
    #[error("{}: cannot be written: {source}{}", .path.display(), room(.source))]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file as a whole is not what it should be.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do, as the rest of a sentence about the file.
        reason: String,
    },
    /// A file without a column, or whose lines all lack a field.
    #[error(
        "{}: has no column `{column}`; it has {}; name one by `data.column`",
        .path.display(), listed(.columns)
    )]
    Column {
        /// The file.
        path: PathBuf,
        /// The column that was asked for.
        column: String,
        /// Those that are there.
        columns: Vec<String>,
    },
    /// Lines or rows that cannot be used.
    #[error("{0}")]
    Records(BadRecords),
    /// A token that the model does not have.
    #[error(
        "{}: holds the token {id}, and the model has {vocab_size}: its tokenizer is another one",
        .path.display()
    )]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// The largest token.
        id: u32,
        /// Tokens that the model has.
        vocab_size: usize,
    },
    /// The model's folder has no tokenizer or chat template that could be used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Something else that the data needs and the model's folder lacks.
    #[error("{0}")]
    Model(String),
    /// Weights of a blend that no order of samples can keep.
    #[error("[[data.blend]]: {0}")]
    Blend(String),
    /// A position that belongs to other data.
    #[error("the run cannot go on where it was: {0}")]
    Position(String),
}

fn room(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room, or choose another cache folder: tokens take 4 bytes each"
        }
        _ => "",
    }
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        names => {
            let mut told: Vec<&str> = names.iter().take(TOLD).map(String::as_str).collect();
            if names.len() > TOLD {
                told.push("..");
            }
            told.join(", ")
        }
    }
}

/// Lines or rows of one file that cannot be used: the first twenty, and how many there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRecords {
    path: PathBuf,
    /// What a record is called, and what is wrong with it.
    kind: &'static str,
    told: Vec<(u64, String)>,
    count: u64,
}

impl BadRecords {
    pub(super) fn new(path: PathBuf, kind: &'static str) -> BadRecords {
        BadRecords { path, kind, told: Vec::new(), count: 0 }
    }

    pub(super) fn add(&mut self, number: u64, reason: impl FnOnce() -> String) {
        if self.told.len() < TOLD {
            self.told.push((number, reason()));
        }
        self.count += 1;
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The first ones, as number from 1 (rows of arrays from 0) and reason.
    #[must_use]
    pub fn told(&self) -> &[(u64, String)] {
        &self.told
    }
}

impl fmt::Display for BadRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, kind) = (self.path.display(), self.kind);
        if let ([(number, reason)], 1) = (&*self.told, self.count) {
            return write!(f, "{path}: {kind} {number} {reason}");
        }
        write!(f, "{path}: {} {kind}s cannot be used", self.count)?;
        for (number, reason) in &self.told {
            write!(f, "\n{path}: {kind} {number} {reason}")?;
        }
        match self.count.saturating_sub(self.told.len() as u64) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}
