//! Checkpoints: everything that a run needs to go on as if it had not stopped.
//!
//! A checkpoint is a folder `step-00000050` with the parameters and the optimiser's states as
//! logical tensors in safetensors, whatever mesh they were trained on, and a manifest. It is
//! written beside and renamed when every byte is on disk, so that a folder of that name is always
//! whole; a crash leaves a `.partial` behind, which the next save removes.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    thread,
};

use ir::{DType, map_file};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::{LossScale, TrainConfig, TrainError, TrainStep, train_step::is_finite, weights};

const MANIFEST: &str = "manifest.json";
const STATES: &str = "states.safetensors";
const PREFIX: &str = "step-";
const PARTIAL: &str = "partial";

const NOT_FINITE: &str = "has values that are not finite";

/// The version of the format.
const VERSION: u32 = 1;

/// What stands in a checkpoint besides tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved<P> {
    /// Steps that were taken.
    pub step: u64,
    /// Where the data goes on.
    pub position: P,
    /// blake3 of what must not change between the runs, in hexadecimal.
    pub run: String,
    /// The factor of the loss, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
}

#[derive(Serialize, Deserialize)]
struct Manifest<P> {
    version: u32,
    #[serde(flatten)]
    progress: Saved<P>,
    /// Bytes and blake3 of the tensors' file.
    bytes: u64,
    digest: String,
}

/// What must not change between the runs that share checkpoints, in 64 hexadecimal digits: the
/// model's architecture, the optimiser's rule, which parameters it holds for, and adapters. How
/// long a run is and how fast it learns may change; the data is checked by its position.
///
/// # Errors
/// [`TrainError::File`] if the model's `config.json` cannot be read.
pub fn fingerprint(config: &TrainConfig) -> Result<String, TrainError> {
    let path = config.model.join("config.json");
    let architecture = fs::read(&path).map_err(|e| TrainError::file(&path, e))?;
    let frozen = config.groups.iter().filter(|group| group.freeze).map(|group| &group.regex);
    let frozen: Vec<&String> = frozen.collect();
    let chosen = serde_json::to_vec(&(&config.optimizer.rule, frozen, config.train.dtype));
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(architecture.len() as u64).to_le_bytes()).update(&architecture);
    hasher.update(&chosen.map_err(|e| TrainError::file(&path, e))?);
    if let Some(lora) = &config.lora {
        hasher.update(&serde_json::to_vec(lora).map_err(|e| TrainError::file(&path, e))?);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// The folder of a run's checkpoints.
#[derive(Debug)]
pub struct Checkpoints {
    dir: PathBuf,
    keep: usize,
    writing: Option<thread::JoinHandle<Result<(), TrainError>>>,
}

/// A state, copied.
struct Copied {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Checkpoints {
    /// The checkpoints in `dir`, of which the newest `keep` stay.
    #[must_use]
    pub fn new(dir: &Path, keep: usize) -> Checkpoints {
        Checkpoints { dir: dir.into(), keep: keep.max(1), writing: None }
    }

    fn folder(&self, step: u64) -> PathBuf {
        self.dir.join(format!("{PREFIX}{step:08}"))
    }

    /// The step of the newest.
    #[must_use]
    pub fn newest(&self) -> Option<u64> {
        self.steps().last().copied()
    }

    /// Steps of whole checkpoints, in order.
    fn steps(&self) -> Vec<u64> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let step = |name: String| name.strip_prefix(PREFIX)?.parse().ok();
        let mut steps: Vec<u64> = names.filter_map(step).collect();
        steps.sort_unstable();
        steps
    }

    /// Begins to write a checkpoint: states are copied now and written on a thread of their own,
    /// unless one is not finite. All ranks have to call it, and the first writes.
    ///
    /// # Errors
    /// What went wrong with the one before.
    pub fn save<P>(&mut self, step: &TrainStep, progress: Saved<P>) -> Result<(), TrainError>
    where
        P: Serialize + Send + 'static,
    {
        self.finish()?;
        let mut states = Vec::new();
        let all = step.states_of_stages().into_iter();
        for port in all.filter(|port| !port.name.starts_with("grad.")) {
            let bytes = step.whole_state(&port.name)?.unwrap_or_default();
            states.extend(step.rank().is_first().then(|| Copied {
                name: port.name.to_string(),
                dtype: port.ty.dtype,
                shape: step.state_shape(&port.name).unwrap_or_default(),
                bytes: bytes.into_owned(),
            }));
        }
        if !step.rank().is_first() {
            return Ok(());
        }
        let (folder, others) = (self.folder(progress.step), self.steps());
        let (dir, keep) = (self.dir.clone(), self.keep);
        let spawned = thread::Builder::new().name("checkpoint".into()).spawn(move || {
            write(&folder, &states, progress)?;
            let old = others.iter().filter(|step| dir.join(format!("{PREFIX}{step:08}")) != folder);
            let old: Vec<&u64> = old.collect();
            for step in &old[..(old.len() + 1).saturating_sub(keep).min(old.len())] {
                remove(&dir.join(format!("{PREFIX}{step:08}")))?;
            }
            Ok(())
        });
        self.writing = Some(spawned.map_err(|e| TrainError::file(&self.dir, e))?);
        Ok(())
    }

    /// Waits until what was begun is on disk.
    ///
    /// # Errors
    /// What went wrong with it.
    pub fn finish(&mut self) -> Result<(), TrainError> {
        match self.writing.take().map(thread::JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(payload)) => std::panic::resume_unwind(payload),
        }
    }

    /// Sets a step's states to those of the newest checkpoint; `None` if there is none.
    ///
    /// # Errors
    /// [`TrainError::File`] if it is altered, of a later version, of another run, or of another
    /// model, or if a tensor is not finite.
    pub fn load<P>(&self, step: &mut TrainStep, run: &str) -> Result<Option<Saved<P>>, TrainError>
    where
        P: for<'de> Deserialize<'de>,
    {
        let Some(newest) = self.newest() else { return Ok(None) };
        let folder = self.folder(newest);
        let path = folder.join(MANIFEST);
        let text = fs::read(&path).map_err(|e| TrainError::file(&path, e))?;
        let version: Version = parse(&path, &text)?;
        if version.version > VERSION {
            let why = format!("has version {}, and this program reads {VERSION}", version.version);
            return Err(TrainError::file(&path, why));
        }
        let manifest: Manifest<P> = parse(&path, &text)?;
        if manifest.progress.run != run {
            let why = "is of a run with another model, data or optimizer: take another \
                       checkpoint.dir, or the configuration that it was begun with";
            return Err(TrainError::file(&path, why));
        }
        let path = folder.join(STATES);
        let map = map_file(&path).map_err(|e| TrainError::file(&path, e))?;
        let bytes: &[u8] = map.as_ref();
        let digest = blake3::hash(bytes).to_hex().to_string();
        if bytes.len() as u64 != manifest.bytes || digest != manifest.digest {
            return Err(TrainError::file(&path, "is not what was written: remove the checkpoint"));
        }
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| TrainError::file(&path, e))?;
        let ports: Vec<ir::Port> = step.states().cloned().collect();
        for port in ports.iter().filter(|port| !port.name.starts_with("grad.")) {
            let view = tensors.tensor(&port.name).map_err(|e| TrainError::file(&path, e))?;
            let is_same = weights::safetensors_dtype(port.ty.dtype) == Some(view.dtype())
                && step.state_shape(&port.name).as_deref() == Some(view.shape());
            if !is_same {
                let why = format!("`{}` is not {}", port.name, port.ty);
                return Err(TrainError::file(&path, why));
            }
            if !is_finite(port.ty.dtype, view.data()) {
                return Err(TrainError::file(&path, format!("`{}` {NOT_FINITE}", port.name)));
            }
            step.set_state(&port.name, view.data())?;
        }
        Ok(Some(manifest.progress))
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

fn parse<T: for<'de> Deserialize<'de>>(path: &Path, text: &[u8]) -> Result<T, TrainError> {
    serde_json::from_slice(text).map_err(|e| TrainError::file(path, e))
}

fn write<P: Serialize>(
    folder: &Path,
    states: &[Copied],
    progress: Saved<P>,
) -> Result<(), TrainError> {
    if let Some(bad) = states.iter().find(|s| !is_finite(s.dtype, &s.bytes)) {
        let why = format!("`{}` {NOT_FINITE}: the checkpoint is not written", bad.name);
        return Err(TrainError::file(folder, why));
    }
    let staging = folder.with_extension(PARTIAL);
    remove(&staging)?;
    fs::create_dir_all(&staging).map_err(|e| TrainError::file(&staging, e))?;
    let path = staging.join(STATES);
    let views = states.iter().map(|s| (s.name.clone(), s.dtype, s.shape.clone(), &*s.bytes));
    weights::write(&path, &views.collect::<Vec<_>>())?;
    let map = map_file(&path).map_err(|e| TrainError::file(&path, e))?;
    let bytes: &[u8] = map.as_ref();
    let manifest = Manifest {
        version: VERSION,
        progress,
        bytes: bytes.len() as u64,
        digest: blake3::hash(bytes).to_hex().to_string(),
    };
    let path = staging.join(MANIFEST);
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| TrainError::file(&path, e))?;
    let written = fs::File::create(&path).and_then(|mut file| {
        file.write_all(&text)?;
        file.sync_all()
    });
    written.map_err(|e| TrainError::file(&path, e))?;
    remove(folder)?;
    fs::rename(&staging, folder).map_err(|e| TrainError::file(folder, e))?;
    // The new name itself must be on disk.
    let dir = folder.parent().unwrap_or(Path::new("."));
    let synced = fs::File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|e| TrainError::file(dir, e))
}

/// Removes a folder, whose name no longer stands for a checkpoint while it goes.
fn remove(folder: &Path) -> Result<(), TrainError> {
    if !folder.exists() {
        return Ok(());
    }
    let gone = folder.with_extension("removed");
    let removed = match folder.extension() {
        Some(_) => fs::remove_dir_all(folder),
        None => fs::rename(folder, &gone).and_then(|()| fs::remove_dir_all(&gone)),
    };
    removed.map_err(|e| TrainError::file(folder, e))
}
