//! Low-rank adapters: where they start from, and what is made of them in the end.
//!
//! A run's adapters become a folder in PEFT's format, and a folder of the model with adapters
//! merged into its weights. Merging is a product and a sum, which entries of the training artifact
//! compute, one for each shape: the runtime has no arithmetic of its own, and all threads take
//! part. A merged weight is computed when its turn comes to be written, in f32, and rounded to the
//! type in which the model has it.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
};

use exec::{Executable, Model, States};
use ir::{DType, Tensor};
use safetensors::{Dtype, View};
use serde::Deserialize;

use crate::{
    LoraConfig, LoraTargets, TrainError, TrainStep,
    init::Numbers,
    weights::{
        SINGLE, copy_companions, dtype_of, mapped, replace_folder, tensors, write, write_views,
    },
};

/// What names of entries that merge begin with.
pub(crate) const MERGE: &str = "merge.";

const DOWN: &str = ".lora_A.weight";
const UP: &str = ".lora_B.weight";

/// Whether a parameter is a factor of an adapter.
pub(crate) fn is_factor(name: &str) -> bool {
    name.ends_with(DOWN) || name.ends_with(UP)
}

/// Sets adapters to what they start from, as PEFT does: `A` uniform in `±1/√in`, the
/// `kaiming_uniform_(a = √5)` of He et al. 2015, and `B` zero, so that nothing changes at first.
///
/// An adapter's numbers follow from the seed and its name alone.
///
/// # Errors
/// [`TrainError::Exec`] if they are on a GPU that fails.
pub fn initialize_lora(step: &mut TrainStep, seed: u64) -> Result<(), TrainError> {
    for p in step.parameters().to_vec().iter().filter(|p| is_factor(&p.name)) {
        let bytes = if p.name.ends_with(DOWN) {
            let bound = p.shape.last().map_or(1.0, |inputs| (*inputs as f64).sqrt().recip());
            let mut numbers = Numbers::new(seed, &p.name);
            let count = p.shape.iter().product();
            let values = (0..count).map(|_| bound * numbers.uniform());
            Tensor::from_f64s(p.dtype, &p.shape, values).to_bytes()
        } else {
            Tensor::from_f64s(p.dtype, &p.shape, vec![0.0; p.shape.iter().product()]).to_bytes()
        };
        step.set_state(&format!("param.{}", p.name), &bytes)?;
    }
    Ok(())
}

/// What a model's `config.json` says of the names and the order of its matrices.
#[derive(Deserialize)]
struct Architecture {
    model_type: Option<String>,
}

impl Architecture {
    fn read(model: &Path) -> Result<Architecture, TrainError> {
        let path = model.join("config.json");
        let text = fs::read(&path).map_err(|e| TrainError::file(&path, e))?;
        serde_json::from_slice(&text).map_err(|e| TrainError::file(&path, e))
    }

    fn is_gpt2(&self) -> bool {
        self.model_type.as_deref() == Some("gpt2")
    }

    /// The module of transformers' model that a weight belongs to; checkpoints of the model without
    /// its head leave the first part out.
    fn module(&self, name: &str) -> String {
        let first = if self.is_gpt2() { "transformer." } else { "model." };
        let is_whole = name.starts_with(first) || name.starts_with("lm_head.");
        if is_whole { name.to_owned() } else { format!("{first}{name}") }
    }
}

/// The elements of all factors by name, which all ranks have to ask for.
fn factors(step: &TrainStep) -> Result<BTreeMap<&str, Vec<f32>>, TrainError> {
    let mut all = BTreeMap::new();
    for p in step.parameters().iter().filter(|p| is_factor(&p.name)) {
        let bytes = step.whole_state(&format!("param.{}", p.name))?.unwrap_or_default();
        all.insert(&*p.name, bytemuck::pod_collect_to_vec(&bytes));
    }
    Ok(all)
}

/// Writes adapters as a folder that PEFT loads: `adapter_config.json` and
/// `adapter_model.safetensors`. All ranks have to call it, and the first writes.
///
/// # Errors
/// [`TrainError::File`], and `folder` is then as before.
pub fn export_lora(
    step: &TrainStep,
    lora: &LoraConfig,
    model: &Path,
    folder: &Path,
) -> Result<(), TrainError> {
    let architecture = Architecture::read(model)?;
    let elements = factors(step)?;
    if !step.rank().is_first() {
        return Ok(());
    }
    let factors = || step.parameters().iter().filter(|p| is_factor(&p.name));
    let named = |p: &crate::ParameterInfo| {
        let name = format!("base_model.model.{}", architecture.module(&p.name));
        (name, p.dtype, p.shape.clone(), bytemuck::cast_slice(&elements[&*p.name]))
    };
    let last = |p: &crate::ParameterInfo| {
        let module = p.name.strip_suffix(DOWN)?;
        module.rsplit('.').next().map(str::to_owned)
    };
    let targets: BTreeSet<String> = match &lora.targets {
        LoraTargets::AllLinear => factors().filter_map(last).collect(),
        LoraTargets::Named(names) => names.iter().cloned().collect(),
    };
    #[allow(clippy::cast_possible_truncation, reason = "a whole number of few digits")]
    let alpha = match lora.alpha.fract() == 0.0 && lora.alpha < 1e9 {
        true => serde_json::json!(lora.alpha as i64),
        false => serde_json::json!(lora.alpha),
    };
    let config = serde_json::json!({
        "base_model_name_or_path": model.display().to_string(),
        "bias": "none",
        "fan_in_fan_out": architecture.is_gpt2(),
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_rslora": lora.rslora,
    });
    replace_folder(folder, |staging| {
        let path = staging.join("adapter_config.json");
        let text = serde_json::to_vec_pretty(&config).map_err(|e| TrainError::file(&path, e))?;
        fs::write(&path, text).map_err(|e| TrainError::file(&path, e))?;
        let tensors: Vec<_> = factors().map(named).collect();
        write(&staging.join("adapter_model.safetensors"), &tensors)
    })
}

/// Writes the model with adapters merged into its weights as a folder that transformers loads, with
/// what else the folder `model` holds. Weights keep their types. All ranks have to call it, and the
/// first writes.
///
/// # Errors
/// [`TrainError::File`] and [`TrainError::Exec`], and `folder` is then as before.
pub fn export_merged(step: &TrainStep, model: &Path, folder: &Path) -> Result<(), TrainError> {
    let is_gpt2 = Architecture::read(model)?.is_gpt2();
    let factors = factors(step)?;
    if !step.rank().is_first() {
        return Ok(());
    }
    let mut left: BTreeSet<&str> =
        step.parameters().iter().filter_map(|p| p.name.strip_suffix(DOWN)).collect();
    let merger = RefCell::new(Merger::new(step.model().clone()));
    let files = mapped(model)?;
    let files = files.iter().map(tensors).collect::<Result<Vec<_>, TrainError>>()?;
    let mut views = Vec::new();
    for (name, view) in files.iter().flat_map(|file| file.iter()) {
        let module = name.strip_suffix(".weight").filter(|module| left.remove(module));
        let factor = |end: &str| {
            let factor = module.and_then(|module| factors.get(format!("{module}{end}").as_str()));
            factor.map(Vec::as_slice)
        };
        let update = factor(DOWN).zip(factor(UP));
        let update = update.map(|(down, up)| Update {
            down,
            up,
            // The projections of GPT-2 are stored the other way round, its head is not.
            is_turned: !is_gpt2 || module == Some("lm_head"),
            merger: &merger,
        });
        let view = Weight {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            stored: view.data(),
            update,
        };
        views.push((name.to_owned(), view));
    }
    if let Some(name) = left.first() {
        return Err(TrainError::file(model, format!("has no weight `{name}.weight`")));
    }
    replace_folder(folder, |staging| {
        write_views(&staging.join(SINGLE), views)?;
        if let Some(error) = merger.borrow_mut().error.take() {
            return Err(error);
        }
        copy_companions(model, staging)
    })
}

/// A weight as it is written.
struct Weight<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    stored: &'a [u8],
    update: Option<Update<'a>>,
}

struct Update<'a> {
    down: &'a [f32],
    up: &'a [f32],
    is_turned: bool,
    merger: &'a RefCell<Merger>,
}

impl View for Weight<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let Some(update) = &self.update else { return Cow::Borrowed(self.stored) };
        let mut merger = update.merger.borrow_mut();
        match merger.merge(self, update) {
            Ok(merged) => Cow::Owned(merged),
            Err(e) => {
                merger.error.get_or_insert(e);
                Cow::Borrowed(self.stored)
            }
        }
    }

    fn data_len(&self) -> usize {
        self.stored.len()
    }
}

/// The entries that merge, loaded as they are needed, and what went wrong first.
struct Merger {
    model: Arc<Model>,
    entries: BTreeMap<String, Executable>,
    error: Option<TrainError>,
}

impl Merger {
    fn new(model: Arc<Model>) -> Merger {
        Merger { model, entries: BTreeMap::new(), error: None }
    }

    /// The bytes of a weight with its update.
    fn merge(&mut self, weight: &Weight<'_>, update: &Update<'_>) -> Result<Vec<u8>, TrainError> {
        let told = |why: &str| TrainError::file(Path::new(SINGLE), why.to_owned());
        let (Some(dtype), &[rows, columns]) = (dtype_of(weight.dtype), &weight.shape[..]) else {
            return Err(told("an adapted weight is no matrix of floats"));
        };
        let entry = match update.is_turned {
            true => format!("{MERGE}{columns}x{rows}.turned"),
            false => format!("{MERGE}{rows}x{columns}"),
        };
        if !self.entries.contains_key(&entry) {
            // No size depends on a symbol, of which a program has all.
            let program = self.model.artifact().manifest().program(&entry);
            let symbols = program.into_iter().flat_map(|program| &program.symbols);
            let symbols: Vec<(&str, i64)> = symbols.map(|(name, b)| (&**name, b.lo)).collect();
            let loaded = Executable::load(&self.model, &entry, &symbols)?;
            self.entries.insert(entry.clone(), loaded);
        }
        let exe = self.entries.get_mut(&entry).ok_or_else(|| told("no entry"))?;
        let stored = Tensor::from_bytes(dtype, &weight.shape, weight.stored.to_vec());
        let wide = stored.cast(DType::F32).to_bytes();
        let inputs: [(&str, &[u8]); 3] = [
            ("w", &wide),
            ("a", bytemuck::cast_slice(update.down)),
            ("b", bytemuck::cast_slice(update.up)),
        ];
        exe.run(&mut States::none(), &[], &inputs)?;
        let merged = exe.output::<f32>("merged")?;
        Ok(Tensor::from_f32s(&weight.shape, merged).cast(dtype).to_bytes())
    }
}
