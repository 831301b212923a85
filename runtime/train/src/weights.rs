//! Weights of a model's folder: read to start from, written to be used elsewhere.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use ir::{DType, Tensor, map_file};
use safetensors::{Dtype, SafeTensors, View, tensor::TensorView};
use serde::Deserialize;

use crate::{ParameterInfo, TrainError, TrainStep, lora::is_factor, train_step::is_finite};

pub(crate) const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// A mapped file of tensors.
pub(crate) type Mapped = (PathBuf, Box<dyn AsRef<[u8]>>);

/// The files that hold the weights of a folder, mapped.
pub(crate) fn mapped(folder: &Path) -> Result<Vec<Mapped>, TrainError> {
    let map = |path: PathBuf| match map_file(&path) {
        Ok(map) => Ok((path, Box::new(map) as Box<dyn AsRef<[u8]>>)),
        Err(e) => Err(TrainError::file(&path, e)),
    };
    files(folder)?.into_iter().map(map).collect()
}

pub(crate) fn tensors(mapped: &Mapped) -> Result<SafeTensors<'_>, TrainError> {
    let (path, map) = mapped;
    SafeTensors::deserialize((**map).as_ref()).map_err(|e| TrainError::file(path, e))
}

/// The files that hold the weights of a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let index = folder.join(INDEX);
    if !index.is_file() {
        return Ok(vec![folder.join(SINGLE)]);
    }
    let text = fs::read(&index).map_err(|e| TrainError::file(&index, e))?;
    let read: Index = serde_json::from_slice(&text).map_err(|e| TrainError::file(&index, e))?;
    let mut names: Vec<String> = read.weight_map.into_values().collect();
    names.sort_unstable();
    names.dedup();
    let is_inside = |name: &String| Path::new(name).file_name().is_some_and(|f| f == &**name);
    if let Some(outside) = names.iter().find(|name| !is_inside(name)) {
        return Err(TrainError::file(&index, format!("names {outside}, which is not beside it")));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// blake3 of the files that hold the weights of a folder, in hexadecimal.
pub(crate) fn digest(folder: &Path) -> Result<String, TrainError> {
    let mut hasher = blake3::Hasher::new();
    for (_, map) in mapped(folder)? {
        let bytes: &[u8] = (*map).as_ref();
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Sets every parameter but adapters to its tensor in a model's folder.
///
/// # Errors
/// [`TrainError::File`] that names the file: one that cannot be read, every parameter that is
/// missing or has another shape, and every value that is not finite.
pub fn load_pretrained(step: &mut TrainStep, folder: &Path) -> Result<(), TrainError> {
    let own = step.parameters().iter().filter(|p| !is_factor(&p.name));
    let mut missing: BTreeMap<String, ParameterInfo> =
        own.map(|p| (p.name.to_string(), p.clone())).collect();
    let mut problems = Vec::new();
    for file in &mapped(folder)? {
        for (name, view) in tensors(file)?.iter() {
            let Some(parameter) = missing.remove(name) else {
                let is_frozen = step.frozen().iter().any(|frozen| **frozen == *name);
                if is_frozen && dtype_of(view.dtype()).is_some_and(|d| !is_finite(d, view.data())) {
                    problems.push(format!("`{name}` has values that are not finite"));
                }
                continue;
            };
            if let Err(why) = set(step, &parameter, &view) {
                problems.push(format!("`{name}` {why}"));
            }
        }
    }
    problems.extend(missing.keys().map(|name| format!("`{name}` is missing")));
    if problems.is_empty() {
        return Ok(());
    }
    Err(TrainError::file(folder, problems.join("; ")))
}

fn set(
    step: &mut TrainStep,
    parameter: &ParameterInfo,
    view: &TensorView<'_>,
) -> Result<(), String> {
    if view.shape() != parameter.shape {
        return Err(format!("has shape {:?}, not {:?}", view.shape(), parameter.shape));
    }
    let name = format!("param.{}", parameter.name);
    if !step.has_state(&name) {
        // It is another stage's.
        return Ok(());
    }
    let dtype = dtype_of(view.dtype()).ok_or_else(|| {
        format!("has elements of type {:?}, which are no numbers to train", view.dtype())
    })?;
    let tensor = Tensor::from_bytes(dtype, view.shape(), view.data().to_vec());
    let tensor = if dtype == parameter.dtype { tensor } else { tensor.cast(parameter.dtype) };
    let bytes = tensor.to_bytes();
    if !is_finite(parameter.dtype, &bytes) {
        return Err("has values that are not finite".to_owned());
    }
    let is_set = step.set_state(&name, &bytes).map_err(|e| e.to_string())?;
    is_set.then_some(()).ok_or_else(|| "is no parameter".to_owned())
}

pub(crate) fn dtype_of(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::Bf16,
        _ => return None,
    })
}

/// How the file format names an element type.
pub(crate) fn safetensors_dtype(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::Bf16 => Dtype::BF16,
        _ => return None,
    })
}

/// Writes tensors to a file, and waits until they are on disk.
pub(crate) fn write(
    path: &Path,
    tensors: &[(String, DType, Vec<usize>, &[u8])],
) -> Result<(), TrainError> {
    let mut views = Vec::with_capacity(tensors.len());
    for (name, dtype, shape, bytes) in tensors {
        let unknown = || TrainError::file(path, format!("`{name}` is of type {dtype}"));
        let dtype = safetensors_dtype(*dtype).ok_or_else(unknown)?;
        let view = TensorView::new(dtype, shape.clone(), bytes);
        views.push((name.clone(), view.map_err(|e| TrainError::file(path, e))?));
    }
    write_views(path, views)
}

/// As [`write`], of anything that gives tensors.
pub(crate) fn write_views<V: View>(path: &Path, views: Vec<(String, V)>) -> Result<(), TrainError> {
    // transformers asks for this.
    let metadata = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    let as_usual = permissions(path).map_err(|e| TrainError::file(path, e))?;
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(|e| TrainError::file(path, e))?;
    let file = fs::File::open(path).map_err(|e| TrainError::file(path, e))?;
    let done = file.set_permissions(as_usual).and_then(|()| file.sync_all());
    done.map_err(|e| TrainError::file(path, e))
}

/// What new files there may be read by: safetensors puts a private one in the place of `path`.
fn permissions(path: &Path) -> std::io::Result<fs::Permissions> {
    let probe = path.with_extension("new");
    let permissions = fs::File::create(&probe)?.metadata()?.permissions();
    fs::remove_file(&probe)?;
    Ok(permissions)
}

/// Files of a model's folder that go along with new weights.
const COMPANIONS: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
];

/// Writes the parameters as a folder that transformers loads, with what else the folder `source`
/// holds. Weights that are not trained are taken from there. All ranks have to call it, and the
/// first writes.
///
/// # Errors
/// [`TrainError::File`], and `folder` is then as before.
pub fn export(step: &TrainStep, source: &Path, folder: &Path) -> Result<(), TrainError> {
    export_as(step, source, folder, None)
}

/// As [`export`], the parameters rounded to a type.
///
/// # Errors
/// As [`export`].
pub fn export_as(
    step: &TrainStep,
    source: &Path,
    folder: &Path,
    dtype: Option<DType>,
) -> Result<(), TrainError> {
    let is_writer = step.rank().is_first();
    let mut trained = Vec::new();
    for p in step.parameters() {
        let bytes = step.whole_state(&format!("param.{}", p.name))?.unwrap_or_default();
        trained.extend(is_writer.then_some((p, bytes)));
    }
    if !is_writer {
        return Ok(());
    }
    replace_folder(folder, |staging| {
        let mut all = Vec::new();
        for (p, bytes) in trained {
            let (dtype, bytes) = match dtype.filter(|dtype| *dtype != p.dtype) {
                None => (p.dtype, bytes),
                Some(dtype) => {
                    let tensor = Tensor::from_bytes(p.dtype, &p.shape, bytes.to_vec()).cast(dtype);
                    let bytes = tensor.to_bytes();
                    if !is_finite(dtype, &bytes) {
                        let why = format!("`{}` has values that do not fit {dtype}", p.name);
                        return Err(TrainError::file(folder, why));
                    }
                    (dtype, Cow::Owned(bytes))
                }
            };
            all.push((p.name.to_string(), dtype, p.shape.clone(), bytes));
        }
        let frozen = if step.frozen().is_empty() { Vec::new() } else { mapped(source)? };
        let frozen = frozen.iter().map(tensors).collect::<Result<Vec<_>, TrainError>>()?;
        for name in step.frozen() {
            let view = frozen.iter().find_map(|file| file.tensor(name).ok());
            let dtype = view.as_ref().and_then(|view| dtype_of(view.dtype()));
            let (Some(view), Some(dtype)) = (view, dtype) else {
                return Err(TrainError::file(source, format!("has no weight `{name}`")));
            };
            all.push((name.to_string(), dtype, view.shape().to_vec(), view.data().into()));
        }
        let all =
            all.iter().map(|(name, ty, shape, bytes)| (name.clone(), *ty, shape.clone(), &**bytes));
        write(&staging.join(SINGLE), &all.collect::<Vec<_>>())?;
        copy_companions(source, staging)
    })
}

/// Copies what goes along with weights.
pub(crate) fn copy_companions(source: &Path, folder: &Path) -> Result<(), TrainError> {
    for name in COMPANIONS {
        let from = source.join(name);
        if from.is_file() {
            fs::copy(&from, folder.join(name)).map_err(|e| TrainError::file(&from, e))?;
        }
    }
    Ok(())
}

/// Fills a folder beside `folder`, and puts it in its place when it is whole.
pub(crate) fn replace_folder(
    folder: &Path,
    fill: impl FnOnce(&Path) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let staging = folder.with_extension("partial");
    if staging.exists() {
        fs::remove_dir_all(&staging).map_err(|e| TrainError::file(&staging, e))?;
    }
    fs::create_dir_all(&staging).map_err(|e| TrainError::file(&staging, e))?;
    fill(&staging)?;
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(|e| TrainError::file(folder, e))?;
    }
    fs::rename(&staging, folder).map_err(|e| TrainError::file(folder, e))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn weights_may_be_read_by_whoever_reads_other_files() {
        let dir = std::env::temp_dir().join(format!("brolly-weights-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (path, other) = (dir.join(SINGLE), dir.join("other"));
        write(&path, &[("w".to_owned(), DType::F32, vec![1], &[0; 4])]).unwrap();
        fs::write(&other, "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&other));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
        fs::remove_dir_all(dir).unwrap();
    }
}
