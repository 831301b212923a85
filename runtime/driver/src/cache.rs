//! Artifacts of models that commands were given without compiling first.
//!
//! The key holds the names, sizes and modification times of the model's files and the options that
//! the artifact depends on, so a changed model is compiled again; contents are not read, since
//! models are large. What lies beside the model's own files does not count.

use std::{
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use codegen::Assembler;

use crate::{CompileError, CompileOptions, Compiled, KernelCache, Progress, compile};

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

    /// The compiled kernels beside the models.
    pub fn kernels(&self) -> KernelCache {
        KernelCache::at(&self.dir.join("kernels"))
    }

    /// A cache in that directory.
    pub fn at(dir: &Path) -> Cache {
        Cache { dir: dir.into() }
    }

    /// The artifact of a model, if it has been compiled.
    ///
    /// Of the options, text does not count: it is what the model's files say.
    pub fn find(&self, model: &Path, options: &CompileOptions) -> Option<PathBuf> {
        Some(self.path(model, options)).filter(|path| path.is_file())
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
        let path = self.path(model, options);
        if path.is_file() {
            return Ok((path, None));
        }
        let compiled = compile(model, &path, options, progress)?;
        Ok((path, Some(compiled)))
    }

    fn path(&self, model: &Path, options: &CompileOptions) -> PathBuf {
        let stem = model.file_stem().and_then(|s| s.to_str()).unwrap_or("model");
        let stem: String =
            stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let key = key(model, options);
        self.dir.join(format!("{stem}-{}.brolly", &key.to_hex()[..24]))
    }
}

fn key(model: &Path, options: &CompileOptions) -> blake3::Hash {
    let mut h = blake3::Hasher::new();
    h.update(env!("CARGO_PKG_VERSION").as_bytes());
    // A rebuilt compiler may generate other code under the same version.
    if let Some(stamp) = std::env::current_exe().ok().and_then(|p| stamp(&p)) {
        h.update(stamp.as_bytes());
    }
    let CompileOptions {
        import,
        target,
        gpus,
        assembler,
        quantize,
        gpu_library,
        training,
        samples,
        kv_dtype,
        tuning,
        is_plan: _,
        text: _,
        threads: _,
        kernel_cache: _,
    } = options;
    let chosen = format!("{import:?} {target:?} {quantize:?} {training:?} {kv_dtype:?} {tuning:?}");
    h.update(chosen.as_bytes()).update(&[u8::from(*samples)]);
    if let Some(library) = gpu_library {
        h.update(format!("{library:?}").as_bytes());
    }
    if !gpus.is_empty() {
        let version = assembler.as_ref().map(Assembler::version);
        h.update(format!("{gpus:?} {version:?}").as_bytes());
    }
    let root = model.canonicalize().unwrap_or_else(|_| model.into());
    h.update(root.as_os_str().as_encoded_bytes());
    for file in frontend::model_files(&root) {
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

#[cfg(test)]
mod tests {
    use std::{fs, num::NonZeroUsize};

    use ir::{DType, Target};

    use super::*;

    #[test]
    fn the_key_is_of_the_models_own_files() {
        let root = std::env::temp_dir().join(format!("brolly-key-{}", std::process::id()));
        let put = |name: &str, bytes: &[u8]| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        let mut options = CompileOptions {
            import: Default::default(),
            target: Target::x86_64_v3(),
            gpus: Vec::new(),
            assembler: None,
            quantize: None,
            gpu_library: None,
            training: None,
            samples: false,
            is_plan: false,
            kv_dtype: DType::F32,
            text: serde_json::Value::Null,
            threads: None,
            kernel_cache: None,
            tuning: Default::default(),
        };
        // A model whose graph has one initializer in `data/w.bin`.
        let entry = b"\x0a\x08location\x12\x0adata/w.bin";
        let mut model = entry.to_vec();
        for tag in [0x6a, 0x2a, 0x3a] {
            model.splice(0..0, [tag, u8::try_from(model.len()).unwrap()]);
        }
        put("model.onnx", &model);
        put("data/w.bin", b"1");
        let of = |options: &CompileOptions| key(&root.join("model.onnx"), options);
        let before = of(&options);
        put("out.npy", b"1");
        assert_eq!(of(&options), before, "a file beside the model");
        options.threads = NonZeroUsize::new(3);
        options.text = "tokenizer".into();
        assert_eq!(of(&options), before, "what no artifact depends on");
        put("data/w.bin", b"12");
        assert_ne!(of(&options), before, "external data in a folder below");
        let before = of(&options);
        options.import.max_batch_tokens += 1;
        assert_ne!(of(&options), before);
        let before = of(&options);
        options.kv_dtype = DType::I8;
        assert_ne!(of(&options), before, "the type of keys and values");
        fs::remove_dir_all(root).unwrap();
    }
}
