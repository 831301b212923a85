//! One step after another: micro-batches in, parameters updated.

use exec::States;

use crate::{LossScale, MicroBatch, Rank, Rule, TrainError, TrainStep, dropout::dropout_key};

/// What came of a step.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Metrics {
    /// Its number, from 1 on.
    pub step: u64,
    /// Targets of all ranks' micro-batches.
    pub targets: u64,
    /// Mean cross-entropy over these.
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
    seed: u64,
}

impl Trainer {
    /// Goes on after `done` steps.
    #[must_use]
    pub fn new(step: TrainStep, rule: Rule, done: u64) -> Trainer {
        Trainer { step, rule, done, loss_scale: None, seed: 0 }
    }

    /// With a factor of the loss, for gradients of f16: a step whose gradients are not finite is
    /// skipped then.
    #[must_use]
    pub fn with_loss_scale(self, loss_scale: Option<LossScale>) -> Trainer {
        Trainer { loss_scale, ..self }
    }

    /// With a seed of what is dropped, where something is; 0 otherwise.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Trainer {
        Trainer { seed, ..self }
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

    /// The parameters and all else, without the count.
    #[must_use]
    pub fn into_step(self) -> TrainStep {
        self.step
    }

    /// The same, to be changed.
    pub fn step_mut(&mut self) -> &mut TrainStep {
        &mut self.step
    }

    /// As [`TrainStep::lend`].
    ///
    /// # Errors
    /// As there.
    pub fn lend<R>(&mut self, work: impl FnOnce(&mut States) -> R) -> Result<R, TrainError> {
        self.step.lend(work)
    }

    /// Takes a step. The loss is the mean over all targets of all micro-batches of all ranks, which
    /// bring as many each. A step that is skipped counts.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] before anything is updated and [`TrainError::NoTargets`], the same
    /// on all ranks; what [`TrainStep::accumulate`] reports.
    pub fn advance(&mut self, batches: &[MicroBatch]) -> Result<Metrics, TrainError> {
        let number = self.done + 1;
        let rank = self.step.rank().clone();
        rank.set_step(number);
        let targets: usize = batches.iter().map(|batch| batch.targets.len()).sum();
        let targets = rank.sum(targets as u64)?;
        if targets == 0 {
            return Err(TrainError::NoTargets { step: number });
        }
        let metrics = Metrics { step: number, targets, ..Metrics::default() };
        let targets = targets as f64;
        let scale = f64::from(self.loss_scale.map_or(1.0, |s| s.scale));
        let mut own = Own::default();
        let mut keep = 0.0;
        // A micro-batch drops the same on any mesh.
        let first = rank.data_rank() * batches.len();
        let seed = self.seed;
        let keyed = batches.iter().enumerate().map(|(i, batch)| {
            let dropout_key = dropout_key(seed, number, (first + i) as u64);
            MicroBatch { dropout_key, ..batch.clone() }
        });
        let mut batches: Vec<MicroBatch> = with_targets(keyed, &rank).collect();
        if rank.stages() > 1 {
            let found = self.step.pipelined(&batches, narrow(scale / targets))?;
            if rank.leads_tensor() {
                found.sums.iter().for_each(|sum| own.loss += f64::from(*sum) / targets);
            }
            (own.place, own.gradient) = (found.place, found.gradient);
            if found.place.is_some() {
                own.parameter = self.step.first_bad_parameter()?;
            }
            batches.clear();
        }
        for batch in batches {
            let sum = self.step.accumulate(&batch, keep, narrow(scale / targets))?;
            if rank.leads_tensor() {
                own.loss += f64::from(sum) / targets;
            }
            keep = 1.0;
            own.place = own.place.or(self.step.first_bad_place()?);
            own.gradient = own.gradient.or(self.step.last_bad_gradient()?);
            if own.place.is_some() {
                own.parameter = self.step.first_bad_parameter()?;
                // Others are on the way to the next collective.
                if rank.is_alone() {
                    break;
                }
            }
        }
        let all = rank.all(own.to_numbers())?.into_iter().map(Own::from_numbers);
        let all: Vec<Own> = all.collect();
        let loss = all.iter().map(|own| own.loss).sum::<f64>();
        let of_rank = |found: usize| (all.len() > 1).then_some(found);
        let name = |step: &TrainStep, number: usize| step.parameters()[number].name.to_string();
        if let Some((bad, own)) = all.iter().enumerate().find(|(_, own)| own.place.is_some()) {
            let place = self.step.place(own.place.unwrap_or_default());
            let (rank, parameter) = (of_rank(bad), own.parameter.map(|p| name(&self.step, p)));
            return Err(TrainError::NotFinite { step: number, place, rank, parameter, loss });
        }
        let Norm { squares, bad } = self.norm(&rank)?;
        let grad_norm = squares.sqrt() / scale;
        let skipped = self.loss_scale.map_or(0, |s| s.skipped);
        let scalars = self.rule.scalars(number, skipped, grad_norm);
        let lr = scalars[0].1;
        let loss_scale = self.loss_scale.map(|s| s.scale);
        let mut metrics = Metrics { loss, grad_norm, lr, loss_scale, ..metrics };
        if let Some(bad) = bad {
            let culprit = all.iter().position(|own| own.gradient == Some(bad));
            let name = name(&self.step, bad);
            if !self.loss_scale.as_mut().is_some_and(LossScale::back_off) {
                let place = format!("the gradient of `{name}`");
                let (rank, parameter) = (culprit.and_then(of_rank), None);
                return Err(TrainError::NotFinite { step: number, place, rank, parameter, loss });
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

    /// The gradients that were added up, as all ranks together hold them.
    fn norm(&mut self, rank: &Rank) -> Result<Norm, TrainError> {
        let squares = self.step.gradient_squares()?;
        let own = self.step.own_parameters();
        let parameters = own.len();
        // The way back begins at the last parameter.
        let is_bad = |number: &usize| {
            squares.iter().skip(*number).step_by(parameters).any(|square| !square.is_finite())
        };
        let bad = (0..parameters).rev().find(is_bad).map(|number| own[number]);
        let counts = |number: usize| {
            self.step.leads(number) && (rank.leads_tensor() || self.step.is_split(number))
        };
        let counts: Vec<bool> = own.iter().map(|number| counts(*number)).collect();
        let counted = squares.iter().enumerate().filter(|(i, _)| counts[i % parameters]);
        let sum = counted.map(|(_, square)| f64::from(*square)).sum::<f64>();
        let all = rank.all_of_replica([sum, number(bad)])?;
        let squares = all.iter().map(|[sum, _]| sum).sum();
        Ok(Norm { squares, bad: all.iter().filter_map(|[_, bad]| index(*bad)).max() })
    }

    /// Mean loss over batches that are not trained on, as many on each rank; `None` without
    /// targets.
    ///
    /// # Errors
    /// As [`TrainStep::evaluate`].
    pub fn evaluate(
        &mut self,
        batches: impl IntoIterator<Item = MicroBatch>,
    ) -> Result<Option<f64>, TrainError> {
        let (mut total, mut targets) = (0.0, 0usize);
        let rank = self.step.rank().clone();
        for batch in with_targets(batches.into_iter(), &rank) {
            total += f64::from(self.step.evaluate(&batch)?);
            targets += batch.targets.iter().filter(|target| **target >= 0).count();
        }
        let speaks = rank.leads_tensor() && rank.stage() + 1 == rank.stages();
        let own = if speaks { [total, targets as f64] } else { [0.0; 2] };
        let all = rank.all(own)?;
        let sum = |i: usize| all.iter().map(|numbers| numbers[i]).sum::<f64>();
        Ok((sum(1) > 0.0).then(|| sum(0) / sum(1)))
    }
}

/// Micro-batches with something to predict; with several ranks something in place of the others.
fn with_targets(
    batches: impl Iterator<Item = MicroBatch>,
    rank: &Rank,
) -> impl Iterator<Item = MicroBatch> {
    let is_alone = rank.data_ranks() == 1;
    batches.filter_map(move |batch| match batch.targets.is_empty() {
        false => Some(batch),
        true => (!is_alone).then(MicroBatch::nothing),
    })
}

/// What a rank has found in its micro-steps.
#[derive(Clone, Copy, Debug, Default)]
struct Own {
    loss: f64,
    /// By number, as [`TrainStep::place`] counts.
    place: Option<usize>,
    /// A parameter that is not finite.
    parameter: Option<usize>,
    /// A parameter whose gradient is not.
    gradient: Option<usize>,
}

impl Own {
    fn to_numbers(self) -> [f64; 4] {
        [self.loss, number(self.place), number(self.parameter), number(self.gradient)]
    }

    fn from_numbers([loss, place, parameter, gradient]: [f64; 4]) -> Own {
        let [place, parameter, gradient] = [place, parameter, gradient].map(index);
        Own { loss, place, parameter, gradient }
    }
}

/// What the gradients of all parameters come to.
struct Norm {
    /// The sum of their squares.
    squares: f64,
    /// The last parameter, by its number, whose gradient is not finite.
    bad: Option<usize>,
}

/// A number that ranks tell each other.
fn number(found: Option<usize>) -> f64 {
    found.map_or(-1.0, |n| n as f64)
}

/// What [`number`] was made of.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small numbers, not negative"
)]
fn index(x: f64) -> Option<usize> {
    (x >= 0.0).then_some(x as usize)
}

/// What a program takes of a scalar.
#[allow(clippy::cast_possible_truncation, reason = "programs compute in f32")]
fn narrow(x: f64) -> f32 {
    x as f32
}
