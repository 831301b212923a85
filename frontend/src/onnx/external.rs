//! External data: files beside the model that hold the bytes of its tensors.

use std::{
    collections::HashMap,
    fs,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use ir::Bytes;
use onnx_protobuf::StringStringEntryProto;

/// The mapped files of one model, each opened once. They must lie in the model's folder, also when
/// symbolic links are followed.
pub(super) struct ExternalFiles {
    folder: PathBuf,
    open: HashMap<String, Arc<dyn Bytes>>,
}

/// A range of a mapped file.
pub(super) struct Span {
    pub(super) data: Arc<dyn Bytes>,
    pub(super) at: usize,
    pub(super) len: usize,
}

impl ExternalFiles {
    pub(super) fn of(model: &Path) -> ExternalFiles {
        let folder = model.parent().filter(|p| !p.as_os_str().is_empty());
        ExternalFiles { folder: folder.unwrap_or(Path::new(".")).into(), open: HashMap::new() }
    }

    /// The bytes that the entries `location`, `offset` and `length` describe.
    ///
    /// # Errors
    /// A sentence that reads on after the tensor's name.
    pub(super) fn span(&mut self, entries: &[StringStringEntryProto]) -> Result<Span, String> {
        let get = |key: &str| entries.iter().find(|e| e.key == key).map(|e| &*e.value);
        let number = |key: &str| match get(key) {
            None => Ok(None),
            Some(text) => match text.trim().parse::<usize>() {
                Ok(v) => Ok(Some(v)),
                Err(_) => Err(format!("has external data with `{key}` `{text}`, not a size")),
            },
        };
        let location = get("location").ok_or("has external data without a `location`")?;
        let at = number("offset")?.unwrap_or(0);
        let data = self.map(location)?;
        let have = (*data).as_ref().len();
        let len = match number("length")? {
            Some(len) => len,
            None => have.saturating_sub(at),
        };
        match at.checked_add(len) {
            Some(end) if end <= have => Ok(Span { data, at, len }),
            _ => Err(format!(
                "lies at bytes {at}..{at}+{len} of `{location}`, which has {have}: the file is cut \
                 off or of another model"
            )),
        }
    }

    fn map(&mut self, location: &str) -> Result<Arc<dyn Bytes>, String> {
        if let Some(data) = self.open.get(location) {
            return Ok(data.clone());
        }
        let inside = Path::new(location)
            .components()
            .all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        let outside = || {
            format!("names external data `{location}` outside the model's folder; move it inside")
        };
        if !inside {
            return Err(outside());
        }
        let path = self.folder.join(location);
        let unreadable = |e| format!("names external data `{}`: {e}", path.display());
        let real = fs::canonicalize(&path).map_err(unreadable)?;
        let folder = fs::canonicalize(&self.folder).map_err(unreadable)?;
        if !real.starts_with(&folder) {
            return Err(outside());
        }
        let data: Arc<dyn Bytes> = Arc::new(ir::map_file(&real).map_err(unreadable)?);
        self.open.insert(location.into(), data.clone());
        Ok(data)
    }
}
