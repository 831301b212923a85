//! From a training configuration to the compiled step.

use std::sync::Arc;

use driver::{Cache, CompileError, CompileOptions, Group, Keep, Lora, Training, Update, Zero};
use ir::artifact::Artifact;
use train::{LoraTargets, Optimizer, Recompute, StepSettings, TrainConfig};

use super::{Shown, failure, options};
use crate::{
    args,
    context::Context,
    failure::{Failure, Result},
    source,
};

/// The training artifact of a configuration, from the user's cache or compiled into it.
///
/// `memory` is what a rank may use where the configuration says nothing.
pub(crate) fn training_artifact(
    config: &TrainConfig,
    memory: Option<u64>,
    target: &[args::Chosen],
    cx: &Context,
) -> Result<Arc<Artifact>> {
    let flags = args::CompileOptions { target: target.to_vec(), ..Default::default() };
    cached(config, training_options(config, &flags, cx)?, memory, cx)
}

/// As [`training_artifact`], to be looked at: it may take more memory than there is.
pub(crate) fn training_plan(config: &TrainConfig, cx: &Context) -> Result<Arc<Artifact>> {
    let options = training_options(config, &args::CompileOptions::default(), cx)?;
    cached(config, CompileOptions { is_plan: true, ..options }, None, cx)
}

fn cached(
    config: &TrainConfig,
    mut options: CompileOptions,
    memory: Option<u64>,
    cx: &Context,
) -> Result<Arc<Artifact>> {
    let cache = Cache::user();
    if let Some(training) = &mut options.training {
        training.memory = training.memory.or(memory);
    }
    let progress = Shown::new(&config.model, cx);
    let compiled = |e| match e {
        CompileError::Targets(problems) => Failure::Config(problems.join("\n")),
        e => failure(&config.model, &e, Vec::new()),
    };
    let (path, _) = cache.artifact(&config.model, &options, &progress).map_err(compiled)?;
    Artifact::open(&path).map(Arc::new).map_err(Failure::input)
}

/// How the step of a configuration is compiled. Of the flags those hold that say for which
/// machine; the others a configuration decides itself.
pub(super) fn training_options(
    config: &TrainConfig,
    flags: &args::CompileOptions,
    cx: &Context,
) -> Result<CompileOptions> {
    let machine = args::CompileOptions {
        target: flags.target.clone(),
        target_cpu: flags.target_cpu,
        no_kernel_cache: flags.no_kernel_cache,
        tuning: flags.tuning.clone(),
        ..args::CompileOptions::default()
    };
    let others = args::CompileOptions {
        target: Vec::new(),
        target_cpu: None,
        no_kernel_cache: false,
        tuning: None,
        ..flags.clone()
    };
    if let Some(flag) = source::first_set(&others) {
        return Err(Failure::Usage(format!(
            "{flag} is for a model: a configuration says itself what is trained"
        )));
    }
    let options = options::bare(&config.model, &machine, cx)?;
    let settings = StepSettings::of(config).map_err(Failure::input)?;
    let tokens = config.data.seq_len.saturating_mul(config.data.micro_batch) as u64;
    let mut import = options.import.clone();
    import.max_seq_len = Some(config.data.seq_len as u64);
    import.max_batch_tokens = tokens;
    // Documents may be as short as a token.
    import.max_sequences = tokens;
    import.logit_rows = tokens;
    import.dtype = config.train.dtype.narrow();
    Ok(CompileOptions {
        import,
        training: Some(training(config)?),
        samples: config.eval.as_ref().is_some_and(|eval| eval.sequences() > 0),
        text: serde_json::json!({ "training": settings }),
        ..options
    })
}

fn training(config: &TrainConfig) -> Result<Training> {
    let weight_decay = config.optimizer.weight_decay;
    let mut others = None;
    let update = match config.optimizer.rule {
        Optimizer::Adamw { betas, eps } => Update::AdamW { betas, eps, weight_decay },
        Optimizer::Lion { betas } => Update::Lion { betas, weight_decay },
        Optimizer::Sgd { momentum, nesterov } => Update::Sgd { momentum, nesterov, weight_decay },
        Optimizer::Adafactor { eps, clip_threshold, .. } => {
            Update::Adafactor { eps, clip_threshold, weight_decay }
        }
        Optimizer::Muon { momentum, nesterov, ns_steps, betas, eps, .. } => {
            others = Some(Update::AdamW { betas, eps, weight_decay });
            Update::Muon { momentum, nesterov, ns_steps, weight_decay }
        }
    };
    let group = |group: &train::GroupConfig| {
        let pattern = group.matcher().map_err(Failure::input)?;
        Ok(Group { pattern, weight_decay: group.decay, is_frozen: group.freeze })
    };
    let groups = config.groups.iter().map(group).collect::<Result<_>>()?;
    let lora = config.lora.as_ref().map(|lora| Lora {
        rank: lora.rank as u64,
        scale: lora.scale(),
        targets: match &lora.targets {
            LoraTargets::AllLinear => None,
            LoraTargets::Named(names) => Some(names.clone()),
        },
    });
    let ranks = u32::try_from(config.mesh.data).unwrap_or(u32::MAX);
    let zero = Zero { stage: config.mesh.zero, ranks };
    let tensor = u32::try_from(config.mesh.tensor).unwrap_or(u32::MAX);
    let keep = match config.memory.recompute {
        Recompute::None => Some(Keep::All),
        Recompute::Auto => None,
        Recompute::Full => Some(Keep::Input),
    };
    Ok(Training {
        update,
        others,
        groups,
        lora,
        dropout: config.applied_dropout(),
        zero,
        tensor,
        stages: config.mesh.pipeline,
        keep,
        memory: config.memory.device.map(|size| size.0),
        evaluates: config.eval.as_ref().is_some_and(|eval| eval.data.is_some()),
    })
}
