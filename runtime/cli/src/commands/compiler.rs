//! Commands that compile.

mod check;
mod compile;
mod opt;
mod options;
mod progress;
mod training;
mod tune;

use std::path::Path;

use driver::{Cache, CompileError};
use ir::artifact::{Artifact, ArtifactError};

use crate::{
    args::CompileOptions,
    context::Context,
    failure::{Failure, Result},
};

pub(crate) use check::check;
pub(crate) use compile::compile;
pub(crate) use opt::opt;
pub(crate) use training::{training_artifact, training_plan};
pub(crate) use tune::tune;

use options::Prepared;
use progress::Shown;

/// The artifact of a model from the user's cache, compiled first where there is none that is whole.
pub(crate) fn cached_artifact(
    model: &Path,
    options: &CompileOptions,
    cx: &Context,
    open: fn(&Path) -> Result<Artifact, ArtifactError>,
) -> Result<Artifact> {
    let cache = Cache::user();
    // The tokenizer's files, which may be large, are read only where there is no artifact yet.
    if let Some(path) = cache.find(model, &options::bare(model, options, cx)?) {
        match open(&path) {
            Ok(artifact) => return Ok(artifact),
            Err(e) => {
                tracing::warn!("{e}; compiling again");
                std::fs::remove_file(&path).map_err(|_| Failure::input(e))?;
            }
        }
    }
    let options = Prepared::new(model, options, cx)?.checked(model)?;
    let progress = Shown::new(model, cx);
    let compiled = |e| failure(model, &e, Vec::new());
    let (path, _) = cache.artifact(model, &options, &progress).map_err(compiled)?;
    open(&path).map_err(Failure::input)
}

/// A failed compile, after problems that were found before it.
fn failure(model: &Path, error: &CompileError, mut problems: Vec<String>) -> Failure {
    if error.is_bug() {
        return Failure::Bug(error.to_string());
    }
    problems.extend(error.problems());
    let headline = format!("{}: {} problems", model.display(), problems.len());
    Failure::inputs(headline, problems)
}
