//! Source files as records, one at a time: a file is never in memory as a whole.

mod jsonl;
mod parquet;
mod plain;

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::{Map, Value};

use super::{
    error::DataError,
    files::{Kind, SourceFile},
};

/// A part of a source file, as it was read.
#[derive(Debug, PartialEq)]
pub(super) enum Record {
    /// A line of JSONL, with its number from 1.
    Line { number: u64, bytes: Vec<u8> },
    /// A part of a document of plain text, with the number of its first line.
    Piece { number: u64, text: String, is_first: bool, is_last: bool },
    /// Columns of a row of a table, with its number from 1.
    Row { number: u64, fields: Map<String, Value> },
    /// Something that is no record.
    Bad { number: u64, reason: String },
}

impl Record {
    /// About how much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        64 + match self {
            Record::Line { bytes, .. } => bytes.len(),
            Record::Piece { text, .. } | Record::Bad { reason: text, .. } => text.len(),
            Record::Row { fields, .. } => fields.values().map(weight).sum(),
        }
    }
}

fn weight(value: &Value) -> usize {
    32 + match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(weight).sum(),
        Value::Object(fields) => fields.iter().map(|(key, v)| key.len() + weight(v)).sum(),
        _ => 0,
    }
}

/// Takes records until it says that it has enough.
pub(super) type Sink<'a> = dyn FnMut(Record) -> ControlFlow<()> + 'a;

/// What is read of a file, and who is told how far it is.
pub(super) struct Reading<'a> {
    pub(super) file: &'a SourceFile,
    /// Columns that are read of a table; the first must be there.
    pub(super) columns: &'a [&'a str],
    /// Between documents of plain text.
    pub(super) separator: Option<&'a str>,
    /// Bytes that have been read.
    pub(super) done: &'a AtomicU64,
}

impl Reading<'_> {
    /// Reads all records.
    ///
    /// # Errors
    /// What makes the file unreadable as a whole; single bad records are told to the sink.
    pub(super) fn run(&self, sink: &mut Sink<'_>) -> Result<(), DataError> {
        match self.file.kind {
            Kind::Jsonl => jsonl::read(self, sink),
            Kind::Plain => plain::read(self, sink),
            Kind::Parquet => parquet::read(self, sink),
            // Mapped, not read.
            Kind::Npy => Ok(()),
        }
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn fail(&self, reason: impl Into<String>) -> DataError {
        DataError::File { path: self.file.path.clone(), reason: reason.into() }
    }
}
