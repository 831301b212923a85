//! Models as others publish them, brought into the IR.
//!
//! [`import`] takes a Hugging Face folder (`config.json` and safetensors) or an `.onnx` file and
//! returns a typed [`ir::Module`], its weights as views of the mapped files, and a description.
//!
//! A folder is read in three steps that know nothing of each other: `config.json` says what the
//! model is (one short file per family in `models/`, over the shared blocks), the safetensors
//! headers say what tensors there are, and the two are matched by name and shape. Each step
//! reports every problem that it finds; only then is a graph built.
//!
//! Importing decides nothing about speed: it writes the model down as plainly as its definition,
//! with every change of precision a `cast`.

mod blocks;
mod checkpoint;
mod config;
mod decoder;
mod encoder;
mod error;
mod files;
mod fit;
mod folder;
mod huggingface;
mod json;
mod models;
pub mod onnx;
mod rope;
pub mod safetensors;
mod sentence;
mod shapes;
mod stack;

use std::path::Path;

use ir::{DType, ModelInfo, Module, Symbols, Weights};

pub use error::FrontendError;
pub use files::model_files;
pub use huggingface::Description;
pub use models::architectures;
pub use shapes::shapes;

/// How to import a model: the bounds that the compiled form is made for, and how weights are kept.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportOptions {
    /// Storage type of matrices and embeddings, `f32`, `bf16` or `f16`; as the checkpoint stores
    /// them where `None`. Vectors (norms, biases) always stay as they are stored.
    pub dtype: Option<DType>,
    /// Longest sequence; by default what the model was made for, at most 4096.
    pub max_seq_len: Option<u64>,
    /// Most tokens of one step. An encoder takes at least one longest sequence.
    pub max_batch_tokens: u64,
    /// Most sequences of one step.
    pub max_sequences: u64,
    /// Most tokens of one step whose logits are wanted.
    pub logit_rows: u64,
    /// Bounds of the sizes of an ONNX graph's inputs, by name; see [`onnx`] for the others.
    pub bounds: Symbols,
    /// Imports the shape of a model alone: weights are numbers that follow from this seed, matrices
    /// bf16 unless another type is asked for.
    pub random: Option<u64>,
}

impl Default for ImportOptions {
    fn default() -> ImportOptions {
        ImportOptions {
            dtype: None,
            max_seq_len: None,
            max_batch_tokens: 512,
            max_sequences: 64,
            logit_rows: 64,
            bounds: Symbols::new(),
            random: None,
        }
    }
}

/// An imported model.
pub struct Imported {
    /// The graph in its source form: entry `forward`, `embed` or `main` (see [`ir::ModelKind`]).
    pub module: Module,
    /// The module's weights, read when they are loaded.
    pub weights: Box<dyn Weights>,
    /// What a runtime must know of the model.
    pub info: ModelInfo,
}

/// Imports a Hugging Face folder of a language model to be trained, with or without a checkpoint.
/// Vectors are f32, and matrices of the `dtype` that is asked for, f32 where none is.
///
/// # Errors
/// Every problem found, see [`FrontendError`].
pub fn import_to_train(
    folder: &Path,
    options: &ImportOptions,
) -> Result<Imported, Vec<FrontendError>> {
    huggingface::import_to_train(folder, options)
}

/// Imports a Hugging Face folder or an `.onnx` file. With [`ImportOptions::random`] the path may be
/// one of [`shapes`] too, and a folder need hold `config.json` alone.
///
/// # Errors
/// Every problem found, see [`FrontendError`].
pub fn import(path: &Path, options: &ImportOptions) -> Result<Imported, Vec<FrontendError>> {
    let onnx = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"));
    if options.random.is_some() {
        return huggingface::import_shape(path, options);
    }
    match std::fs::metadata(path) {
        Err(e) => Err(vec![FrontendError::file(path, format!("cannot be read: {e}"))]),
        Ok(meta) if meta.is_dir() => huggingface::import(path, options),
        Ok(_) if onnx => onnx::import(path, options),
        Ok(_) => Err(vec![FrontendError::file(
            path,
            "is neither a model folder (with config.json and safetensors) nor an .onnx file",
        )]),
    }
}
