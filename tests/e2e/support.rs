//! Compiling fixtures.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Mutex,
};

use driver::{CompileOptions, Compiled, Silent, compile};
use frontend::ImportOptions;
use ir::{DType, Target};
use serve::{Session, SessionOptions};
use text::TextBundle;

/// Numbers that are the same each time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(self.0 >> 33).unwrap() % n
    }
}

/// A file or folder under `tests/data`.
pub(crate) fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(path)
}

/// A directory for artifacts, which the next run overwrites.
pub(crate) fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

fn text(bundle: &TextBundle) -> serde_json::Value {
    serde_json::to_value(bundle).unwrap()
}

/// Options for the baseline target and no text.
pub(crate) fn options(import: ImportOptions) -> CompileOptions {
    let (target, text) = (Target::x86_64_v3(), text(&TextBundle::default()));
    CompileOptions {
        import,
        target,
        gpus: Vec::new(),
        assembler: None,
        quantize: None,
        gpu_library: None,
        training: None,
        samples: false,
        is_plan: false,
        kv_dtype: DType::F32,
        text,
        threads: None,
        kernel_cache: None,
        tuning: Default::default(),
    }
}

/// Options for the baseline target, with the tokenizer of a model folder.
pub(crate) fn options_with_text(folder: &Path, import: ImportOptions) -> CompileOptions {
    let bundle = TextBundle::load(folder).unwrap_or_else(|e| panic!("{e:?}"));
    CompileOptions { text: text(&bundle), ..options(import) }
}

/// A session on an artifact.
pub(crate) fn open(path: &Path, threads: usize) -> Session {
    let options = SessionOptions { threads: NonZeroUsize::new(threads), ..Default::default() };
    Session::open(path, options).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Compiles a model to a fresh file, or explains every problem.
pub(crate) fn compile_to(
    name: &str,
    model: &Path,
    options: &CompileOptions,
) -> (PathBuf, Compiled) {
    static NUMBER: Mutex<u32> = Mutex::new(0);
    let number = {
        let mut n = NUMBER.lock().unwrap();
        *n += 1;
        *n
    };
    let out = scratch().join(format!("{name}-{number}.brolly"));
    let compiled = compile(model, &out, options, &Silent)
        .unwrap_or_else(|e| panic!("{}: {}", model.display(), e.problems().join("\n")));
    (out, compiled)
}
