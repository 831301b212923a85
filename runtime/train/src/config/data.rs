//! `[data]`: what is trained on, and how it is cut to rows.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{limits::Limits, section::Section};

/// What a file of training data holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Documents, as JSONL or Parquet with a column of texts, or as plain text.
    #[default]
    Text,
    /// Conversations, as JSONL or Parquet with a column of messages.
    Chat,
    /// Rows of token ids, as `.npy`.
    Tokens,
}

/// What is trained on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DataConfig {
    /// A file, or a folder of files that are taken in the order of their names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<PathBuf>,
    /// What the files hold; those called `.npy` hold tokens in any case.
    pub format: Format,
    /// The field or column with the text or the messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// What stands between the documents of a plain text file; without it, a file is one document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// Tokens of a row.
    pub seq_len: usize,
    /// Rows of a rank in a micro-step.
    pub micro_batch: usize,
    /// Take rows in random order, another in every epoch. Rows of `.npy` are taken in theirs.
    pub shuffle: bool,
    /// Several sources in place of `train`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blend: Vec<BlendConfig>,
}

/// One source of several.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlendConfig {
    /// A file or a folder, as `train`.
    pub path: PathBuf,
    /// Its share of the rows, in relation to the other weights.
    pub weight: f64,
}

impl DataConfig {
    /// The sources with their weights.
    #[must_use]
    pub fn sources(&self) -> Vec<BlendConfig> {
        match &self.train {
            Some(path) => vec![BlendConfig { path: path.clone(), weight: 1.0 }],
            None => self.blend.clone(),
        }
    }

    /// The same settings for another file in order, such as that of `[eval]`.
    #[must_use]
    pub fn of_file(&self, path: &Path) -> DataConfig {
        let format = match self.format {
            _ if is_npy(path) => Format::Tokens,
            Format::Tokens => Format::Text,
            format => format,
        };
        let column = self.column.clone().or_else(|| default_column(format));
        DataConfig {
            train: Some(path.to_owned()),
            blend: Vec::new(),
            shuffle: false,
            format,
            column,
            ..self.clone()
        }
    }
}

/// Whether a file's name says that it holds tokens.
pub(crate) fn is_npy(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npy"))
}

fn default_column(format: Format) -> Option<String> {
    match format {
        Format::Text => Some("text".to_owned()),
        Format::Chat => Some("messages".to_owned()),
        Format::Tokens => None,
    }
}

pub(super) fn read(mut table: Section<'_>) -> Option<DataConfig> {
    let train = table.text("train").map(PathBuf::from);
    let blend: Option<Vec<BlendConfig>> = table.tables("blend").into_iter().map(entry).collect();
    let is_blend = table.has("blend");
    if table.has("train") && is_blend {
        table.problem("train", "is given beside [[data.blend]]", Some("give one of them"));
    } else if !table.has("train") && !is_blend {
        let help = "write train = \"FILE\" (.jsonl, .txt, .parquet or .npy), or [[data.blend]] \
                    tables with path and weight";
        table.missing("train", help);
    }
    if is_blend && blend.as_ref().is_some_and(Vec::is_empty) {
        table.problem("blend", "is empty", Some("give it tables with path and weight"));
    }
    let blend = blend.unwrap_or_default();
    let paths = || train.iter().chain(blend.iter().map(|entry| &entry.path));
    let (any_path, all_npy) = (paths().next().is_some(), paths().all(|path| is_npy(path)));
    let holds_tokens = any_path && all_npy;

    let formats = [("text", Format::Text), ("chat", Format::Chat), ("tokens", Format::Tokens)];
    let told = table.choice("format", &formats);
    let format = match told {
        None if holds_tokens => Format::Tokens,
        told => told.unwrap_or_default(),
    };
    if told.is_some_and(|told| told != Format::Tokens) && holds_tokens {
        let help = "leave it out: .npy files hold tokens";
        table.problem("format", "contradicts the name of the file, which ends in .npy", Some(help));
    }
    if told == Some(Format::Tokens) && any_path && !all_npy {
        let help = "save int32 [N, seq_len] as .npy, or leave `format` out";
        table.problem("format", "is \"tokens\", and those come as .npy files", Some(help));
    }
    let column = table.text("column");
    let separator = table.text("separator");
    if format == Format::Tokens && table.has("column") {
        table.note("column", "has no effect: .npy files have no columns");
    }
    if format != Format::Text && table.has("separator") {
        table.note("separator", "has no effect: it parts the documents of plain text files");
    }
    let seq_len = table.size("seq_len", 2..=1 << 30);
    if !table.has("seq_len") {
        table.missing("seq_len", "write the tokens of a row, such as seq_len = 2048");
    }
    let micro_batch = table.size("micro_batch", 1..=1 << 20).unwrap_or(1);
    if let Some(tokens) = seq_len.and_then(|seq_len| seq_len.checked_mul(micro_batch))
        && i32::try_from(tokens).is_err()
    {
        let reason = format!("makes micro-steps of {tokens} tokens, and 2^31 - 1 can be");
        table.problem("micro_batch", reason, Some("make it or `data.seq_len` smaller"));
    }
    let shuffle = table.flag("shuffle");
    if shuffle == Some(true) && holds_tokens {
        let help = "leave it out, or shuffle the rows before they are saved";
        table.problem("shuffle", "is true, and rows of .npy are taken in order", Some(help));
    }
    table.finish();
    Some(DataConfig {
        train,
        format,
        column: column.filter(|_| format != Format::Tokens).or_else(|| default_column(format)),
        separator: separator.filter(|_| format == Format::Text),
        seq_len: seq_len?,
        micro_batch,
        shuffle: shuffle.unwrap_or(!holds_tokens),
        blend,
    })
}

fn entry(mut table: Section<'_>) -> Option<BlendConfig> {
    let path = table.text("path");
    if !table.has("path") {
        table.missing("path", "write path = \"FILE\"");
    }
    let weight = table.number("weight", Limits::above(0.0));
    if !table.has("weight") {
        table.missing("weight", "write its share, such as weight = 0.3");
    }
    table.finish();
    Some(BlendConfig { path: path?.into(), weight: weight? })
}
