//! Writes an artifact: weights on several threads, each made, hashed and written by one of them.
//!
//! Every part has its place before the first is made, so parts are written in any order; memory
//! holds one weight a thread.

use std::{
    error::Error,
    fs::{self, File},
    io,
    num::NonZeroUsize,
    os::unix::fs::FileExt,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    thread,
};

use serde_json::Value;

use super::{
    ArtifactError, Digest, FORMAT, Manifest, PackedWeight, Section, check,
    layout::{self, MAX_HEADER_BYTES},
};
use crate::{CudaModule, DType, Fold, ModelInfo, Program, Target, Tensor};

/// What goes into an artifact, but for the weights' values.
#[derive(Debug)]
pub struct Contents<'a> {
    /// Name and version of the compiler.
    pub compiler: String,
    /// What the code is compiled for.
    pub target: Target,
    /// The model.
    pub model: ModelInfo,
    /// Digest of the files that the model was compiled from.
    pub source_digest: Digest,
    /// The code image, or the modules' bytes.
    pub code: &'a [u8],
    /// Where in those bytes modules for GPUs lie.
    pub modules: Vec<CudaModule>,
    /// Tokenizer, chat template and generation defaults.
    pub text: Value,
    /// What the compiler did and why not more.
    pub report: Value,
    /// Entry points.
    pub programs: Vec<Program>,
    /// Sums for their collectives on GPUs.
    pub folds: Vec<Fold>,
    /// The packed weights to come, in order.
    pub weights: Vec<WeightSpec>,
    /// The seed of weights that are to be made where the artifact is opened: none are written.
    pub random: Option<u64>,
}

/// A packed weight to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSpec {
    /// Its name, unique and none of those that the file uses for itself.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<u64>,
    /// Names of the source tensors that it is made from.
    pub sources: Vec<String>,
}

/// Writes an artifact and returns its manifest.
///
/// `produce` is called once per weight, in order, with its number. The file appears at `path` when
/// it is complete: until then, and if anything fails, what was there before stays. Nothing waits
/// for the disk: what a loss of power leaves behind is found by the digests.
///
/// # Errors
/// [`ArtifactError::Io`]; [`ArtifactError::Weight`] if `produce` fails or returns another type than
/// announced; [`ArtifactError::Invalid`] if programs and weights do not fit together.
pub fn write<E: Into<Box<dyn Error + Send + Sync>>>(
    path: &Path,
    contents: Contents<'_>,
    mut produce: impl FnMut(usize) -> Result<Tensor, E>,
) -> Result<Manifest, ArtifactError> {
    let file = Draft::begin(path, contents)?;
    let weights = file.stored();
    let digests = weights.iter().enumerate().map(|(i, w)| file.put_weight(w, produce(i)));
    let digests = digests.collect::<Result<Vec<_>, _>>()?;
    file.finish(digests)
}

/// As [`write()`], on so many threads: `produce` is called from any of them, in any order. The file
/// does not depend on it.
///
/// # Errors
/// As [`write()`]; of several, one.
///
/// # Panics
/// As `produce`.
pub fn write_on<E: Into<Box<dyn Error + Send + Sync>>>(
    threads: NonZeroUsize,
    path: &Path,
    contents: Contents<'_>,
    produce: impl Fn(usize) -> Result<Tensor, E> + Sync,
) -> Result<Manifest, ArtifactError> {
    let file = Draft::begin(path, contents)?;
    let weights = file.stored();
    let digests = Mutex::new(vec![Digest::default(); weights.len()]);
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || -> Result<(), ArtifactError> {
        // Where one fails or panics, the others stop as well.
        let stop = SetOnDrop(&failed);
        while !failed.load(Ordering::Relaxed) {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(weight) = weights.get(i) else { break };
            let digest = file.put_weight(weight, produce(i))?;
            digests.lock().unwrap_or_else(PoisonError::into_inner)[i] = digest;
        }
        std::mem::forget(stop);
        Ok(())
    };
    thread::scope(|scope| {
        let count = threads.get().min(weights.len());
        let workers: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        let results: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        results.into_iter().try_for_each(|r| r.unwrap_or_else(|payload| resume_unwind(payload)))
    })?;
    file.finish(digests.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Sets a flag, unless forgotten.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn manifest(contents: Contents<'_>, text: &[u8], report: &[u8]) -> Manifest {
    let section =
        |bytes: &[u8]| Section { offset: 0, bytes: bytes.len() as u64, digest: Digest::of(bytes) };
    let weight = |spec: WeightSpec| {
        let elements = spec.shape.iter().fold(1u64, |n, d| n.saturating_mul(*d));
        PackedWeight {
            name: spec.name,
            dtype: spec.dtype,
            shape: spec.shape,
            offset: 0,
            bytes: elements.saturating_mul(spec.dtype.size() as u64),
            digest: Digest::default(),
            sources: spec.sources,
        }
    };
    Manifest {
        format: FORMAT,
        compiler: contents.compiler,
        target: contents.target,
        model: contents.model,
        source_digest: contents.source_digest,
        code: section(contents.code),
        modules: contents.modules,
        text: section(text),
        report: section(report),
        programs: contents.programs,
        folds: contents.folds,
        weights: contents.weights.into_iter().map(weight).collect(),
        random: contents.random,
    }
}

/// A file beside its destination, removed unless finished.
struct Draft<'a> {
    path: &'a Path,
    draft: PathBuf,
    file: File,
    manifest: Manifest,
    /// Where the data begin.
    header_bytes: u64,
    finished: bool,
}

impl<'a> Draft<'a> {
    /// A file with everything but weights and header.
    fn begin(path: &'a Path, contents: Contents<'_>) -> Result<Self, ArtifactError> {
        let code = contents.code;
        let [text, report] = [&contents.text, &contents.report].map(|v| v.to_string().into_bytes());
        let mut manifest = manifest(contents, &text, &report);
        let invalid = |problems: Vec<String>, manifest: &Manifest| ArtifactError::Invalid {
            path: path.into(),
            compiler: manifest.compiler.clone(),
            problems,
        };
        let Some(data_bytes) = layout::place(&mut manifest) else {
            return Err(invalid(vec!["the weights exceed 2^63 bytes".into()], &manifest));
        };
        let problems = check::manifest(&manifest);
        if !problems.is_empty() {
            return Err(invalid(problems, &manifest));
        }
        // Digests have a fixed width, so the header keeps its length when they are known.
        let header_bytes = layout::header(&manifest).len() as u64;
        if header_bytes > MAX_HEADER_BYTES {
            let problem = format!("the header has {header_bytes} bytes, over {MAX_HEADER_BYTES}");
            return Err(invalid(vec![problem], &manifest));
        }
        let (draft, file) = Self::create(path)?;
        let draft = Draft { path, draft, file, manifest, header_bytes, finished: false };
        // Padding is zeros, as is what nobody writes.
        let length = header_bytes.saturating_add(data_bytes);
        draft.file.set_len(length).map_err(|source| io_error(path, "write it", source))?;
        let Manifest { code: at_code, text: at_text, report: at_report, .. } = &draft.manifest;
        for (section, bytes) in [(at_code, code), (at_text, &*text), (at_report, &*report)] {
            draft.put(bytes, header_bytes + section.offset)?;
        }
        Ok(draft)
    }

    /// The weights that are written.
    fn stored(&self) -> &[PackedWeight] {
        if self.manifest.random.is_some() { &[] } else { &self.manifest.weights }
    }

    fn create(path: &Path) -> Result<(PathBuf, File), ArtifactError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // A draft of that name may be left from a process that had this number before.
        for _ in 0..1000 {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(format!(".{}.{number}.part", std::process::id()));
            let draft = path.with_file_name(name);
            match File::create_new(&draft) {
                Ok(file) => return Ok((draft, file)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(io_error(path, "create it", source)),
            }
        }
        let source = io::Error::from(io::ErrorKind::AlreadyExists);
        Err(io_error(path, "create a draft beside it", source))
    }

    fn put(&self, bytes: &[u8], at: u64) -> Result<(), ArtifactError> {
        let done = self.file.write_all_at(bytes, at);
        done.map_err(|source| io_error(self.path, "write it", source))
    }

    /// Writes a weight's elements in row-major order and returns their digest.
    fn put_weight<E: Into<Box<dyn Error + Send + Sync>>>(
        &self,
        weight: &PackedWeight,
        produced: Result<Tensor, E>,
    ) -> Result<Digest, ArtifactError> {
        let fail = |reason: String| ArtifactError::Weight {
            path: self.path.into(),
            name: weight.name.clone(),
            reason,
        };
        let tensor = produced.map_err(|e| fail(e.into().to_string()))?;
        let shape: Vec<u64> = tensor.shape().iter().map(|d| *d as u64).collect();
        if tensor.dtype() != weight.dtype || shape != weight.shape {
            let (dtype, wanted) = (tensor.dtype(), weight.dtype);
            return Err(fail(format!("is {dtype}{shape:?}, not {wanted}{:?}", weight.shape)));
        }
        let copied;
        let bytes = match tensor.as_bytes() {
            Some(bytes) => bytes,
            None => {
                copied = tensor.to_bytes();
                &copied
            }
        };
        let mut hasher = blake3::Hasher::new();
        let mut at = self.header_bytes + weight.offset;
        // Pieces that stay in the cache between hashing and writing.
        for piece in bytes.chunks(256 << 10) {
            hasher.update(piece);
            self.put(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(Digest::from(*hasher.finalize().as_bytes()))
    }

    fn finish(mut self, digests: Vec<Digest>) -> Result<Manifest, ArtifactError> {
        for (weight, digest) in self.manifest.weights.iter_mut().zip(digests) {
            weight.digest = digest;
        }
        self.put(&layout::header(&self.manifest), 0)?;
        fs::rename(&self.draft, self.path)
            .map_err(|source| io_error(self.path, "replace it", source))?;
        self.finished = true;
        Ok(self.manifest.clone())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.finished {
            // The error that led here is the one to report.
            let _ = fs::remove_file(&self.draft);
        }
    }
}

fn io_error(path: &Path, doing: &'static str, source: io::Error) -> ArtifactError {
    ArtifactError::Io { path: path.into(), doing, source }
}
