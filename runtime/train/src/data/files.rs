//! The files of a source, and what they hold by their names.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::error::DataError;
use crate::config::Format;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Jsonl,
    Plain,
    Parquet,
    Npy,
}

impl Kind {
    fn of(path: &Path) -> Option<Kind> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" | "json" => Some(Kind::Jsonl),
            "txt" | "text" | "md" => Some(Kind::Plain),
            "parquet" => Some(Kind::Parquet),
            "npy" => Some(Kind::Npy),
            _ => None,
        }
    }

    /// What records are called in messages.
    pub(super) fn record(self) -> &'static str {
        match self {
            Kind::Jsonl | Kind::Plain => "line",
            Kind::Parquet | Kind::Npy => "row",
        }
    }
}

/// A file of a source.
#[derive(Clone, Debug)]
pub(super) struct SourceFile {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
}

/// The file at a path, or the data files of a folder in the order of their names.
///
/// # Errors
/// [`DataError::Missing`], [`DataError::Read`]; [`DataError::File`] for a kind of file that does
/// not hold data of the format, and for a folder with no data.
pub(super) fn list(path: &Path, format: Format) -> Result<Vec<SourceFile>, DataError> {
    let meta = fs::metadata(path).map_err(|error| unreadable(path, error))?;
    if !meta.is_dir() {
        return Ok(vec![file(path, format)?]);
    }
    let entries = fs::read_dir(path).map_err(|error| unreadable(path, error))?;
    let mut paths = Vec::new();
    for entry in entries {
        let found = entry.map_err(|error| unreadable(path, error))?.path();
        let is_hidden = found.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if !is_hidden && found.is_file() && Kind::of(&found).is_some() {
            paths.push(found);
        }
    }
    paths.sort();
    if paths.is_empty() {
        let reason = "is a folder without .jsonl, .txt, .parquet or .npy files".to_owned();
        return Err(DataError::File { path: path.to_owned(), reason });
    }
    paths.iter().map(|path| file(path, format)).collect()
}

fn file(path: &Path, format: Format) -> Result<SourceFile, DataError> {
    let fail =
        |reason: &str| Err(DataError::File { path: path.to_owned(), reason: reason.to_owned() });
    match (Kind::of(path), format) {
        (None, _) => fail(
            "is of a kind that is not known by its name: .jsonl, .txt, .parquet and .npy are read",
        ),
        (Some(Kind::Plain), Format::Chat) => {
            fail("is plain text; conversations are read from .jsonl and .parquet")
        }
        (Some(Kind::Jsonl | Kind::Plain | Kind::Parquet), Format::Tokens) => {
            fail("holds no tokens, as `data.format` says; those are read from .npy")
        }
        (Some(kind), _) => Ok(SourceFile { path: path.to_owned(), kind }),
    }
}

pub(super) fn unreadable(path: &Path, source: io::Error) -> DataError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => DataError::Missing { path },
        _ => DataError::Read { path, source },
    }
}
