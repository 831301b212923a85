//! Rows of token ids in `.npy`, NumPy's format of one array a file.
//!
//! The array is `[N, seq_len]` of int32, int64 or uint16, in C order. It is mapped, never copied.
//! A row is one document of `seq_len - 1` targets: whoever cut the rows decided what they hold.

use std::path::Path;

use ir::{MappedFile, map_file, npy::Header};

use super::{
    error::{BadRecords, DataError},
    progress::{Stage, Watch},
};

/// Values that are checked between two calls of the progress.
const CHUNK: usize = 1 << 20;

/// The rows of a file, all of whose tokens the model has.
#[derive(Debug)]
pub(super) struct Npy {
    map: MappedFile,
    values_at: usize,
    kind: Kind,
    rows: u64,
    seq_len: usize,
    pub(super) digest: blake3::Hash,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    I32,
    I64,
    U16,
}

impl Kind {
    fn bytes(self) -> usize {
        match self {
            Kind::I32 => 4,
            Kind::I64 => 8,
            Kind::U16 => 2,
        }
    }

    /// A value from its bytes, little-endian.
    fn value(self, bytes: &[u8]) -> i64 {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let bits = i64::from_le_bytes(wide);
        if self == Kind::I32 { bits << 32 >> 32 } else { bits }
    }
}

impl Npy {
    /// Maps a file and checks all of it: shape, type and every token.
    ///
    /// # Errors
    /// [`DataError::Read`], [`DataError::File`] for another shape or type, [`DataError::Records`]
    /// for tokens that are not below `vocab_size`, with row and column.
    pub(super) fn open(
        path: &Path,
        seq_len: usize,
        vocab_size: usize,
        watch: &Watch<'_>,
    ) -> Result<Npy, DataError> {
        let map =
            map_file(path).map_err(|source| DataError::Read { path: path.to_owned(), source })?;
        let fail = |reason| DataError::File { path: path.to_owned(), reason };
        let bytes = map.as_ref();
        let (kind, rows, values_at) = layout(bytes, seq_len).map_err(fail)?;
        let mut bad = BadRecords::new(path.to_owned(), "row");
        let mut hasher = blake3::Hasher::new();
        let total = bytes.len() as u64;
        hasher.update(&bytes[..values_at]);
        for (chunk, values) in bytes[values_at..].chunks(CHUNK * kind.bytes()).enumerate() {
            hasher.update(values);
            for (i, value) in values.chunks_exact(kind.bytes()).enumerate() {
                let id = kind.value(value);
                if usize::try_from(id).is_ok_and(|id| id < vocab_size) {
                    continue;
                }
                let at = chunk * CHUNK + i;
                let (row, column) = (at / seq_len, at % seq_len);
                bad.add(row as u64, || {
                    format!(
                        "holds {id} in column {column}, and tokens are 0 to {}",
                        vocab_size.saturating_sub(1)
                    )
                });
            }
            watch.at(path, Stage::Check, (chunk as u64 + 1) * (CHUNK * kind.bytes()) as u64, total);
        }
        if bad.count() > 0 {
            return Err(DataError::Records(bad));
        }
        let digest = hasher.finalize();
        Ok(Npy { map, values_at, kind, rows, seq_len, digest })
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// The tokens of a row.
    pub(super) fn row(&self, row: u64) -> impl ExactSizeIterator<Item = i32> {
        let width = self.seq_len * self.kind.bytes();
        let row = usize::try_from(row).unwrap_or(usize::MAX);
        let start = self.values_at + row * width;
        let values = self.map.as_ref()[start..start + width].chunks_exact(self.kind.bytes());
        values.map(|value| i32::try_from(self.kind.value(value)).unwrap_or(0))
    }
}

/// Type, rows and where values begin, for a file whose size is what these demand.
fn layout(bytes: &[u8], seq_len: usize) -> Result<(Kind, u64, usize), String> {
    let (header, values_at) = Header::read(bytes)?;
    let kind = match header.descr.as_str() {
        "<i4" => Kind::I32,
        "<i8" => Kind::I64,
        "<u2" => Kind::U16,
        other => {
            let other: String = other.chars().take(16).collect();
            return Err(format!(
                "holds `{other}`, and token ids are int32 (`<i4`), int64 or uint16, little-endian"
            ));
        }
    };
    let [rows, columns] = header.shape[..] else {
        return Err(format!("has {} axes, and [N, seq_len] is wanted", header.shape.len()));
    };
    if columns != seq_len {
        return Err(format!("has rows of {columns} tokens, and `data.seq_len` is {seq_len}"));
    }
    if header.fortran_order && rows > 1 {
        return Err("is in Fortran order; save numpy.ascontiguousarray(..) of it".into());
    }
    if rows == 0 {
        return Err("has no rows".into());
    }
    header.check_values(kind.bytes(), bytes.len() - values_at)?;
    Ok((kind, rows as u64, values_at))
}

#[cfg(test)]
mod tests;
