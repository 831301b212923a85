//! Commands that compile.

mod check;
mod compile;
mod opt;
mod options;
mod progress;

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

use options::Prepared;
use progress::Shown;

/// The artifact of a model from the user's cache, compiled first where there is none that is whole.
pub(crate) fn cached_artifact(
    model: &Path,
    options: &CompileOptions,
    cx: &Context,
    open: fn(&Path) -> Result<Artifact, ArtifactError>,
) -> Result<Artifact> {
    let options = Prepared::new(model, options)?.checked(model)?;
    let cache = Cache::user();
    let progress = Shown::new(model, cx);
    let compiled = |e| failure(model, &e, Vec::new());
    let (path, fresh) = cache.artifact(model, &options, &progress).map_err(compiled)?;
    match open(&path) {
        Err(e) if fresh.is_none() => {
            tracing::warn!("{e}; compiling again");
            std::fs::remove_file(&path).map_err(|_| Failure::input(e))?;
            let (path, _) = cache.artifact(model, &options, &progress).map_err(compiled)?;
            open(&path).map_err(Failure::input)
        }
        opened => opened.map_err(Failure::input),
    }
}

/// A failed compile, after problems that were found before it.
fn failure(model: &Path, error: &CompileError, mut problems: Vec<String>) -> Failure {
    match error {
        CompileError::Internal { .. } | CompileError::Codegen(_) => {
            return Failure::Bug(error.to_string());
        }
        error => problems.extend(error.problems()),
    }
    let headline = format!("{}: {} problems", model.display(), problems.len());
    Failure::inputs(headline, problems)
}
