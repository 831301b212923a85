//! One step after another: micro-batches in, parameters updated.

use crate::{MicroBatch, Rule, TrainError, TrainStep};

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
