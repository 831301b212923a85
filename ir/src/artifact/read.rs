//! Opens artifacts: nothing in the file is believed before it is checked.

use std::{
    collections::HashMap,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use memmap2::MmapMut;
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    ArtifactError, Digest, FORMAT, Manifest, OLDEST_FORMAT, Section, check,
    layout::{self, DIGEST_KEY, MANIFEST_KEY},
    random::Made,
};
use crate::{Bytes, CpuFeature, MappedFile, Program, Span, Target, Tensor, mmap};

/// Weights of up to this many bytes in all are verified when an artifact is opened.
pub const VERIFY_AT_OPEN_BYTES: u64 = 256 << 20;

/// An open artifact: a checked manifest over a mapped file.
#[derive(Debug)]
pub struct Artifact {
    path: PathBuf,
    file: File,
    map: Arc<MappedFile>,
    manifest: Manifest,
    /// Where in the file the data begin.
    data: usize,
    verified: AtomicBool,
    /// Weights that are not in the file.
    made: Option<Made>,
}

impl Artifact {
    /// Opens an artifact that this machine can run.
    ///
    /// Manifest, code and text are verified, and weights of up to [`VERIFY_AT_OPEN_BYTES`] in all;
    /// for larger ones call [`verify_weights`](Self::verify_weights), at the latest before results
    /// are given out.
    ///
    /// # Errors
    /// [`ArtifactError`], which says what to do.
    pub fn open(path: &Path) -> Result<Artifact, ArtifactError> {
        let mut artifact = Artifact::open_foreign(path)?;
        let missing = missing(&artifact.manifest.target);
        if !missing.is_empty() {
            let target = artifact.manifest.target.to_string();
            return Err(ArtifactError::Machine { path: path.into(), target, missing });
        }
        if let Some(seed) = artifact.manifest.random {
            let doing = "make its weights";
            let fail = |source| ArtifactError::Io { path: path.into(), doing, source };
            let made = Made::reserve(&artifact.manifest.weights, seed).map_err(fail)?;
            artifact.made = Some(made);
        }
        Ok(artifact)
    }

    /// As [`open`](Self::open), to look at only: the code may be for another machine, and weights
    /// that are not in the file are not made.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for [`ArtifactError::Machine`].
    pub fn open_foreign(path: &Path) -> Result<Artifact, ArtifactError> {
        let io = |doing| move |source| ArtifactError::Io { path: path.into(), doing, source };
        let file = File::open(path).map_err(io("open it"))?;
        let map = mmap::map_open_file(&file).map_err(io("map it"))?;
        let manifest = parse(path, map.as_ref())?;
        let data = header_end(map.as_ref()).unwrap_or(0);
        let small = manifest.weight_bytes() <= VERIFY_AT_OPEN_BYTES;
        let map = Arc::new(map);
        let verified = AtomicBool::new(false);
        let (path, made) = (path.into(), None);
        let artifact = Artifact { path, file, map, manifest, data, verified, made };
        if small {
            artifact.verify_weights(1)?;
        }
        Ok(artifact)
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What the artifact holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The program of an entry point.
    ///
    /// # Errors
    /// [`ArtifactError::Entry`], which lists those that there are.
    pub fn program(&self, entry: &str) -> Result<&Program, ArtifactError> {
        self.manifest.program(entry).ok_or_else(|| {
            let names = self.manifest.programs.iter().map(|p| format!("`{}`", p.name));
            let known = names.collect::<Vec<_>>().join(", ");
            ArtifactError::Entry { path: self.path.clone(), entry: entry.into(), known }
        })
    }

    /// Where the code lies in the file.
    pub fn code_range(&self) -> Range<u64> {
        let start = self.data as u64 + self.manifest.code.offset;
        start..start + self.manifest.code.bytes
    }

    /// A part of the code section.
    pub fn code(&self, span: Span) -> &[u8] {
        self.bytes(self.manifest.code.offset + span.offset, span.bytes)
    }

    /// The bytes of a packed weight.
    ///
    /// # Panics
    /// If there is no weight of that number.
    pub fn weight(&self, index: usize) -> &[u8] {
        let weight = &self.manifest.weights[index];
        match self.made() {
            Some(made) => slice(&made[..], 0, weight.offset - self.first(), weight.bytes),
            None => slice((*self.map).as_ref(), self.data, weight.offset, weight.bytes),
        }
        .unwrap_or_default()
    }

    /// Weights that are not in the file.
    fn made(&self) -> Option<&Arc<MmapMut>> {
        self.made.as_ref().map(|made| made.memory(&self.manifest.weights))
    }

    /// Where the first weight lies.
    fn first(&self) -> u64 {
        self.manifest.weights.first().map_or(0, |w| w.offset)
    }

    /// A packed weight as a tensor over the memory that it lies in.
    ///
    /// # Panics
    /// If there is no weight of that number.
    pub fn weight_tensor(&self, index: usize) -> Tensor {
        let weight = &self.manifest.weights[index];
        let extent = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let shape: Vec<usize> = weight.shape.iter().map(|d| extent(*d)).collect();
        let (data, at): (Arc<dyn Bytes>, usize) = match self.made() {
            Some(made) => (made.clone(), extent(weight.offset - self.first())),
            None => (self.map.clone(), self.data + extent(weight.offset)),
        };
        Tensor::new(weight.dtype, &shape, data, at).expect("a checked weight lies in the file")
    }

    /// The memory that holds the weights, with the padding between them.
    pub fn weight_memory(&self) -> &[u8] {
        let weights = &self.manifest.weights;
        let Some((first, last)) = weights.first().zip(weights.last()) else { return &[] };
        if let Some(made) = self.made() {
            return made;
        }
        self.bytes(first.offset, last.offset + last.bytes - first.offset)
    }

    /// Tokenizer, chat template and generation defaults.
    ///
    /// # Errors
    /// [`ArtifactError::Invalid`] if they are not of the type that is asked for.
    pub fn text<T: DeserializeOwned>(&self) -> Result<T, ArtifactError> {
        self.json("text", &self.manifest.text)
    }

    /// What the compiler did and why not more.
    ///
    /// # Errors
    /// [`ArtifactError::Invalid`] if it is not of the type that is asked for.
    pub fn report<T: DeserializeOwned>(&self) -> Result<T, ArtifactError> {
        self.json("report", &self.manifest.report)
    }

    /// Whether all weights have been verified.
    pub fn is_verified(&self) -> bool {
        self.verified.load(Ordering::Acquire)
    }

    /// Compares every weight with its digest, on `threads` threads; at once if that was done
    /// before.
    ///
    /// # Errors
    /// [`ArtifactError::Damaged`] for the first weight in order that differs.
    pub fn verify_weights(&self, threads: usize) -> Result<(), ArtifactError> {
        if self.is_verified() || self.manifest.random.is_some() {
            self.verified.store(true, Ordering::Release);
            return Ok(());
        }
        let next = AtomicUsize::new(0);
        let damaged: Mutex<Option<usize>> = Mutex::new(None);
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(weight) = self.manifest.weights.get(index) else { break };
                if Digest::of(self.weight(index)) != weight.digest {
                    let mut first = damaged.lock().unwrap_or_else(|e| e.into_inner());
                    *first = first.map_or(Some(index), |other| Some(index.min(other)));
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads.min(self.manifest.weights.len()) {
                // Fewer threads do the same work.
                let _ = thread::Builder::new().name("verify".into()).spawn_scoped(scope, work);
            }
            work();
        });
        match damaged.into_inner().unwrap_or_else(|e| e.into_inner()) {
            None => {
                self.verified.store(true, Ordering::Release);
                Ok(())
            }
            Some(i) => {
                let what = format!("weight `{}`", self.manifest.weights[i].name);
                Err(damaged_part(&self.path, what, "differs from its digest"))
            }
        }
    }

    fn bytes(&self, offset: u64, bytes: u64) -> &[u8] {
        slice((*self.map).as_ref(), self.data, offset, bytes).unwrap_or_default()
    }

    fn json<T: DeserializeOwned>(&self, name: &str, s: &Section) -> Result<T, ArtifactError> {
        let value = serde_json::from_slice(self.bytes(s.offset, s.bytes));
        value.map_err(|e| ArtifactError::Invalid {
            path: self.path.clone(),
            compiler: self.manifest.compiler.clone(),
            problems: vec![format!("{name}: {e}")],
        })
    }
}

/// Reads and checks the manifest of an artifact's bytes, and verifies everything but the weights.
///
/// `path` is what errors call the file.
///
/// # Errors
/// [`ArtifactError`], whatever the bytes.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Manifest, ArtifactError> {
    let text = manifest_text(path, bytes)?;
    let invalid = |compiler: &str, problems| ArtifactError::Invalid {
        path: path.into(),
        compiler: compiler.into(),
        problems,
    };
    let of_manifest = |e: serde_json::Error| invalid("unknown", vec![format!("manifest: {e}")]);
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let Version { format } = serde_json::from_str(&text).map_err(of_manifest)?;
    if !(OLDEST_FORMAT..=FORMAT).contains(&format) {
        return Err(ArtifactError::Format { path: path.into(), found: format });
    }
    let manifest: Manifest = serde_json::from_str(&text).map_err(of_manifest)?;
    let mut problems = check::manifest(&manifest);
    let mut placed = manifest.clone();
    let end = layout::place(&mut placed);
    if end.is_none() || placed != manifest {
        problems.push("sections are not where their sizes put them".into());
    }
    let Some(end) = end.filter(|_| problems.is_empty()) else {
        return Err(invalid(&manifest.compiler, problems));
    };
    verify(path, bytes, &manifest, end)?;
    Ok(manifest)
}

/// The manifest's text, compared with its digest.
fn manifest_text(path: &Path, bytes: &[u8]) -> Result<String, ArtifactError> {
    #[derive(Deserialize)]
    struct Header {
        #[serde(rename = "__metadata__", default)]
        metadata: HashMap<String, String>,
    }
    let other = |reason: String| ArtifactError::NotAnArtifact { path: path.into(), reason };
    let Some(end) = header_end(bytes) else {
        let size = bytes.len();
        return Err(other(format!("its {size} bytes hold no complete safetensors header")));
    };
    let header: Header = serde_json::from_slice(&bytes[8..end])
        .map_err(|e| other(format!("its header is not that of a safetensors file ({e})")))?;
    let mut metadata = header.metadata;
    let Some(text) = metadata.remove(MANIFEST_KEY) else {
        return Err(other("it is a safetensors file without a manifest".into()));
    };
    if metadata.get(DIGEST_KEY) != Some(&Digest::of(text.as_bytes()).to_string()) {
        return Err(damaged_part(path, "the manifest", "differs from its digest"));
    }
    Ok(text)
}

/// Compares length, header, code, text and padding with what the manifest says.
fn verify(path: &Path, bytes: &[u8], manifest: &Manifest, end: u64) -> Result<(), ArtifactError> {
    let header = layout::header(manifest);
    if !bytes.starts_with(&header) {
        return Err(damaged_part(path, "the header", "differs from what the manifest says"));
    }
    let wanted = header.len() as u64 + end;
    if bytes.len() as u64 != wanted {
        let reason = format!("has {} bytes instead of {wanted}", bytes.len());
        return Err(damaged_part(path, "the file", reason));
    }
    let part = |range: Range<u64>| {
        slice(bytes, header.len(), range.start, range.end - range.start).unwrap_or_default()
    };
    let Manifest { code, text, report, .. } = manifest;
    for (what, s) in [("the code", code), ("the text section", text), ("the report", report)] {
        if Digest::of(part(s.offset..s.offset + s.bytes)) != s.digest {
            return Err(damaged_part(path, what, "differs from its digest"));
        }
    }
    for entry in layout::entries(manifest).into_iter().filter(layout::Entry::is_padding) {
        if part(entry.range).iter().any(|byte| *byte != 0) {
            return Err(damaged_part(path, format!("padding `{}`", entry.name), "is not zero"));
        }
    }
    Ok(())
}

/// Where the header ends by its own word, if that is within the file.
fn header_end(bytes: &[u8]) -> Option<usize> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    (length <= rest.len()).then(|| 8 + length)
}

fn slice(bytes: &[u8], data: usize, offset: u64, length: u64) -> Option<&[u8]> {
    let start = data.checked_add(usize::try_from(offset).ok()?)?;
    bytes.get(start..start.checked_add(usize::try_from(length).ok()?)?)
}

fn damaged_part(path: &Path, what: impl Into<String>, reason: impl Into<String>) -> ArtifactError {
    ArtifactError::Damaged { path: path.into(), what: what.into(), reason: reason.into() }
}

/// What code for `target` needs and this machine lacks. Whether there is a GPU for it, who opens a
/// device finds out.
fn missing(target: &Target) -> Vec<String> {
    if target.cuda.is_some() {
        return Vec::new();
    }
    let arch = std::env::consts::ARCH;
    if target.triple.split('-').next() != Some(arch) {
        return vec![format!("the architecture (it is {arch})")];
    }
    let lacks = |feature: &&CpuFeature| !has(**feature);
    target.features.iter().filter(lacks).map(|f| f.name().to_owned()).collect()
}

#[cfg(target_arch = "x86_64")]
fn has(feature: CpuFeature) -> bool {
    match feature {
        CpuFeature::Avx2 => is_x86_feature_detected!("avx2"),
        CpuFeature::Fma => is_x86_feature_detected!("fma"),
        CpuFeature::F16c => is_x86_feature_detected!("f16c"),
        CpuFeature::Bmi2 => is_x86_feature_detected!("bmi2"),
        CpuFeature::Avx512f => is_x86_feature_detected!("avx512f"),
        CpuFeature::Avx512bw => is_x86_feature_detected!("avx512bw"),
        CpuFeature::Avx512dq => is_x86_feature_detected!("avx512dq"),
        CpuFeature::Avx512vl => is_x86_feature_detected!("avx512vl"),
        CpuFeature::Avx512vnni => is_x86_feature_detected!("avx512vnni"),
        CpuFeature::Avx512bf16 => is_x86_feature_detected!("avx512bf16"),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn has(_: CpuFeature) -> bool {
    false
}
