//! Writes an artifact, one weight in memory at a time.

use std::{
    error::Error,
    fs::{self, File},
    io::{self, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;

use super::{
    ArtifactError, Digest, FORMAT, Manifest, PackedWeight, Section, check,
    layout::{self, MAX_HEADER_BYTES},
};
use crate::{DType, ModelInfo, Program, Target, Tensor};

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
    /// The code image.
    pub code: &'a [u8],
    /// Tokenizer, chat template and generation defaults.
    pub text: Value,
    /// What the compiler did and why not more.
    pub report: Value,
    /// Entry points.
    pub programs: Vec<Program>,
    /// The packed weights to come, in order.
    pub weights: Vec<WeightSpec>,
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
/// it is complete: until then, and if anything fails, what was there before stays.
///
/// # Errors
/// [`ArtifactError::Io`]; [`ArtifactError::Weight`] if `produce` fails or returns another type than
/// announced; [`ArtifactError::Invalid`] if programs and weights do not fit together.
pub fn write<E: Into<Box<dyn Error + Send + Sync>>>(
    path: &Path,
    contents: Contents<'_>,
    mut produce: impl FnMut(usize) -> Result<Tensor, E>,
) -> Result<Manifest, ArtifactError> {
    let code = contents.code;
    let [text, report] = [&contents.text, &contents.report].map(|v| v.to_string().into_bytes());
    let mut manifest = manifest(contents, &text, &report);
    let invalid = |problems: Vec<String>, manifest: &Manifest| ArtifactError::Invalid {
        path: path.into(),
        compiler: manifest.compiler.clone(),
        problems,
    };
    let Some(_) = layout::place(&mut manifest) else {
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

    let mut file = Draft::create(path)?;
    file.seek_to(header_bytes)?;
    let mut end = 0;
    for (section, bytes) in
        [(&manifest.code, code), (&manifest.text, &text), (&manifest.report, &report)]
    {
        file.pad(section.offset - end)?;
        file.put(bytes)?;
        end = section.offset + section.bytes;
    }
    for (index, weight) in manifest.weights.iter_mut().enumerate() {
        let fail = |reason: String| ArtifactError::Weight {
            path: path.into(),
            name: weight.name.clone(),
            reason,
        };
        let tensor = produce(index).map_err(|e| fail(e.into().to_string()))?;
        let shape: Vec<u64> = tensor.shape().iter().map(|d| *d as u64).collect();
        if tensor.dtype() != weight.dtype || shape != weight.shape {
            let (dtype, wanted) = (tensor.dtype(), weight.dtype);
            return Err(fail(format!("is {dtype}{shape:?}, not {wanted}{:?}", weight.shape)));
        }
        file.pad(weight.offset - end)?;
        weight.digest = file.put_tensor(&tensor)?;
        end = weight.offset + weight.bytes;
    }
    file.seek_to(0)?;
    file.put(&layout::header(&manifest))?;
    file.finish()?;
    Ok(manifest)
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
        text: section(text),
        report: section(report),
        programs: contents.programs,
        weights: contents.weights.into_iter().map(weight).collect(),
    }
}

/// A file beside its destination, removed unless finished.
struct Draft<'a> {
    path: &'a Path,
    draft: PathBuf,
    out: BufWriter<File>,
    finished: bool,
}

impl<'a> Draft<'a> {
    fn create(path: &'a Path) -> Result<Self, ArtifactError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // A draft of that name may be left from a process that had this number before.
        for _ in 0..1000 {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(format!(".{}.{number}.part", std::process::id()));
            let draft = path.with_file_name(name);
            match File::create_new(&draft) {
                Ok(file) => {
                    let out = BufWriter::with_capacity(1 << 20, file);
                    return Ok(Draft { path, draft, out, finished: false });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(io_error(path, "create it", source)),
            }
        }
        let source = io::Error::from(io::ErrorKind::AlreadyExists);
        Err(io_error(path, "create a draft beside it", source))
    }

    fn seek_to(&mut self, offset: u64) -> Result<(), ArtifactError> {
        let done = self.out.seek(SeekFrom::Start(offset));
        done.map(|_| ()).map_err(|source| io_error(self.path, "write it", source))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ArtifactError> {
        self.out.write_all(bytes).map_err(|source| io_error(self.path, "write it", source))
    }

    fn pad(&mut self, bytes: u64) -> Result<(), ArtifactError> {
        let done = io::copy(&mut io::Read::take(io::repeat(0), bytes), &mut self.out);
        done.map(|_| ()).map_err(|source| io_error(self.path, "write it", source))
    }

    /// Writes the elements in row-major order and returns their digest.
    fn put_tensor(&mut self, tensor: &Tensor) -> Result<Digest, ArtifactError> {
        let copied;
        let bytes = match tensor.as_bytes() {
            Some(bytes) => bytes,
            None => {
                copied = tensor.to_bytes();
                &copied
            }
        };
        let mut hasher = blake3::Hasher::new();
        // Pieces that stay in the cache between hashing and writing.
        for piece in bytes.chunks(1 << 20) {
            hasher.update(piece);
            self.put(piece)?;
        }
        Ok(Digest::from(*hasher.finalize().as_bytes()))
    }

    fn finish(mut self) -> Result<(), ArtifactError> {
        let written = self.out.flush().and_then(|()| self.out.get_ref().sync_all());
        written.map_err(|source| io_error(self.path, "write it", source))?;
        fs::rename(&self.draft, self.path)
            .map_err(|source| io_error(self.path, "replace it", source))?;
        self.finished = true;
        Ok(())
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
