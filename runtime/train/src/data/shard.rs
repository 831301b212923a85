//! The tokens of one source file, mapped.
//!
//! A shard is a header and the file's documents one after the other as [`Token`]s. Its name in the
//! cache is the digest of what it was made from; the header repeats it, counts what follows and
//! holds the digest of it all, which is compared when the shard is opened. So a shard that was cut
//! short, altered, or belongs to something else is noticed, and made again.

mod writer;

use std::{io, path::Path};

use ir::{MappedFile, map_file};

use super::{
    progress::{Stage, Watch},
    token::Token,
};

pub(super) use writer::ShardWriter;

const MAGIC: [u8; 8] = *b"BRLYTOKS";
const VERSION: u32 = 1;
/// Values begin here, at a multiple of a cache line.
const HEADER: usize = 128;
/// Bytes that are digested between two calls of the progress.
const CHUNK: usize = 8 << 20;

/// What stands before the tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    key: [u8; 32],
    tokens: u64,
    documents: u64,
    /// The largest token.
    max_id: u32,
    /// Of the tokens' bytes.
    body: [u8; 32],
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        let mut rest = &mut out[..];
        let mut put = |bytes: &[u8]| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(bytes.len());
            part.copy_from_slice(bytes);
            rest = after;
        };
        put(&MAGIC);
        put(&VERSION.to_le_bytes());
        put(&self.max_id.to_le_bytes());
        put(&self.key);
        put(&self.tokens.to_le_bytes());
        put(&self.documents.to_le_bytes());
        put(&self.body);
        let digest = *blake3::hash(&out[..HEADER - 32]).as_bytes();
        out[HEADER - 32..].copy_from_slice(&digest);
        out
    }

    /// Reads a header; `None` if it is none, or not as it was written.
    fn from_bytes(bytes: &[u8]) -> Option<Header> {
        let bytes: &[u8; HEADER] = bytes.get(..HEADER)?.try_into().ok()?;
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (version, rest) = rest.split_first_chunk::<4>()?;
        let (max_id, rest) = rest.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_first_chunk::<32>()?;
        let (tokens, rest) = rest.split_first_chunk::<8>()?;
        let (documents, rest) = rest.split_first_chunk::<8>()?;
        let (body, _) = rest.split_first_chunk::<32>()?;
        let header = Header {
            key: *key,
            tokens: u64::from_le_bytes(*tokens),
            documents: u64::from_le_bytes(*documents),
            max_id: u32::from_le_bytes(*max_id),
            body: *body,
        };
        let is_ours = *magic == MAGIC && u32::from_le_bytes(*version) == VERSION;
        (is_ours && header.to_bytes() == *bytes).then_some(header)
    }
}

/// An opened shard.
#[derive(Debug)]
pub(super) struct Shard {
    map: MappedFile,
    header: Header,
}

impl Shard {
    /// Opens the shard of a key and checks all of it; `None` if there is none that is whole.
    ///
    /// # Errors
    /// What the operating system says, but for a missing file.
    pub(super) fn open(
        path: &Path,
        key: &blake3::Hash,
        watch: &Watch<'_>,
    ) -> io::Result<Option<Shard>> {
        let map = match map_file(path) {
            Ok(map) => map,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(header) = check(map.as_ref(), key, path, watch) else {
            tracing::warn!(path = %path.display(), "the cached tokens are damaged; made again");
            return Ok(None);
        };
        Ok(Some(Shard { map, header }))
    }

    pub(super) fn tokens(&self) -> u64 {
        self.header.tokens
    }

    pub(super) fn documents(&self) -> u64 {
        self.header.documents
    }

    pub(super) fn max_id(&self) -> u32 {
        self.header.max_id
    }

    /// Tokens from a place on, at most so many.
    pub(super) fn window(&self, from: u64, len: usize) -> impl ExactSizeIterator<Item = Token> {
        let from = from.min(self.header.tokens);
        // The file is mapped: its tokens have addresses.
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let values = &self.map.as_ref()[HEADER + 4 * from..];
        values.as_chunks::<4>().0.iter().take(len).map(|bytes| Token::from_bytes(*bytes))
    }
}

/// The header of bytes that are the whole shard of a key.
fn check(bytes: &[u8], key: &blake3::Hash, path: &Path, watch: &Watch<'_>) -> Option<Header> {
    let header = Header::from_bytes(bytes).filter(|header| header.key == *key.as_bytes())?;
    let body = &bytes[HEADER..];
    if header.tokens.checked_mul(4) != Some(body.len() as u64) {
        return None;
    }
    let mut hasher = blake3::Hasher::new();
    for (i, chunk) in body.chunks(CHUNK).enumerate() {
        hasher.update(chunk);
        watch.at(path, Stage::Check, (i as u64 + 1) * CHUNK as u64, body.len() as u64);
    }
    (*hasher.finalize().as_bytes() == header.body).then_some(header)
}

#[cfg(test)]
mod tests;
