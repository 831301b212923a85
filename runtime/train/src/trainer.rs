//! One step after another: micro-batches in, parameters updated.

use crate::{
    GroupConfig, MicroBatch, Optimizer, OptimizerConfig, TrainConfig, TrainError, TrainStep,
};

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
    /// That of a configuration.
    #[must_use]
    pub fn of(config: &TrainConfig) -> Rule {
        let optimizer = config.optimizer.clone();
        let lr = |group: &GroupConfig| group.lr.unwrap_or(optimizer.lr);
        let group_lrs = config.groups.iter().map(lr).collect();
        Rule { optimizer, steps: config.train.steps, group_lrs }
    }

    /// Inputs of the update in a step, for gradients of that norm.
    fn scalars(&self, step: u64, grad_norm: f64) -> Vec<(String, f64)> {
        let Rule { optimizer, steps, group_lrs } = self;
        let lr = optimizer.rate(step, *steps);
        let scale = optimizer.clip_norm.map_or(1.0, |most| (most / (grad_norm + 1e-6)).min(1.0));
        let mut scalars = vec![("lr.0".to_owned(), lr), ("grad_scale".to_owned(), scale)];
        let groups = group_lrs.iter().zip(1..);
        scalars.extend(groups.map(|(lr_of, i)| (format!("lr.{i}"), lr_of * lr / optimizer.lr)));
        if let Optimizer::Adamw { betas, .. } | Optimizer::Muon { betas, .. } = optimizer.rule {
            let t = i32::try_from(step).unwrap_or(i32::MAX);
            let corrections = betas.map(|beta| 1.0 - beta.powi(t));
            scalars.extend(
                ["correction1", "correction2"].map(str::to_owned).into_iter().zip(corrections),
            );
        }
        scalars
    }
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Metrics {
    /// Its number, from 1 on.
    pub step: u64,
    /// Mean cross-entropy over all targets of its micro-batches.
    pub loss: f64,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// The learning rate of group 0.
    pub lr: f64,
}

/// A step with the number of those that were taken.
#[derive(Debug)]
pub struct Trainer {
    step: TrainStep,
    rule: Rule,
    done: u64,
}

impl Trainer {
    /// Goes on after `done` steps.
    #[must_use]
    pub fn new(step: TrainStep, rule: Rule, done: u64) -> Trainer {
        Trainer { step, rule, done }
    }

    /// Steps that were taken.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done
    }

    /// The parameters and all else that outlives a step.
    #[must_use]
    pub fn step(&self) -> &TrainStep {
        &self.step
    }

    /// Takes a step. The loss is the mean over all targets of all micro-batches.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] before anything is updated, [`TrainError::NoTargets`], and what
    /// [`TrainStep::accumulate`] reports.
    pub fn advance(&mut self, batches: &[MicroBatch]) -> Result<Metrics, TrainError> {
        let number = self.done + 1;
        let targets: usize = batches.iter().map(|batch| batch.targets.len()).sum();
        if targets == 0 {
            return Err(TrainError::NoTargets { step: number });
        }
        let targets = targets as f64;
        let mut loss = 0.0;
        let mut keep = 0.0;
        for batch in batches.iter().filter(|batch| !batch.targets.is_empty()) {
            let sum = self.step.accumulate(batch, keep, narrow(1.0 / targets))?;
            loss += f64::from(sum) / targets;
            keep = 1.0;
        }
        let squares = self.step.gradient_squares()?;
        if let Some(bad) = squares.iter().position(|square| !square.is_finite()) {
            let parameter = self.step.parameters()[bad].name.to_string();
            return Err(TrainError::NotFinite { step: number, parameter, loss });
        }
        let grad_norm = squares.iter().map(|square| f64::from(*square)).sum::<f64>().sqrt();
        let scalars = self.rule.scalars(number, grad_norm);
        let lr = scalars[0].1;
        let scalars: Vec<(&str, f32)> =
            scalars.iter().map(|(name, x)| (name.as_str(), narrow(*x))).collect();
        self.step.update(&scalars)?;
        self.done = number;
        Ok(Metrics { step: number, loss, grad_norm, lr })
    }

    /// Mean loss over batches that are not trained on; `None` without targets.
    ///
    /// # Errors
    /// As [`TrainStep::evaluate`].
    pub fn evaluate(
        &mut self,
        batches: impl IntoIterator<Item = MicroBatch>,
    ) -> Result<Option<f64>, TrainError> {
        let (mut total, mut targets) = (0.0, 0usize);
        for batch in batches.into_iter().filter(|batch| !batch.targets.is_empty()) {
            total += f64::from(self.step.evaluate(&batch)?);
            targets += batch.targets.len();
        }
        Ok((targets > 0).then(|| total / targets as f64))
    }
}

/// What a program takes of a scalar.
#[allow(clippy::cast_possible_truncation, reason = "programs compute in f32")]
fn narrow(x: f64) -> f32 {
    x as f32
}
