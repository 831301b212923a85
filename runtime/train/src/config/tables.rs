//! The tables of a few keys: `[train]`, `[memory]`, `[checkpoint]`, `[log]`, `[lora]` and
//! `[[groups]]`.

use std::path::PathBuf;

use ir::DType;
use regex::Regex;
use serde::{Serialize, Serializer};

use super::{Init, limits::Limits, section::Section, size::ByteSize};

/// More steps than anyone takes; sums of a few of them fit into 64 bits.
pub(super) const MAX_STEPS: u64 = 1 << 40;

/// `[train]`: how long, in which precision, from which random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StepsConfig {
    /// Updates of the weights.
    pub steps: u64,
    /// Micro-steps whose gradients one update adds up.
    pub grad_accum: usize,
    /// What activations and gradients are computed in.
    pub dtype: Precision,
    /// Of the order of rows, and of random weights.
    pub seed: u64,
}

/// What activations and gradients are computed in; master weights are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the range of f32.
    Bf16,
    /// 16 bits with a scaled loss.
    F16,
}

const TYPES: [(&str, Precision); 3] =
    [("f32", Precision::F32), ("bf16", Precision::Bf16), ("f16", Precision::F16)];

impl Precision {
    /// The element type; `None` for f32, which everything is without being asked.
    #[must_use]
    pub fn narrow(self) -> Option<DType> {
        match self {
            Precision::F32 => None,
            Precision::Bf16 => Some(DType::Bf16),
            Precision::F16 => Some(DType::F16),
        }
    }
}

pub(super) fn steps(mut table: Section<'_>) -> Option<StepsConfig> {
    let steps = table.count("steps", 1..=MAX_STEPS);
    if !table.has("steps") {
        table.missing("steps", "write how many updates to make, such as steps = 1000");
    }
    let grad_accum = table.size("grad_accum", 1..=1 << 20).unwrap_or(1);
    let dtype = table.choice("dtype", &TYPES).unwrap_or_default();
    // TOML has integers of 64 bits with a sign.
    let seed = table.count("seed", 0..=i64::MAX as u64).unwrap_or(0);
    table.finish();
    Some(StepsConfig { steps: steps?, grad_accum, dtype, seed })
}

/// `[memory]`: what the plan must meet, and by which means.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryConfig {
    /// The cap on every device; `None`, written `auto`, is what the device has.
    #[serde(serialize_with = "auto")]
    pub device: Option<ByteSize>,
    /// Whether activations are computed again.
    pub recompute: Recompute,
    /// Where state goes that the device has no room for.
    #[serde(serialize_with = "offload")]
    pub offload: Offload,
}

/// Whether activations are computed again in the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Never.
    None,
    /// As the cap demands.
    #[default]
    Auto,
    /// All of a layer, from its input.
    Full,
}

/// Where state goes that the device has no room for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Offload {
    /// Nowhere.
    #[default]
    None,
    /// The host's memory.
    Host,
    /// A folder on a fast disk.
    Nvme(PathBuf),
}

fn auto<S: Serializer>(size: &Option<ByteSize>, serializer: S) -> Result<S::Ok, S::Error> {
    match size {
        Some(size) => size.serialize(serializer),
        None => serializer.serialize_str("auto"),
    }
}

fn offload<S: Serializer>(offload: &Offload, serializer: S) -> Result<S::Ok, S::Error> {
    match offload {
        Offload::None => serializer.serialize_str("none"),
        Offload::Host => serializer.serialize_str("host"),
        Offload::Nvme(dir) => serializer.collect_str(&format_args!("nvme:{}", dir.display())),
    }
}

pub(super) fn memory(mut table: Section<'_>) -> MemoryConfig {
    let wanted = "\"auto\" or a number of bytes above zero";
    let help = "write it like \"80GiB\" or \"512MiB\"";
    let device = table.parsed("device", wanted, Some(help), |text| match text {
        "auto" => Some(None),
        text => text.parse().ok().map(Some),
    });
    let ways = [("none", Recompute::None), ("auto", Recompute::Auto), ("full", Recompute::Full)];
    let recompute = table.choice("recompute", &ways).unwrap_or_default();
    let wanted = "\"none\", \"host\" or \"nvme:DIR\"";
    let offload = table.parsed("offload", wanted, None, |text| match text {
        "none" => Some(Offload::None),
        "host" => Some(Offload::Host),
        text => {
            let dir = text.strip_prefix("nvme:").filter(|dir| !dir.trim().is_empty())?;
            Some(Offload::Nvme(dir.into()))
        }
    });
    table.finish();
    MemoryConfig { device: device.flatten(), recompute, offload: offload.unwrap_or_default() }
}

/// `[checkpoint]`: where state is saved, how often, how many are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckpointConfig {
    /// A folder; the trained model goes to `final` in it.
    pub dir: PathBuf,
    /// Steps from one to the next.
    pub every: u64,
    /// The newest are kept.
    pub keep: usize,
    /// What the parameters are stored as in `final`; checkpoints have them in f32.
    pub final_dtype: Precision,
}

pub(super) fn checkpoint(mut table: Section<'_>, steps: Option<u64>) -> CheckpointConfig {
    let dir = table.text("dir").map_or_else(|| "ckpt".into(), PathBuf::from);
    let every = table.count("every", 1..=MAX_STEPS).unwrap_or(50);
    if table.has("every") && steps.is_some_and(|steps| every > steps) {
        table.note("every", "is more than `train.steps`: the end alone is saved");
    }
    let keep = table.size("keep", 1..=1 << 20).unwrap_or(3);
    let final_dtype = table.choice("final_dtype", &TYPES).unwrap_or_default();
    table.finish();
    CheckpointConfig { dir, every, keep, final_dtype }
}

/// `[log]`: where metrics go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LogConfig {
    /// A file with a line a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jsonl: Option<PathBuf>,
    /// A folder for TensorBoard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensorboard: Option<PathBuf>,
}

pub(super) fn log(mut table: Section<'_>) -> LogConfig {
    let mut path = |key| table.text(key).map(PathBuf::from);
    let [jsonl, tensorboard] = ["jsonl", "tensorboard"].map(&mut path);
    table.finish();
    LogConfig { jsonl, tensorboard }
}

/// `[lora]`: low-rank updates beside frozen weights. Hu et al. 2021, arXiv:2106.09685.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoraConfig {
    /// Columns of the first factor.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`; `rank` if it is left out.
    pub alpha: f64,
    /// It is scaled by `alpha / √rank` instead: Kalajdzievski 2023, arXiv:2312.03732.
    pub rslora: bool,
    /// Which weights.
    #[serde(serialize_with = "targets")]
    pub targets: LoraTargets,
}

impl LoraConfig {
    /// The factor of the update.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

/// Weights that get an update.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LoraTargets {
    /// All matrices of the layers.
    #[default]
    AllLinear,
    /// Those of modules whose names end like this, such as `q_proj` or `3.self_attn.q_proj`.
    Named(Vec<String>),
}

fn targets<S: Serializer>(targets: &LoraTargets, serializer: S) -> Result<S::Ok, S::Error> {
    match targets {
        LoraTargets::AllLinear => serializer.serialize_str(ALL_LINEAR),
        LoraTargets::Named(names) => names.serialize(serializer),
    }
}

const ALL_LINEAR: &str = "all-linear";

pub(super) fn lora(mut table: Section<'_>, init: Init) -> Option<LoraConfig> {
    let rank = table.size("rank", 1..=1 << 20);
    if !table.has("rank") {
        table.missing("rank", "write rank = 8 or another number");
    }
    #[allow(clippy::cast_precision_loss, reason = "it is small")]
    let alpha = table.number("alpha", Limits::above(0.0)).or(rank.map(|rank| rank as f64));
    let rslora = table.flag("rslora").unwrap_or(false);
    let targets = match table.texts("targets") {
        Some(names) if names != [ALL_LINEAR] => LoraTargets::Named(names),
        _ => LoraTargets::AllLinear,
    };
    if init == Init::Random {
        let help = "take init = \"pretrained\", or leave [lora] out";
        table.problem("rank", "adapts weights, and init = \"random\" has none", Some(help));
    }
    table.finish();
    Some(LoraConfig { rank: rank?, alpha: alpha?, rslora, targets })
}

/// `[[groups]]`: parameters with settings of their own.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupConfig {
    /// Found in the parameter's name.
    pub regex: String,
    /// In place of `optimizer.lr`; the schedule scales it alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// In place of `optimizer.weight_decay`, whatever the number of dimensions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay: Option<f64>,
    /// They stay as they are.
    pub freeze: bool,
}

impl GroupConfig {
    /// The regular expression, compiled.
    ///
    /// # Errors
    /// Never for a configuration that was read; else what is wrong with it.
    pub fn matcher(&self) -> Result<Regex, regex::Error> {
        Regex::new(&self.regex)
    }
}

pub(super) fn group(mut table: Section<'_>) -> Option<GroupConfig> {
    let regex = table.text("regex");
    match regex.as_deref().map(Regex::new) {
        Some(Err(regex::Error::Syntax(message))) => {
            let reason = message.lines().last().unwrap_or_default().trim();
            let reason = reason.strip_prefix("error: ").unwrap_or(reason);
            table.problem("regex", format!("is no regular expression: {reason}"), None);
        }
        Some(Err(error)) => table.problem("regex", format!("is not accepted: {error}"), None),
        Some(Ok(_)) => {}
        None if table.has("regex") => {}
        None => table.missing("regex", "write a regular expression for names of parameters"),
    }
    let lr = table.number("lr", Limits::above(0.0));
    let decay = table.number("decay", Limits::at_least(0.0));
    let freeze = table.flag("freeze");
    if freeze == Some(true) && (table.has("lr") || table.has("decay")) {
        let help = "leave out `lr` and `decay`: frozen parameters do not move";
        table.problem("freeze", "is true beside a step size or decay", Some(help));
    }
    if !["lr", "decay", "freeze"].iter().any(|key| table.has(key)) && table.has("regex") {
        table.problem("regex", "changes nothing", Some("give the group lr, decay or freeze"));
    }
    table.finish();
    Some(GroupConfig { regex: regex?, lr, decay, freeze: freeze.unwrap_or(false) })
}
