//! Telling how far the opening of data is.

use std::path::Path;

/// What is being done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Its content is digested, to find what was made of it before.
    Digest,
    /// Another process makes its tokens; this one waits for them.
    Wait,
    /// Its texts become tokens.
    Tokenize,
    /// Its tokens are checked.
    Check,
}

/// How far the opening of data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file.
    pub path: &'a Path,
    /// What is being done to it.
    pub stage: Stage,
    /// Bytes that are done.
    pub done: u64,
    /// All bytes.
    pub total: u64,
}

/// Who is told.
#[derive(Clone, Copy)]
pub(super) struct Watch<'a>(pub(super) &'a dyn Fn(Progress<'_>));

impl Watch<'_> {
    pub(super) fn at(&self, path: &Path, stage: Stage, done: u64, total: u64) {
        (self.0)(Progress { path, stage, done: done.min(total), total });
    }

    #[cfg(test)]
    pub(super) fn nobody() -> Watch<'static> {
        Watch(&|_| {})
    }
}
