//! What the runtime-only binary says where a compiler would be needed.

use std::{path::Path, sync::Arc};

use ir::artifact::{Artifact, ArtifactError};

use crate::{
    args::{Check, Chosen, Compile, CompileOptions, Opt, Tune},
    context::Context,
    failure::{Failure, Result},
};

pub(crate) fn cached_artifact(
    model: &Path,
    _: &CompileOptions,
    _: &Context,
    _: fn(&Path) -> Result<Artifact, ArtifactError>,
) -> Result<Artifact> {
    let model = model.display();
    Err(Failure::input(format!(
        "{model}: is a model, and this brolly is the runtime alone; compile it with the full \
         brolly, `brolly compile {model} -o FILE`, and give FILE here"
    )))
}

pub(crate) fn training_plan(_: &train::TrainConfig, _: &Context) -> Result<Arc<Artifact>> {
    Err(step_is_missing())
}

pub(crate) fn training_artifact(
    _: &train::TrainConfig,
    _: Option<u64>,
    _: &[Chosen],
    _: &Context,
) -> Result<Arc<Artifact>> {
    Err(step_is_missing())
}

fn step_is_missing() -> Failure {
    Failure::Usage(
        "a run's step has to be compiled, and this brolly is the runtime alone: compile it with the \
         full brolly, `brolly compile CONFIG.toml -o FILE`, and give --artifact FILE"
            .to_owned(),
    )
}

pub(crate) fn compile(_: &Compile, _: &Context) -> Result<()> {
    Err(no_compiler("compile"))
}

pub(crate) fn check(_: &Check, _: &Context) -> Result<()> {
    Err(no_compiler("check"))
}

pub(crate) fn opt(_: &Opt, _: &Context) -> Result<()> {
    Err(no_compiler("opt"))
}

pub(crate) fn tune(_: &Tune, _: &Context) -> Result<()> {
    Err(no_compiler("tune"))
}

fn no_compiler(command: &str) -> Failure {
    Failure::Usage(format!(
        "`{command}` needs the compiler, and this brolly is the runtime alone (built with \
         --no-default-features); use the full brolly"
    ))
}
