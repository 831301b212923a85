//! From what a command is given, an artifact or a model, to an open artifact.

use std::{path::Path, sync::Arc};

use ir::artifact::Artifact;

use crate::{
    args::{CompileOptions, Source},
    commands::cached_artifact,
    context::Context,
    failure::{Failure, Result},
};

/// Opens an artifact that this machine can run, compiling a model first.
///
/// # Errors
/// What is wrong with the file or the model; compile options for what is compiled already.
pub(crate) fn open(source: &Source, cx: &Context) -> Result<Arc<Artifact>> {
    open_with(source, cx, Artifact::open)
}

/// As [`open`], to look at only: the code may be for another machine.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_foreign(source: &Source, cx: &Context) -> Result<Arc<Artifact>> {
    open_with(source, cx, Artifact::open_foreign)
}

/// Whether a path is that of a model: a folder or an ONNX file.
pub(crate) fn is_model(path: &Path) -> bool {
    path.is_dir() || path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"))
}

type Open = fn(&Path) -> Result<Artifact, ir::artifact::ArtifactError>;

fn open_with(source: &Source, cx: &Context, open: Open) -> Result<Arc<Artifact>> {
    let path = &source.path;
    if is_model(path) || source.options.random_weights {
        return cached_artifact(path, &source.options, cx, open).map(Arc::new);
    }
    let artifact = open(path).map_err(Failure::input)?;
    if let Some(flag) = first_set(&source.options) {
        return Err(Failure::Usage(format!(
            "{flag} is chosen when a model is compiled, and {} is compiled already",
            path.display()
        )));
    }
    Ok(Arc::new(artifact))
}

/// The first option that is given.
pub(crate) fn first_set(options: &CompileOptions) -> Option<&'static str> {
    let CompileOptions {
        target,
        target_cpu,
        dtype,
        quantize,
        kv_dtype,
        max_seq_len,
        max_batch_tokens,
        max_sequences,
        bounds,
        no_kernel_cache,
        random_weights,
        gpu_library,
        tuning,
    } = options;
    let flags = [
        ("--target", !target.is_empty()),
        ("--target-cpu", target_cpu.is_some()),
        ("--dtype", dtype.is_some()),
        ("--quantize", quantize.is_some()),
        ("--kv-dtype", kv_dtype.is_some()),
        ("--max-seq-len", max_seq_len.is_some()),
        ("--max-batch-tokens", max_batch_tokens.is_some()),
        ("--max-sequences", max_sequences.is_some()),
        ("--bound", !bounds.is_empty()),
        ("--no-kernel-cache", *no_kernel_cache),
        ("--random-weights", *random_weights),
        ("--gpu-library", gpu_library.is_some()),
        ("--tuning", tuning.is_some()),
    ];
    flags.into_iter().find(|(_, is_set)| *is_set).map(|(flag, _)| flag)
}
