//! The artifact that a run's step comes from.

use std::sync::Arc;

use ir::artifact::Artifact;
use serde::Deserialize;
use train::{StepSettings, TrainConfig};

use super::failure;
use crate::{
    args::{Chosen, Train},
    commands::training_artifact,
    context::Context,
    failure::{Failure, Result},
};

/// What an artifact says of the run that it was compiled for.
#[derive(Deserialize)]
struct Told {
    training: StepSettings,
}

/// Whether the step is to be compiled for GPUs.
pub(super) fn is_for_gpus(args: &Train) -> bool {
    args.artifact.is_none() && args.target.iter().any(|chosen| *chosen != Chosen::Cpu)
}

/// The artifact that is asked for, which must be for such a configuration; where none is, the
/// user's cache has it, or it is compiled into it, for that many bytes of memory if the
/// configuration says nothing.
pub(super) fn open(
    config: &TrainConfig,
    args: &Train,
    memory: Option<u64>,
    cx: &Context,
) -> Result<Arc<Artifact>> {
    let Some(file) = args.artifact.as_deref() else {
        return training_artifact(config, memory, &args.target, cx);
    };
    let artifact = Artifact::open(file).map_err(Failure::input)?;
    let Ok(Told { training }) = artifact.text::<Told>() else {
        return Err(Failure::input(format!(
            "--artifact {}: holds no training step; `brolly compile CONFIG.toml -o FILE` makes one \
             that does",
            file.display()
        )));
    };
    let wanted = StepSettings::of(config).map_err(failure)?;
    let differences = wanted.differences(&training);
    if differences.is_empty() {
        return Ok(Arc::new(artifact));
    }
    let file = file.display();
    let headline = format!("--artifact {file}: is for another step; compile it again");
    let differences = differences.into_iter().map(|text| format!("{file}: {text}"));
    Err(Failure::inputs(headline, differences.collect()))
}
