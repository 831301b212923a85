//! Artifacts of models that commands were given without compiling first.
//!
//! The key holds the names, sizes and modification times of the model's files and all options, so a
//! changed model is compiled again; contents are not read, since models are large.

use std::{
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use crate::{CompileError, CompileOptions, Compiled, Progress, compile};

/// A directory of compiled models.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The user's cache: `$BROLLY_CACHE`, else `$XDG_CACHE_HOME/brolly`, else `~/.cache/brolly`.
    pub fn user() -> Cache {
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let dir = var("BROLLY_CACHE")
            .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("brolly")))
            .or_else(|| var("HOME").map(|d| d.join(".cache/brolly")))
            .unwrap_or_else(|| std::env::temp_dir().join("brolly-cache"));
        Cache { dir }
    }

    /// A cache in that directory.
    pub fn at(dir: &Path) -> Cache {
        Cache { dir: dir.into() }
    }

    /// The artifact of a model, compiled first where there is none that fits.
    ///
    /// # Errors
    /// As [`compile`]; [`CompileError::Cache`] where the directory cannot be made.
    pub fn artifact(
        &self,
        model: &Path,
        options: &CompileOptions,
        progress: &dyn Progress,
    ) -> Result<(PathBuf, Option<Compiled>), CompileError> {
        let unusable = |e: std::io::Error| CompileError::Cache {
            path: self.dir.display().to_string(),
            reason: e.to_string(),
        };
        std::fs::create_dir_all(&self.dir).map_err(unusable)?;
        let stem = model.file_stem().and_then(|s| s.to_str()).unwrap_or("model");
        let stem: String =
            stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let key = key(model, options);
        let path = self.dir.join(format!("{stem}-{}.brolly", &key.to_hex()[..24]));
        if path.is_file() {
            return Ok((path, None));
        }
        let compiled = compile(model, &path, options, progress)?;
        Ok((path, Some(compiled)))
    }
}

fn key(model: &Path, options: &CompileOptions) -> blake3::Hash {
    let mut h = blake3::Hasher::new();
    h.update(env!("CARGO_PKG_VERSION").as_bytes());
    // A rebuilt compiler may generate other code under the same version.
    if let Some(stamp) = std::env::current_exe().ok().and_then(|p| stamp(&p)) {
        h.update(stamp.as_bytes());
    }
    h.update(format!("{options:?}").as_bytes());
    let root = model.canonicalize().unwrap_or_else(|_| model.into());
    h.update(root.as_os_str().as_encoded_bytes());
    // An ONNX file may keep its weights in files beside it.
    let folder = if root.is_dir() { &root } else { root.parent().unwrap_or(&root) };
    let mut files: Vec<PathBuf> = match std::fs::read_dir(folder) {
        Ok(entries) => entries.filter_map(|e| Some(e.ok()?.path())).collect(),
        Err(_) => vec![root],
    };
    files.sort();
    for file in files {
        h.update(file.as_os_str().as_encoded_bytes());
        h.update(stamp(&file).unwrap_or_default().as_bytes());
    }
    h.finalize()
}

/// Size and time of the last change.
fn stamp(path: &Path) -> Option<String> {
    let meta = path.metadata().ok()?;
    let time = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(format!("{} {}", meta.len(), time.as_nanos()))
}
