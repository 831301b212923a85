//! Hugging Face folders: `config.json`, safetensors and, for encoders, sentence-transformers'
//! files.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use indexmap::IndexMap;
use ir::{DType, ModelInfo, ModelKind, Module, Tensor, TensorType};

use crate::{
    FrontendError, ImportOptions, Imported,
    blocks::{signed, size},
    checkpoint::{Checkpoint, ModelTensors},
    config::{Errors, Fields},
    decoder::HEAD,
    fit, json,
    models::{self, Family, Model},
    sentence, shapes,
};

/// A model's architecture, read from its config alone.
pub struct Description {
    file: PathBuf,
    family: &'static Family,
    architecture: String,
    model: Model,
    max_seq_len: u64,
}

impl Description {
    /// Reads the text of a `config.json`; `file` names it in messages.
    ///
    /// # Errors
    /// Every field and option that is missing, of the wrong kind, out of range or not supported.
    pub fn parse(
        file: &Path,
        text: &[u8],
        options: &ImportOptions,
    ) -> Result<Description, Vec<FrontendError>> {
        let mut problems = check_options(options);
        let parsed = json::object(file, text).and_then(|map| {
            let errors = Errors::default();
            let fields = Fields::new(file, &map, &errors);
            let read = models::find_family(&fields).and_then(|(family, architecture)| {
                if fields.get("quantization_config").is_some() {
                    let why = "is set, but quantised checkpoints are not supported";
                    fields.refuse("quantization_config", why);
                }
                Some((family, architecture, (family.read)(&fields)?))
            });
            match read {
                Some(read) if errors.borrow().is_empty() => Ok(read),
                _ => Err(errors.into_inner()),
            }
        });
        match parsed {
            Ok((family, architecture, mut model)) => {
                let (positions, only) = model.positions();
                let max_seq_len = options.max_seq_len.unwrap_or(positions.min(4096));
                if only && max_seq_len > positions {
                    let why = format!("is {max_seq_len}, but the model has {positions} positions");
                    problems.push(FrontendError::option("max_seq_len", why));
                }
                model.layers_mut().drop_idle_windows(max_seq_len);
                if problems.is_empty() {
                    let file = file.into();
                    return Ok(Description { file, family, architecture, model, max_seq_len });
                }
            }
            Err(mut found) => problems.append(&mut found),
        }
        Err(problems)
    }

    /// What the model is, for messages: `LlamaForCausalLM with 16 layers`.
    fn name(&self) -> String {
        format!("{} with {} layers", self.architecture, self.model.layers().blocks.len())
    }

    /// Prefixes that tensors may have, the one that transformers writes first.
    fn prefixes(&self) -> [&'static str; 2] {
        match self.model {
            Model::Decoder(_) => [self.family.prefix, ""],
            Model::Encoder(_) => ["", self.family.prefix],
        }
    }

    /// Finds the model's tensors in a checkpoint, and the prefix of their names.
    fn select(
        &mut self,
        checkpoint: &Checkpoint,
    ) -> Result<(&'static str, ModelTensors), Vec<FrontendError>> {
        let family = self.family;
        let prefix = checkpoint.prefix(self.prefixes(), |p| self.model.slots(p));
        let head = format!("{HEAD}.weight");
        let mut embedding = String::new();
        if let Model::Decoder(decoder) = &mut self.model
            && decoder.tied
        {
            embedding = format!("{prefix}{}", decoder.embedding);
            // As transformers does: a head that differs from the embeddings is not tied to them.
            if let (Some(a), Some(b)) = (checkpoint.get(&embedding), checkpoint.get(&head))
                && (a.dtype(), a.shape(), a.as_bytes()) != (b.dtype(), b.shape(), b.as_bytes())
            {
                tracing::warn!("{head} differs from {embedding}, so they are not tied");
                decoder.tied = false;
            }
        }
        let alias = |name: &str| {
            // A tied matrix may have been stored under its other name alone.
            if name == embedding {
                return Some(head.clone());
            }
            let (ours, theirs) = family.aliases.iter().find(|(ours, _)| name.ends_with(ours))?;
            Some(format!("{}{theirs}", name.strip_suffix(ours)?))
        };
        let tied = matches!(&self.model, Model::Decoder(m) if m.tied);
        let ignored = |name: &str| {
            (tied && name == head)
                || (family.ignored)(name.strip_prefix(family.prefix).unwrap_or(name))
        };
        let slots = self.model.slots(prefix);
        Ok((prefix, checkpoint.select(&self.name(), &slots, alias, ignored)?))
    }

    /// The module for weights that are all stored as `stored`, and its description: what can be
    /// known of a model before there is a checkpoint.
    ///
    /// # Errors
    /// Tensors that fit nowhere.
    pub fn module(
        &self,
        stored: DType,
        options: &ImportOptions,
    ) -> Result<(Module, ModelInfo), Vec<FrontendError>> {
        self.module_of(|_| stored, options)
    }

    /// As [`module`](Self::module), with the type of weights of each rank.
    fn module_of(
        &self,
        stored: impl Fn(usize) -> DType,
        options: &ImportOptions,
    ) -> Result<(Module, ModelInfo), Vec<FrontendError>> {
        let [prefix, _] = self.prefixes();
        let types = self.model.slots(prefix).into_iter().map(|slot| {
            let dtype = stored(slot.shape.len());
            let shape = slot.shape.into_iter().map(size);
            (slot.path.into(), TensorType::new(dtype, shape))
        });
        self.build(prefix, types.collect(), options)
    }

    /// Builds the module for weights of these types.
    fn build(
        &self,
        prefix: &str,
        weights: IndexMap<Arc<str>, TensorType>,
        options: &ImportOptions,
    ) -> Result<(Module, ModelInfo), Vec<FrontendError>> {
        let fail = |reason: String| FrontendError::file(&self.file, reason);
        let mut module = Module::new(self.family.model_type);
        module.weights = weights;
        let (dtype, max) = (options.dtype, self.max_seq_len);
        let tokens = match &self.model {
            Model::Decoder(_) => options.max_batch_tokens,
            // An encoder sees a sequence whole or not at all.
            Model::Encoder(_) => options.max_batch_tokens.max(max),
        };
        module.symbol("T", 1, signed(tokens));
        module.symbol("S", 1, signed(options.max_sequences));
        let built = match &self.model {
            Model::Decoder(m) => {
                module.symbol("R", 1, signed(options.logit_rows));
                m.build(&mut module, prefix, dtype, max)
            }
            Model::Encoder(m) => m.build(&mut module, prefix, dtype),
        };
        built.map_err(|e| vec![fail(format!("does not fit together: {e}"))])?;
        let oversized = fit::oversized(&module);
        if !oversized.is_empty() {
            return Err(oversized.into_iter().map(fail).collect());
        }
        let info = self.info(&module);
        Ok((module, info))
    }

    fn info(&self, module: &Module) -> ModelInfo {
        let (kind, vocab_size, hidden_size) = match &self.model {
            Model::Decoder(m) => (ModelKind::Decoder, m.vocab, m.hidden),
            Model::Encoder(m) => (ModelKind::Encoder, m.vocab, m.hidden),
        };
        let elements = |t: &TensorType| t.elements().as_const().unwrap_or(0).unsigned_abs();
        ModelInfo {
            architecture: self.architecture.clone(),
            kind,
            vocab_size,
            hidden_size,
            max_seq_len: self.max_seq_len,
            parameters: module.weights.values().map(elements).sum(),
        }
    }
}

/// Imports a folder.
///
/// # Errors
/// Every problem of its files and of the options.
pub(crate) fn import(
    folder: &Path,
    options: &ImportOptions,
) -> Result<Imported, Vec<FrontendError>> {
    let config = folder.join("config.json");
    let text = json::read_bytes(&config);
    let encoder = text.as_ref().is_ok_and(|text| is_encoder(&config, text));
    let sentence = if encoder { sentence::read(folder).map(Some) } else { Ok(None) };
    let description = text.and_then(|text| Description::parse(&config, &text, options));
    let found = (description, sentence, Checkpoint::open(folder));
    let (mut description, sentence, checkpoint) = match found {
        (Ok(description), Ok(sentence), Ok(checkpoint)) => (description, sentence, checkpoint),
        (a, b, c) => {
            let errors = [a.err(), b.err(), c.err()];
            return Err(errors.into_iter().flatten().flatten().collect());
        }
    };
    if let (Model::Encoder(encoder), Some((pooling, length))) = (&mut description.model, sentence) {
        encoder.pooling = pooling;
        description.max_seq_len = length.unwrap_or(u64::MAX).min(description.max_seq_len);
    }
    let (prefix, weights) = description.select(&checkpoint)?;
    let ty = |t: &Tensor| TensorType::new(t.dtype(), t.shape().iter().copied());
    let types = weights.iter().map(|(name, t)| (name.clone(), ty(t))).collect();
    let (module, info) = description.build(prefix, types, options)?;
    Ok(Imported { module, weights: Box::new(weights), info })
}

/// Imports a shape: a folder's `config.json`, or one that has a name. Nothing is known of weights.
///
/// # Errors
/// As [`import`]; that there is no such folder or name.
pub(crate) fn import_shape(
    path: &Path,
    options: &ImportOptions,
) -> Result<Imported, Vec<FrontendError>> {
    let named = path.to_str().and_then(shapes::find);
    let (file, text) = match named {
        Some(text) if !path.exists() => (path.to_path_buf(), text.as_bytes().to_vec()),
        _ if path.is_dir() => {
            let file = path.join("config.json");
            let text = json::read_bytes(&file)?;
            (file, text)
        }
        _ => {
            let known: Vec<&str> = shapes::shapes().collect();
            let known = known.join(", ");
            let why = format!("is no shape: give a folder with config.json, or one of {known}");
            return Err(vec![FrontendError::file(path, why)]);
        }
    };
    let description = Description::parse(&file, &text, options)?;
    let dtype = |rank: usize| match rank {
        0 | 1 => DType::F32,
        _ => options.dtype.unwrap_or(DType::Bf16),
    };
    let (module, info) = description.module_of(dtype, options)?;
    Ok(Imported { module, weights: Box::new(ModelTensors::new()), info })
}

/// Imports a folder of a language model to be trained: whatever the checkpoint stores, matrices are
/// of the type that is asked for, f32 where none is, and vectors are f32. There need not be a
/// checkpoint.
///
/// # Errors
/// Every problem of its files and of the options; that the model is none of language.
pub(crate) fn import_to_train(
    folder: &Path,
    options: &ImportOptions,
) -> Result<Imported, Vec<FrontendError>> {
    let config = folder.join("config.json");
    let text = json::read_bytes(&config)?;
    let mut description = Description::parse(&config, &text, options)?;
    if matches!(description.model, Model::Encoder(_)) {
        let why = "is of an encoder; language models are what is trained".to_owned();
        return Err(vec![FrontendError::file(&config, why)]);
    }
    let dtype = |rank: usize| match rank {
        0 | 1 => DType::F32,
        _ => options.dtype.unwrap_or(DType::F32),
    };
    if !Checkpoint::is_in(folder) {
        let (module, info) = description.module_of(dtype, options)?;
        return Ok(Imported { module, weights: Box::new(ModelTensors::new()), info });
    }
    let (prefix, weights) = description.select(&Checkpoint::open(folder)?)?;
    let ty = |t: &Tensor| TensorType::new(dtype(t.rank()), t.shape().iter().copied());
    let types = weights.iter().map(|(name, t)| (name.clone(), ty(t))).collect();
    let (module, info) = description.build(prefix, types, options)?;
    let stored = |(name, t): (Arc<str>, Tensor)| match dtype(t.rank()) {
        dtype if dtype == t.dtype() => (name, t),
        dtype => (name, t.cast(dtype)),
    };
    let weights: ModelTensors = weights.into_iter().map(stored).collect();
    Ok(Imported { module, weights: Box::new(weights), info })
}

/// Whether a config, whatever else is wrong with it, is that of an encoder.
fn is_encoder(file: &Path, text: &[u8]) -> bool {
    let Ok(map) = json::object(file, text) else { return false };
    let errors = Errors::default();
    models::find_family(&Fields::new(file, &map, &errors)).is_some_and(|(family, _)| family.encoder)
}

fn check_options(options: &ImportOptions) -> Vec<FrontendError> {
    let mut out = Vec::new();
    if let Some(dtype) = options.dtype
        && !matches!(dtype, DType::F32 | DType::Bf16 | DType::F16)
    {
        let why = format!("is {dtype}, expected f32, bf16 or f16");
        out.push(FrontendError::option("dtype", why));
    }
    for name in options.bounds.keys() {
        let why = format!("has `{name}`, which is no size of this model; other options bound it");
        out.push(FrontendError::option("bounds", why));
    }
    let max = i32::MAX.unsigned_abs().into();
    for (name, n) in [
        ("max_seq_len", options.max_seq_len.unwrap_or(1)),
        ("max_batch_tokens", options.max_batch_tokens),
        ("max_sequences", options.max_sequences),
        ("logit_rows", options.logit_rows),
    ] {
        if !(1..=max).contains(&n) {
            let why = format!("is {n}, expected an integer from 1 to {max}");
            out.push(FrontendError::option(name, why));
        }
    }
    out
}
