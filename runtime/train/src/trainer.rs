//! One step after another: micro-batches in, parameters updated.

use exec::States;

use crate::{LossScale, MicroBatch, Rule, TrainError, TrainStep};

/// What came of a step.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Metrics {
    /// Its number, from 1 on.
    pub step: u64,
    /// Mean cross-entropy over all targets of its micro-batches.
    pub loss: f64,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// The learning rate of group 0.
    pub lr: f64,
    /// The factor of the loss, where there is one.
    pub loss_scale: Option<f32>,
    /// The parameter whose gradient was not finite at this scale, so that nothing was updated.
    pub skipped: Option<String>,
}

/// A step with the number of those that were taken.
#[derive(Debug)]
pub struct Trainer {
    step: TrainStep,
    rule: Rule,
    done: u64,
    loss_scale: Option<LossScale>,
}

impl Trainer {
    /// Goes on after `done` steps.
    #[must_use]
    pub fn new(step: TrainStep, rule: Rule, done: u64) -> Trainer {
        Trainer { step, rule, done, loss_scale: None }
    }

    /// With a factor of the loss, for gradients of f16: a step whose gradients are not finite is
    /// skipped then.
    #[must_use]
    pub fn with_loss_scale(self, loss_scale: Option<LossScale>) -> Trainer {
        Trainer { loss_scale, ..self }
    }

    /// The factor of the loss.
    #[must_use]
    pub fn loss_scale(&self) -> Option<LossScale> {
        self.loss_scale
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

    /// As [`TrainStep::lend`].
    ///
    /// # Errors
    /// As there.
    pub fn lend<R>(&mut self, work: impl FnOnce(&mut States) -> R) -> Result<R, TrainError> {
        self.step.lend(work)
    }

    /// Takes a step. The loss is the mean over all targets of all micro-batches. A step that is
    /// skipped counts.
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
        let scale = f64::from(self.loss_scale.map_or(1.0, |s| s.scale));
        let mut loss = 0.0;
        let mut keep = 0.0;
        for batch in batches.iter().filter(|batch| !batch.targets.is_empty()) {
            let sum = self.step.accumulate(batch, keep, narrow(scale / targets))?;
            loss += f64::from(sum) / targets;
            keep = 1.0;
            let place = self.step.first_bad_place()?;
            if place.is_some() || !sum.is_finite() {
                let place = place.unwrap_or_else(|| "the loss".to_owned());
                let parameter = self.step.first_bad_parameter().map(str::to_owned);
                return Err(TrainError::NotFinite { step: number, place, parameter, loss });
            }
        }
        let squares = self.step.gradient_squares()?;
        let grad_norm = squares.iter().map(|square| f64::from(*square)).sum::<f64>().sqrt() / scale;
        let skipped = self.loss_scale.map_or(0, |s| s.skipped);
        let scalars = self.rule.scalars(number, skipped, grad_norm);
        let lr = scalars[0].1;
        let loss_scale = self.loss_scale.map(|s| s.scale);
        let mut metrics = Metrics { step: number, loss, grad_norm, lr, loss_scale, skipped: None };
        // The way back begins at the last parameter.
        if let Some(bad) = squares.iter().rposition(|square| !square.is_finite()) {
            let name = self.step.parameters()[bad].name.to_string();
            if !self.loss_scale.as_mut().is_some_and(LossScale::back_off) {
                let place = format!("the gradient of `{name}`");
                return Err(TrainError::NotFinite { step: number, place, parameter: None, loss });
            }
            metrics.skipped = Some(name);
            self.done = number;
            return Ok(metrics);
        }
        let used = |name: &str, x: f64| if name == "grad_scale" { x / scale } else { x };
        let scalars: Vec<(&str, f32)> =
            scalars.iter().map(|(name, x)| (name.as_str(), narrow(used(name, *x)))).collect();
        self.step.update(&scalars)?;
        if let Some(scale) = &mut self.loss_scale {
            scale.grow();
        }
        self.done = number;
        Ok(metrics)
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
