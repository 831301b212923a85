//! From a training configuration to the compiled step.

use std::sync::Arc;

use driver::{Cache, CompileError, CompileOptions, Group, Lora, Training, Update};
use ir::{DType, Target, artifact::Artifact};
use train::{LoraTargets, Optimizer, Precision, TrainConfig};

use super::{Shown, failure};
use crate::{
    context::Context,
    failure::{Failure, Result},
};

/// The training artifact of a configuration, from the user's cache or compiled into it.
pub(crate) fn training_artifact(config: &TrainConfig, cx: &Context) -> Result<Arc<Artifact>> {
    let cache = Cache::user();
    let options = options(config, &cache, cx)?;
    let progress = Shown::new(&config.model, cx);
    let compiled = |e| match e {
        CompileError::Targets(problems) => Failure::Config(problems.join("\n")),
        e => failure(&config.model, &e, Vec::new()),
    };
    let (path, _) = cache.artifact(&config.model, &options, &progress).map_err(compiled)?;
    Artifact::open(&path).map(Arc::new).map_err(Failure::input)
}

fn options(config: &TrainConfig, cache: &Cache, cx: &Context) -> Result<CompileOptions> {
    let tokens = config.data.seq_len.saturating_mul(config.data.micro_batch) as u64;
    let mut import = frontend_options();
    import.max_seq_len = Some(config.data.seq_len as u64);
    import.max_batch_tokens = tokens;
    // Documents may be as short as a token.
    import.max_sequences = tokens;
    import.logit_rows = tokens;
    import.dtype = match config.train.dtype {
        Precision::F32 => None,
        Precision::Bf16 => Some(DType::Bf16),
        Precision::F16 => Some(DType::F16),
    };
    Ok(CompileOptions {
        import,
        target: Target::x86_64_v3(),
        quantize: None,
        training: Some(training(config)?),
        kv_dtype: DType::F32,
        text: serde_json::Value::Null,
        threads: Some(cx.threads()),
        kernel_cache: Some(cache.kernels()),
        tuning: Default::default(),
    })
}

fn frontend_options() -> driver::ImportOptions {
    Default::default()
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
    Ok(Training { update, others, groups, lora })
}
