//! What a step's update takes besides gradients: learning rates, clipping, and what rules ask for.

use crate::{GroupConfig, Optimizer, OptimizerConfig, TrainConfig};

/// What a run's updates depend on besides gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// The optimiser, its learning rate that of group 0.
    pub optimizer: OptimizerConfig,
    /// Steps of the run.
    pub steps: u64,
    /// The highest learning rate of each further group, which the schedule scales alike.
    pub group_lrs: Vec<f64>,
}

impl Rule {
    /// That of a configuration. Where a rule for matrices leaves the rest to AdamW, the groups come
    /// twice: those of the rule, then those of AdamW.
    #[must_use]
    pub fn of(config: &TrainConfig) -> Rule {
        let optimizer = config.optimizer.clone();
        let of_groups = |default: f64| {
            config.groups.iter().map(move |group: &GroupConfig| group.lr.unwrap_or(default))
        };
        let mut group_lrs: Vec<f64> = of_groups(optimizer.lr).collect();
        if let Optimizer::Muon { adamw_lr, .. } = optimizer.rule {
            group_lrs.push(adamw_lr);
            group_lrs.extend(of_groups(adamw_lr));
        }
        Rule { optimizer, steps: config.train.steps, group_lrs }
    }

    /// Inputs of the update in a step, of which `skipped` before it had none, for gradients of that
    /// norm; steps count from 1. The learning rate of group 0 is the first.
    #[must_use]
    pub fn scalars(&self, step: u64, skipped: u64, grad_norm: f64) -> Vec<(String, f64)> {
        let Rule { optimizer, steps, group_lrs } = self;
        let taken = step.saturating_sub(skipped);
        let lr = optimizer.rate(step, *steps);
        let scale = optimizer.clip_norm.map_or(1.0, |most| (most / (grad_norm + 1e-6)).min(1.0));
        let mut scalars = vec![("lr.0".to_owned(), lr), ("grad_scale".to_owned(), scale)];
        let groups = group_lrs.iter().zip(1..);
        scalars.extend(groups.map(|(lr_of, i)| (format!("lr.{i}"), lr_of * lr / optimizer.lr)));
        let mut add = |name: &str, x: f64| scalars.push((name.to_owned(), x));
        match optimizer.rule {
            Optimizer::Adamw { betas, .. } | Optimizer::Muon { betas, .. } => {
                let t = i32::try_from(taken).unwrap_or(i32::MAX);
                let [one, two] = betas.map(|beta| 1.0 - beta.powi(t));
                add("correction1", one);
                add("correction2", two);
            }
            Optimizer::Adafactor { beta2_decay, .. } => {
                add("newness", (taken as f64).powf(beta2_decay));
                add("relative_rate", (taken as f64).sqrt().recip());
            }
            Optimizer::Lion { .. } | Optimizer::Sgd { .. } => {}
        }
        scalars
    }
}
