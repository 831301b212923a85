//! Writing a shard, document by document.

use std::{
    fs::File,
    io::{self, BufWriter, Seek as _, SeekFrom, Write as _},
};

use super::{HEADER, Header};
use crate::data::token::Token;

/// A shard in the making: the header is written last, so that what is left of an unfinished one is
/// none.
pub(crate) struct ShardWriter {
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    tokens: u64,
    documents: u64,
    max_id: u32,
}

impl ShardWriter {
    /// Begins at the start of an empty file.
    pub(crate) fn new(file: File) -> io::Result<ShardWriter> {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&[0; HEADER])?;
        let hasher = blake3::Hasher::new();
        Ok(ShardWriter { file, hasher, tokens: 0, documents: 0, max_id: 0 })
    }

    pub(crate) fn write(&mut self, tokens: &[Token]) -> io::Result<()> {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_bytes()).collect();
        self.hasher.update(&bytes);
        self.file.write_all(&bytes)?;
        self.tokens += tokens.len() as u64;
        self.documents += tokens.iter().filter(|token| token.is_last()).count() as u64;
        self.max_id = tokens.iter().map(|token| token.id()).fold(self.max_id, u32::max);
        Ok(())
    }

    pub(crate) fn documents(&self) -> u64 {
        self.documents
    }

    /// Writes the header and brings all of it to the disk.
    pub(crate) fn finish(self, key: &blake3::Hash) -> io::Result<()> {
        let header = Header {
            key: *key.as_bytes(),
            tokens: self.tokens,
            documents: self.documents,
            max_id: self.max_id,
            body: *self.hasher.finalize().as_bytes(),
        };
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header.to_bytes())?;
        file.sync_all()
    }
}
