//! Files and models for tests.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ::parquet::{
    column::writer::ColumnWriter,
    data_type::ByteArray,
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use ::text::TextBundle;

use super::{DataContext, DataError, Dataset};
use crate::config::{BlendConfig, DataConfig, Format};

/// A folder that goes when it is dropped.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(name: &str) -> Folder {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("brolly-train-{}-{number}-{name}", process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Names of files in a folder of it, but for locks.
    pub(super) fn list(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(name)).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| !name.ends_with(".lock")).collect();
        names.sort();
        names
    }

    /// Opens data with this folder's cache.
    pub(super) fn open(&self, config: &DataConfig) -> Result<Dataset, Vec<DataError>> {
        self.open_with(config, &stories(), 2048)
    }

    pub(super) fn open_with(
        &self,
        config: &DataConfig,
        bundle: &TextBundle,
        vocab_size: usize,
    ) -> Result<Dataset, Vec<DataError>> {
        let cache_dir = &self.path("cache");
        let progress = &|_: super::Progress<'_>| {};
        let (seed, threads) = (1, 3);
        let cx = DataContext { bundle, vocab_size, cache_dir, seed, threads, progress };
        Dataset::open(config, &cx)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The little model's tokenizer: `<s>` is 0 and before every text, `</s>` is 1.
pub(super) fn stories() -> TextBundle {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/stories");
    TextBundle::load(&folder).unwrap()
}

/// Settings for one file, in order.
pub(super) fn config(path: &Path, format: Format, seq_len: usize) -> DataConfig {
    let column = match format {
        Format::Text => Some("text".to_owned()),
        Format::Chat => Some("messages".to_owned()),
        Format::Tokens => None,
    };
    DataConfig {
        train: Some(path.to_owned()),
        format,
        column,
        separator: None,
        seq_len,
        micro_batch: 1,
        shuffle: false,
        blend: Vec::new(),
    }
}

/// Settings for several files.
pub(super) fn blend(entries: &[(PathBuf, f64)], seq_len: usize) -> DataConfig {
    let entry =
        |(path, weight): &(PathBuf, f64)| BlendConfig { path: path.clone(), weight: *weight };
    let blend = entries.iter().map(entry).collect();
    DataConfig { train: None, blend, ..config(Path::new(""), Format::Text, seq_len) }
}

/// An array as NumPy writes it.
pub(super) fn npy(version: u8, descr: &str, rows: usize, columns: usize, ids: &[i64]) -> Vec<u8> {
    let mut text =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    let prefix = if version == 1 { 10 } else { 12 };
    let padding = (prefix + text.len() + 1).next_multiple_of(64) - (prefix + text.len() + 1);
    text += &" ".repeat(padding);
    text.push('\n');
    let mut out = b"\x93NUMPY".to_vec();
    out.extend([version, 0]);
    match version {
        1 => out.extend(u16::try_from(text.len()).unwrap().to_le_bytes()),
        _ => out.extend(u32::try_from(text.len()).unwrap().to_le_bytes()),
    }
    out.extend(text.as_bytes());
    let width: usize = descr[2..].parse().unwrap();
    out.extend(ids.iter().flat_map(|id| id.to_le_bytes().into_iter().take(width)));
    out
}

/// A table with columns of bytes, each with a value or none in every row, `group_rows` a row group.
pub(super) fn parquet(
    schema: &str,
    columns: &[Vec<Option<&str>>],
    group_rows: usize,
) -> io::Result<Vec<u8>> {
    let schema = Arc::new(parse_message_type(schema).map_err(io::Error::other)?);
    let mut out = Vec::new();
    let properties = Arc::new(WriterProperties::builder().build());
    let mut file = SerializedFileWriter::new(&mut out, schema, properties)?;
    for start in (0..columns[0].len()).step_by(group_rows) {
        let mut group = file.next_row_group()?;
        for column in columns {
            let rows = &column[start..(start + group_rows).min(column.len())];
            let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.is_some())).collect();
            let values: Vec<ByteArray> =
                rows.iter().flatten().map(|text| ByteArray::from(*text)).collect();
            let mut writer = group.next_column()?.ok_or_else(|| io::Error::other("no column"))?;
            match writer.untyped() {
                ColumnWriter::ByteArrayColumnWriter(writer) => {
                    writer.write_batch(&values, Some(&levels), None)?;
                }
                _ => return Err(io::Error::other("columns are of bytes")),
            }
            writer.close()?;
        }
        group.close()?;
    }
    file.close()?;
    Ok(out)
}
