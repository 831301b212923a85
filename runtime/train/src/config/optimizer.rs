//! `[optimizer]`: the rule by which weights move, and how far at each step.

use serde::Serialize;

use super::{limits::Limits, section::Section, value::either};

/// The rule, the step size and what both are limited by.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OptimizerConfig {
    /// The rule and what it takes, under its name.
    #[serde(flatten)]
    pub rule: Optimizer,
    /// The highest step size.
    pub lr: f64,
    /// Decoupled decay of parameters with two or more dimensions.
    pub weight_decay: f64,
    /// The largest norm of all gradients together; `None` is no clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// The step size over time.
    #[serde(flatten)]
    pub schedule: Schedule,
    /// Steps over which the step size rises from zero.
    pub warmup_steps: u64,
}

/// A rule. Defaults are those of the papers and of torch, but for Adam's second beta, which is
/// usual for language models.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Optimizer {
    /// Loshchilov & Hutter 2019, arXiv:1711.05101.
    Adamw {
        /// Decay of the moments: `[0.9, 0.95]`.
        betas: [f64; 2],
        /// Added to the root of the second moment: 1e-8.
        eps: f64,
    },
    /// Chen et al. 2023, arXiv:2302.06675.
    Lion {
        /// Weights of the moment in the direction, and its decay: `[0.9, 0.99]`.
        betas: [f64; 2],
    },
    /// Gradient descent.
    Sgd {
        /// Decay of the sum of gradients: 0.
        momentum: f64,
        /// Look ahead by one step.
        nesterov: bool,
    },
    /// Shazeer & Stern 2018, arXiv:1804.04235, as in torch.
    Adafactor {
        /// Exponent of the second moment's decay: -0.8.
        beta2_decay: f64,
        /// Smallest size of parameters that the step is scaled by: 1e-3.
        eps: f64,
        /// Largest root mean square of a step: 1.
        clip_threshold: f64,
    },
    /// Jordan et al. 2024, for matrices; AdamW for embeddings, the head and vectors.
    Muon {
        /// Decay of the sum of gradients: 0.95.
        momentum: f64,
        /// Look ahead by one step.
        nesterov: bool,
        /// Newton-Schulz iterations: 5.
        ns_steps: u64,
        /// Step size of AdamW; `lr` if it is left out.
        adamw_lr: f64,
        /// AdamW's.
        betas: [f64; 2],
        /// AdamW's.
        eps: f64,
    },
}

/// The step size after warmup, from `lr` to `min_lr`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "schedule", rename_all = "snake_case")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// It falls at one rate.
    Linear {
        /// Where it ends.
        min_lr: f64,
    },
    /// It falls as half a wave of a cosine.
    Cosine {
        /// Where it ends.
        min_lr: f64,
    },
    /// It stays, then falls at one rate.
    Wsd {
        /// Where it ends.
        min_lr: f64,
        /// The last steps, over which it falls; a tenth of all if it is left out.
        decay_steps: u64,
    },
}

#[derive(Clone, Copy, PartialEq)]
enum Name {
    Adamw,
    Lion,
    Sgd,
    Adafactor,
    Muon,
}

const NAMES: [(&str, Name); 5] = [
    ("adamw", Name::Adamw),
    ("lion", Name::Lion),
    ("sgd", Name::Sgd),
    ("adafactor", Name::Adafactor),
    ("muon", Name::Muon),
];

/// Keys that only some rules read.
const OWN: [(&str, &[Name]); 8] = [
    ("betas", &[Name::Adamw, Name::Lion, Name::Muon]),
    ("eps", &[Name::Adamw, Name::Adafactor, Name::Muon]),
    ("momentum", &[Name::Sgd, Name::Muon]),
    ("nesterov", &[Name::Sgd, Name::Muon]),
    ("beta2_decay", &[Name::Adafactor]),
    ("clip_threshold", &[Name::Adafactor]),
    ("ns_steps", &[Name::Muon]),
    ("adamw_lr", &[Name::Muon]),
];

pub(super) fn read(mut table: Section<'_>, steps: Option<u64>) -> OptimizerConfig {
    let name = table.choice("name", &NAMES).unwrap_or(Name::Adamw);
    let lr = table.number("lr", Limits::above(0.0)).unwrap_or(3e-4);
    let below_one = Limits::at_least(0.0).and_below(1.0);
    let betas = table.numbers("betas", below_one);
    let eps = table.number("eps", Limits::above(0.0));
    let momentum = table.number("momentum", below_one);
    let nesterov = table.flag("nesterov");
    let beta2_decay =
        table.number("beta2_decay", Limits::at_least(-1e3).and_below(0.0)).unwrap_or(-0.8);
    let clip_threshold = table.number("clip_threshold", Limits::above(0.0)).unwrap_or(1.0);
    let ns_steps = table.count("ns_steps", 1..=100).unwrap_or(5);
    let adamw_lr = table.number("adamw_lr", Limits::above(0.0)).unwrap_or(lr);
    let adam = |betas: Option<[f64; 2]>| betas.unwrap_or([0.9, 0.95]);
    let rule = match name {
        Name::Adamw => Optimizer::Adamw { betas: adam(betas), eps: eps.unwrap_or(1e-8) },
        Name::Lion => Optimizer::Lion { betas: betas.unwrap_or([0.9, 0.99]) },
        Name::Sgd => Optimizer::Sgd {
            momentum: momentum.unwrap_or(0.0),
            nesterov: nesterov.unwrap_or(false),
        },
        Name::Adafactor => {
            Optimizer::Adafactor { beta2_decay, eps: eps.unwrap_or(1e-3), clip_threshold }
        }
        Name::Muon => Optimizer::Muon {
            momentum: momentum.unwrap_or(0.95),
            nesterov: nesterov.unwrap_or(true),
            ns_steps,
            adamw_lr,
            betas: adam(betas),
            eps: eps.unwrap_or(1e-8),
        },
    };
    if matches!(rule, Optimizer::Sgd { momentum: 0.0, nesterov: true }) {
        table.problem("nesterov", "is true without `optimizer.momentum`", Some("give it momentum"));
    }
    let decays = !matches!(name, Name::Sgd | Name::Adafactor);
    let weight_decay = table.number("weight_decay", Limits::at_least(0.0));
    let clip_norm = table.number("clip_norm", Limits::above(0.0));
    let schedule = schedule(&mut table, lr, steps);
    let warmup_steps = table.count("warmup_steps", 0..=1 << 40).unwrap_or(0);
    check_lengths(&table, schedule, warmup_steps, steps);
    for (key, rules) in OWN {
        if table.has(key) && !rules.contains(&name) {
            let of: Vec<String> = NAMES
                .iter()
                .filter(|(_, name)| rules.contains(name))
                .map(|(name, _)| (*name).to_owned())
                .collect();
            table.note(key, format!("has no effect: it belongs to {}", either(&of)));
        }
    }
    table.finish();
    OptimizerConfig {
        rule,
        lr,
        weight_decay: weight_decay.unwrap_or(if decays { 0.1 } else { 0.0 }),
        clip_norm,
        schedule,
        warmup_steps,
    }
}

fn schedule(table: &mut Section<'_>, lr: f64, steps: Option<u64>) -> Schedule {
    #[derive(Clone, Copy, PartialEq)]
    enum Shape {
        Constant,
        Linear,
        Cosine,
        Wsd,
    }
    let shapes = [
        ("constant", Shape::Constant),
        ("linear", Shape::Linear),
        ("cosine", Shape::Cosine),
        ("wsd", Shape::Wsd),
    ];
    let shape = table.choice("schedule", &shapes).unwrap_or(Shape::Constant);
    let min_lr = table.number("min_lr", Limits::at_least(0.0)).unwrap_or(0.0);
    let decay_steps = table.count("decay_steps", 1..=1 << 40);
    if min_lr > lr {
        let reason = format!("is {min_lr}, which is above `optimizer.lr`, {lr}");
        table.problem("min_lr", reason, Some("the step size falls to it"));
    }
    if table.has("min_lr") && shape == Shape::Constant {
        table.note("min_lr", "has no effect: the schedule is constant");
    }
    if table.has("decay_steps") && shape != Shape::Wsd {
        table.note("decay_steps", "has no effect: it belongs to the schedule wsd");
    }
    match shape {
        Shape::Constant => Schedule::Constant,
        Shape::Linear => Schedule::Linear { min_lr },
        Shape::Cosine => Schedule::Cosine { min_lr },
        Shape::Wsd => {
            let decay_steps = decay_steps.unwrap_or((steps.unwrap_or(10) / 10).max(1));
            Schedule::Wsd { min_lr, decay_steps }
        }
    }
}

fn check_lengths(table: &Section<'_>, schedule: Schedule, warmup: u64, steps: Option<u64>) {
    let Some(steps) = steps else { return };
    if warmup > steps {
        let reason = format!("is {warmup} of {steps} steps: `optimizer.lr` is never reached");
        table.note("warmup_steps", reason);
    }
    if let Schedule::Wsd { decay_steps, .. } = schedule
        && table.has("decay_steps")
        && decay_steps > steps.saturating_sub(warmup)
    {
        let reason = format!(
            "is {decay_steps}, and {} of {steps} steps are left after {warmup} of warmup",
            steps.saturating_sub(warmup)
        );
        table.problem("decay_steps", reason, Some("make it smaller, or `train.steps` larger"));
    }
}
