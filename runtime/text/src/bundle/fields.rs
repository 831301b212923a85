//! Reading a folder of small files and the fields of JSON objects, collecting every problem.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::error::TextError;

/// Larger than any tokenizer; a file of this size is something else.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// A folder, and what is wrong in it so far.
pub(super) struct Files {
    folder: PathBuf,
    problems: Vec<TextError>,
}

impl Files {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), problems: Vec::new() }
    }

    /// How errors call a file of the folder.
    pub(super) fn name(&self, file: &str) -> String {
        self.folder.join(file).display().to_string()
    }

    pub(super) fn exists(&self, file: &str) -> bool {
        self.folder.join(file).exists()
    }

    /// Stems of the names in a subfolder that end with `suffix`, sorted.
    pub(super) fn list(&self, subfolder: &str, suffix: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.folder.join(subfolder)) else { return Vec::new() };
        let mut stems: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| Some(name.strip_suffix(suffix)?.to_owned()))
            .collect();
        stems.sort();
        stems
    }

    /// The text of a file; `None` if there is no such file, or if it has a problem.
    pub(super) fn text(&mut self, file: &str) -> Option<String> {
        let text = match read(&self.folder.join(file)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(source) => {
                self.problems.push(TextError::Read { file: self.name(file), source });
                return None;
            }
        };
        Some(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
    }

    /// A file's JSON; `None` as for [`text`](Self::text).
    pub(super) fn json(&mut self, file: &str) -> Option<Value> {
        let text = self.text(file)?;
        match serde_json::from_str(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.malformed(file, format!("is not valid JSON: {error}"));
                None
            }
        }
    }

    /// The JSON object in a file; `None` as for [`text`](Self::text).
    pub(super) fn object(&mut self, file: &str) -> Option<Fields<'_>> {
        match self.json(file)? {
            Value::Object(map) => {
                Some(Fields { file: self.name(file), map, problems: &mut self.problems })
            }
            other => {
                self.malformed(
                    file,
                    format!("should hold a JSON object, but holds {}", told(&other)),
                );
                None
            }
        }
    }

    pub(super) fn malformed(&mut self, file: &str, reason: impl Into<String>) {
        let error = TextError::Malformed { file: self.name(file), reason: reason.into() };
        self.problems.push(error);
    }

    /// Keeps the error, if any.
    pub(super) fn check<T>(&mut self, result: Result<T, TextError>) {
        self.problems.extend(result.err());
    }

    pub(super) fn finish<T>(self, value: T) -> Result<T, Vec<TextError>> {
        if self.problems.is_empty() { Ok(value) } else { Err(self.problems) }
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it has more than {} MB", MAX_FILE_BYTES >> 20)));
    }
    Ok(text)
}

/// The fields of one JSON object. Those that are absent or `null` are `None`, and those of a wrong
/// kind a problem.
pub(super) struct Fields<'a> {
    file: String,
    map: Map<String, Value>,
    problems: &'a mut Vec<TextError>,
}

impl Fields<'_> {
    /// A field as `read` makes it; `expected` completes "should be".
    pub(super) fn get<T>(
        &mut self,
        field: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.map.get(field).filter(|value| !value.is_null())?;
        let read = read(value);
        if read.is_none() {
            let reason = format!("should be {expected}, but is {}", told(value));
            let (file, field) = (self.file.clone(), field.to_owned());
            self.problems.push(TextError::Field { file, field, reason });
        }
        read
    }

    pub(super) fn bool(&mut self, field: &str) -> Option<bool> {
        self.get(field, "true or false", Value::as_bool)
    }

    pub(super) fn string(&mut self, field: &str) -> Option<String> {
        self.get(field, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// A count of at least `least`.
    pub(super) fn count(&mut self, field: &str, least: usize) -> Option<usize> {
        self.get(field, &format!("an integer of at least {least}"), |value| {
            usize::try_from(value.as_u64()?).ok().filter(|&count| count >= least)
        })
    }

    /// A number for which `accept` holds.
    pub(super) fn number(
        &mut self,
        field: &str,
        expected: &str,
        accept: impl FnOnce(f64) -> bool,
    ) -> Option<f64> {
        self.get(field, expected, |value| value.as_f64().filter(|&number| accept(number)))
    }

    /// A token id, or a list of them.
    pub(super) fn token_ids(&mut self, field: &str) -> Option<Vec<u32>> {
        let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
        self.get(field, "a token id or a list of them", |value| match value {
            Value::Array(ids) => ids.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        })
    }

    /// All fields with their names.
    pub(super) fn names(&self) -> Vec<String> {
        self.map.keys().cloned().collect()
    }
}

/// A value in an error message: itself if short, else its beginning.
fn told(value: &Value) -> String {
    const MAX_CHARS: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text,
    }
}
