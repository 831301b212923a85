//! Learning rates over the steps of a run.

use crate::{OptimizerConfig, Schedule};

impl OptimizerConfig {
    /// The learning rate of a step of a run of `steps`; both count from 1. During warmup it is
    /// `lr·k/W` in step k of W; then a function of `t = (k - W)/(steps - W)`. The shapes are those
    /// of Loshchilov & Hutter 2017, arXiv:1608.03983 (cosine), and Hu et al. 2024, arXiv:2404.06395
    /// (wsd).
    #[must_use]
    pub fn rate(&self, step: u64, steps: u64) -> f64 {
        let (lr, warmup) = (self.lr, self.warmup_steps);
        if step <= warmup {
            return lr * step as f64 / warmup as f64;
        }
        let share = |done: u64, all: u64| (done as f64 / all.max(1) as f64).min(1.0);
        let t = share(step - warmup, steps.saturating_sub(warmup));
        match self.schedule {
            Schedule::Constant => lr,
            Schedule::Linear { min_lr } => lr + (min_lr - lr) * t,
            Schedule::Cosine { min_lr } => {
                min_lr + (lr - min_lr) * 0.5 * (1.0 + (std::f64::consts::PI * t).cos())
            }
            Schedule::Wsd { min_lr, decay_steps } => {
                let start = steps.saturating_sub(decay_steps);
                lr + (min_lr - lr) * share(step.saturating_sub(start), decay_steps)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Optimizer;

    #[test]
    fn rates_rise_and_fall_as_they_should() {
        let of = |schedule, warmup_steps| {
            let rule = Optimizer::Lion { betas: [0.9, 0.99] };
            let (weight_decay, clip_norm) = (0.0, None);
            let optimizer =
                OptimizerConfig { rule, lr: 1.0, weight_decay, clip_norm, schedule, warmup_steps };
            (1..=12).map(|k| (optimizer.rate(k, 10) * 1e4).round() / 1e4).collect::<Vec<f64>>()
        };
        let min_lr = 0.2;
        let same = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        assert_eq!(of(Schedule::Constant, 2), same);
        let linear = [0.5, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2, 0.2];
        assert_eq!(of(Schedule::Linear { min_lr }, 2), linear);
        let cosine = of(Schedule::Cosine { min_lr }, 2);
        assert_eq!((cosine[1], cosine[5], cosine[9], cosine[11]), (1.0, 0.6, 0.2, 0.2));
        let wsd = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2];
        assert_eq!(of(Schedule::Wsd { min_lr, decay_steps: 4 }, 2), wsd);
        assert_eq!(of(Schedule::Linear { min_lr }, 0)[0], 0.92);
    }

    /// A schedule of `tests/reference/optimizers.py`.
    #[derive(serde::Deserialize)]
    struct Reference {
        schedule: String,
        steps: u64,
        lr: f64,
        #[serde(default)]
        min_lr: f64,
        warmup_steps: u64,
        #[serde(default)]
        decay_steps: u64,
        rates: Vec<f64>,
    }

    #[derive(serde::Deserialize)]
    struct References {
        schedules: Vec<Reference>,
    }

    #[test]
    fn rates_are_those_of_torch() {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/training/optimizers.json");
        let all: References = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(all.schedules.len(), 5);
        for want in all.schedules {
            let Reference { steps, lr, min_lr, warmup_steps, decay_steps, .. } = want;
            let schedule = match &*want.schedule {
                "constant" => Schedule::Constant,
                "linear" => Schedule::Linear { min_lr },
                "cosine" => Schedule::Cosine { min_lr },
                "wsd" => Schedule::Wsd { min_lr, decay_steps },
                other => panic!("{other}"),
            };
            let rule = Optimizer::Lion { betas: [0.9, 0.99] };
            let (weight_decay, clip_norm) = (0.0, None);
            let optimizer =
                OptimizerConfig { rule, lr, weight_decay, clip_norm, schedule, warmup_steps };
            for (k, want) in (1..).zip(&want.rates) {
                let got = optimizer.rate(k, steps);
                assert!((got - want).abs() <= 1e-15, "{schedule:?}: step {k}: {got}, not {want}");
            }
        }
    }
}
