//! A checkpoint: the tensors of a folder's safetensors, and how they match what a model reads.
//!
//! Either `model.safetensors`, or the shards that `model.safetensors.index.json` lists.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use indexmap::IndexMap;
use ir::Tensor;
use serde_json::Value;

use crate::{FrontendError, blocks::Slot, folder, json, safetensors};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Problems of one kind that are listed one by one; the rest is counted.
const LISTED: usize = 100;

/// The weights of a module, views of the mapped files.
pub(crate) type ModelTensors = IndexMap<Arc<str>, Tensor>;

/// The tensors of a folder.
pub(crate) struct Checkpoint {
    /// What lists the tensors: the file, or the index of shards.
    file: PathBuf,
    shards: Vec<PathBuf>,
    /// Tensors and the number of their shard.
    tensors: IndexMap<String, (Tensor, usize)>,
}

impl Checkpoint {
    /// Whether a folder holds one.
    pub(crate) fn is_in(folder: &Path) -> bool {
        folder.join(SINGLE).exists() || folder.join(INDEX).exists()
    }

    /// Reads the headers of a folder's safetensors.
    ///
    /// # Errors
    /// Every problem of every file.
    pub(crate) fn open(folder: &Path) -> Result<Checkpoint, Vec<FrontendError>> {
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        if single.exists() {
            let tensors = safetensors::open(&single)?;
            let tensors = tensors.into_iter().map(|(name, t)| (name, (t, 0))).collect();
            return Ok(Checkpoint { file: single.clone(), shards: vec![single], tensors });
        }
        if index.exists() {
            return open_shards(folder, &index);
        }
        let reason = format!("holds neither {SINGLE} nor {INDEX}; weights are read from these");
        Err(vec![FrontendError::file(folder, reason)])
    }

    /// The tensor of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name).map(|(t, _)| t)
    }

    /// The one of two prefixes under which more of the names are found; the first in a draw.
    pub(crate) fn prefix(
        &self,
        candidates: [&'static str; 2],
        names: impl Fn(&str) -> Vec<Slot>,
    ) -> &'static str {
        let found = candidates.map(|prefix| {
            names(prefix).iter().filter(|s| self.tensors.contains_key(&s.path)).count()
        });
        if found[1] > found[0] { candidates[1] } else { candidates[0] }
    }

    /// The tensors that a model reads, by the model's names.
    ///
    /// A slot is found under its own name or the one that `alias` gives. Tensors that no slot
    /// reads must be `ignored`.
    ///
    /// # Errors
    /// Every missing, misshapen, ill-typed and unexpected tensor; `model` says what for.
    pub(crate) fn select(
        &self,
        model: &str,
        slots: &[Slot],
        alias: impl Fn(&str) -> Option<String>,
        ignored: impl Fn(&str) -> bool,
    ) -> Result<ModelTensors, Vec<FrontendError>> {
        let mut out = IndexMap::with_capacity(slots.len());
        let mut used = BTreeSet::new();
        let (mut missing, mut unfit, mut extra) = (Vec::new(), Vec::new(), Vec::new());
        for slot in slots {
            let stored = match self.tensors.get_full(&slot.path) {
                Some(found) => Some(found),
                None => alias(&slot.path).and_then(|name| self.tensors.get_full(&name)),
            };
            let Some((number, name, (tensor, shard))) = stored else {
                let reason = format!("is missing, expected with shape {:?}", slot.shape);
                missing.push(FrontendError::tensor(&self.file, &slot.path, reason));
                continue;
            };
            used.insert(number);
            let shape: Vec<u64> = tensor.shape().iter().map(|d| *d as u64).collect();
            let mut fail = |reason| {
                unfit.push(FrontendError::tensor(&self.shards[*shard], name, reason));
            };
            if shape != slot.shape {
                fail(format!("has shape {shape:?}, expected {:?} for {model}", slot.shape));
            }
            if !tensor.dtype().is_float() {
                fail(format!("has element type {}, expected floating point", tensor.dtype()));
            }
            out.insert(Arc::from(slot.path.as_str()), tensor.clone());
        }
        for (number, (name, (_, shard))) in self.tensors.iter().enumerate() {
            if !used.contains(&number) && !ignored(name) {
                let reason = format!("is not part of {model}; does config.json belong to it?");
                extra.push(FrontendError::tensor(&self.shards[*shard], name, reason));
            }
        }
        let mut errors = Vec::new();
        for (what, mut found) in [("missing", missing), ("unfit", unfit), ("unexpected", extra)] {
            let more = found.len().saturating_sub(LISTED);
            found.truncate(LISTED);
            errors.append(&mut found);
            if more > 0 {
                let reason = format!("has {more} more {what} tensors");
                errors.push(FrontendError::file(&self.file, reason));
            }
        }
        if errors.is_empty() { Ok(out) } else { Err(errors) }
    }
}

/// Reads the shards that an index lists, and checks that both agree on what is where.
fn open_shards(folder: &Path, index: &Path) -> Result<Checkpoint, Vec<FrontendError>> {
    let map = json::read_object(index)?;
    let Some(map) = map.get("weight_map").and_then(Value::as_object) else {
        let reason = "is missing or no object, expected the shard of each tensor";
        return Err(vec![FrontendError::field(index, "weight_map", reason)]);
    };
    let mut errors = Vec::new();
    // Tensors by shard, as the index has it.
    let mut listed: IndexMap<&str, BTreeSet<&str>> = IndexMap::new();
    for (tensor, shard) in map {
        match shard.as_str() {
            Some(shard) => {
                listed.entry(shard).or_default().insert(tensor);
            }
            None => errors.push(FrontendError::tensor(index, tensor, "is not in a named file")),
        }
    }
    let mut checkpoint =
        Checkpoint { file: index.into(), shards: Vec::new(), tensors: IndexMap::new() };
    for (shard, names) in listed {
        let file = match folder::within(folder, shard) {
            Ok(file) => file,
            Err(reason) => {
                errors.push(FrontendError::field(index, "weight_map", reason));
                continue;
            }
        };
        let tensors = match safetensors::open(&file) {
            Ok(tensors) => tensors,
            Err(mut found) => {
                errors.append(&mut found);
                continue;
            }
        };
        for name in names.iter().filter(|n| !tensors.contains_key(**n)) {
            let reason = format!("is listed by {INDEX}, but is not in the file");
            errors.push(FrontendError::tensor(&file, name, reason));
        }
        let number = checkpoint.shards.len();
        for (name, tensor) in tensors {
            if !names.contains(name.as_str()) {
                let reason = format!("is in the file, but {INDEX} does not say so");
                errors.push(FrontendError::tensor(&file, &name, reason));
            }
            checkpoint.tensors.insert(name, (tensor, number));
        }
        checkpoint.shards.push(file);
    }
    if errors.is_empty() { Ok(checkpoint) } else { Err(errors) }
}
