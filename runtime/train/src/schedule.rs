//! Learning rates over the steps of a run.

/// How the learning rate goes on after its warmup.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    /// It stays.
    Constant,
    /// It falls in a straight line, to `min_lr` in the last step.
    Linear,
    /// It falls along half a cosine, to `min_lr` in the last step. Loshchilov & Hutter 2017,
    /// arXiv:1608.03983.
    Cosine,
    /// It stays, and falls in a straight line over the last steps. Hu et al. 2024,
    /// arXiv:2404.06395 (warmup, stable, decay).
    Wsd {
        /// Over how many.
        decay_steps: u64,
    },
}

/// A learning rate for every step of a run, which count from 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The highest.
    pub lr: f64,
    /// The last.
    pub min_lr: f64,
    /// Steps in which it rises from nothing to `lr`.
    pub warmup_steps: u64,
    /// Steps of the run.
    pub steps: u64,
    /// What follows.
    pub decay: Decay,
}

impl Schedule {
    /// The learning rate of a step. During warmup `lr·k/W` in step k of W; then of
    /// `t = (k - W)/(steps - W)`.
    #[must_use]
    pub fn at(&self, step: u64) -> f64 {
        let Schedule { lr, min_lr, warmup_steps, steps, decay } = *self;
        if step <= warmup_steps {
            return lr * step as f64 / warmup_steps as f64;
        }
        let share = |done: u64, all: u64| (done as f64 / all.max(1) as f64).min(1.0);
        let t = share(step - warmup_steps, steps.saturating_sub(warmup_steps));
        match decay {
            Decay::Constant => lr,
            Decay::Linear => lr + (min_lr - lr) * t,
            Decay::Cosine => {
                min_lr + (lr - min_lr) * 0.5 * (1.0 + (std::f64::consts::PI * t).cos())
            }
            Decay::Wsd { decay_steps } => {
                let start = steps.saturating_sub(decay_steps);
                lr + (min_lr - lr) * share(step.saturating_sub(start), decay_steps)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_and_fall_as_they_should() {
        let of = |decay, warmup_steps| {
            let schedule = Schedule { lr: 1.0, min_lr: 0.2, warmup_steps, steps: 10, decay };
            (1..=12).map(|k| (schedule.at(k) * 1e4).round() / 1e4).collect::<Vec<f64>>()
        };
        let same = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        assert_eq!(of(Decay::Constant, 2), same);
        let linear = [0.5, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2, 0.2];
        assert_eq!(of(Decay::Linear, 2), linear);
        let cosine = of(Decay::Cosine, 2);
        assert_eq!((cosine[1], cosine[5], cosine[9], cosine[11]), (1.0, 0.6, 0.2, 0.2));
        let wsd = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2];
        assert_eq!(of(Decay::Wsd { decay_steps: 4 }, 2), wsd);
        assert_eq!(of(Decay::Linear, 0)[0], 0.92);
    }
}
