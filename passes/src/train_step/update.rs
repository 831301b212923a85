//! Rules by which parameters follow their gradients, one file each.

mod adafactor;
mod adamw;
mod lion;
mod muon;
mod sgd;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use ir::{Attrs, Builder, DType, Dim, OpError, TensorType, Value};

/// A rule and its constants.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// Adam with decoupled weight decay: Loshchilov & Hutter 2019, arXiv:1711.05101.
    AdamW {
        /// Decay of the mean of gradients and of their squares.
        betas: [f64; 2],
        /// Added to the root of the mean of squares.
        eps: f64,
        /// Decoupled decay.
        weight_decay: f64,
    },
    /// The sign of momentum: Chen et al. 2023, arXiv:2302.06675.
    Lion {
        /// Weight of the past in the direction, and in momentum.
        betas: [f64; 2],
        /// Decoupled decay.
        weight_decay: f64,
    },
    /// Stochastic gradient descent, with momentum where it is not zero.
    Sgd {
        /// Weight of past directions.
        momentum: f64,
        /// Look ahead by one step: Nesterov 1983, as PyTorch has it.
        nesterov: bool,
        /// Decoupled decay.
        weight_decay: f64,
    },
    /// Mean squares of gradients from those of rows and of columns, for parameters of two and more
    /// dimensions: Shazeer & Stern 2018, arXiv:1804.04235, as PyTorch has it.
    Adafactor {
        /// Smallest size of a parameter that its step is in proportion to.
        eps: f64,
        /// Largest root mean square of a step before that.
        clip_threshold: f64,
        /// Decoupled decay.
        weight_decay: f64,
    },
    /// Momentum, orthogonalised, for matrices: Jordan et al. 2024, "Muon: an optimizer for hidden
    /// layers in neural networks", as PyTorch has it.
    Muon {
        /// Weight of past directions.
        momentum: f64,
        /// Look ahead by one step.
        nesterov: bool,
        /// Iterations of Newton and Schulz.
        ns_steps: u64,
        /// Decoupled decay.
        weight_decay: f64,
    },
}

/// A trained parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Name of the weight.
    pub weight: Arc<str>,
    /// Its rule.
    pub update: Update,
    /// Number of its learning rate, the input `lr.{group}` of `update`.
    pub group: usize,
}

impl Update {
    /// The same rule with another decay of weights.
    #[must_use]
    pub fn with_decay(mut self, decay: f64) -> Update {
        let (Update::AdamW { weight_decay, .. }
        | Update::Lion { weight_decay, .. }
        | Update::Sgd { weight_decay, .. }
        | Update::Adafactor { weight_decay, .. }
        | Update::Muon { weight_decay, .. }) = &mut self;
        *weight_decay = decay;
        self
    }

    /// Whether it computes each element of a parameter from that element of everything else, so
    /// that a part of a parameter can be updated without the rest.
    #[must_use]
    pub fn is_elementwise(&self) -> bool {
        match self {
            Update::AdamW { .. } | Update::Lion { .. } | Update::Sgd { .. } => true,
            Update::Adafactor { .. } | Update::Muon { .. } => false,
        }
    }

    /// Whether it takes parameters of that many dimensions.
    #[must_use]
    pub fn takes_rank(&self, rank: usize) -> bool {
        !matches!(self, Update::Muon { .. }) || rank == 2
    }

    /// The states that it keeps of a parameter, by their kinds, all f32.
    #[must_use]
    pub fn states(&self, param: &TensorType) -> Vec<(&'static str, TensorType)> {
        let alike = |kinds: &[&'static str]| {
            kinds.iter().map(|kind| (*kind, of_shape(&param.shape))).collect()
        };
        match self {
            Update::AdamW { .. } => alike(&["m", "v"]),
            Update::Sgd { momentum, .. } if *momentum == 0.0 => Vec::new(),
            Update::Lion { .. } | Update::Sgd { .. } | Update::Muon { .. } => alike(&["m"]),
            Update::Adafactor { .. } => adafactor::states(param),
        }
    }

    /// Inputs of `update` besides the learning rate, all f32, of step t: `correction1 = 1 - β1ᵗ`
    /// and `correction2 = 1 - β2ᵗ`; `newness = t^beta2_decay`, the weight of new squares, and
    /// `relative_rate = 1 / √t`.
    #[must_use]
    pub fn scalars(&self) -> &'static [&'static str] {
        match self {
            Update::AdamW { .. } => &["correction1", "correction2"],
            Update::Adafactor { .. } => &["newness", "relative_rate"],
            Update::Lion { .. } | Update::Sgd { .. } | Update::Muon { .. } => &[],
        }
    }

    /// The parameter and the states after a step; `scalars` are the learning rate and those of
    /// [`scalars`](Self::scalars).
    pub(super) fn build(&self, mut step: Step<'_, '_>) -> Result<Vec<Value>, OpError> {
        match *self {
            Update::AdamW { betas, eps, weight_decay } => {
                adamw::build(&mut step, betas, eps, weight_decay)
            }
            Update::Lion { betas, weight_decay } => lion::build(&mut step, betas, weight_decay),
            Update::Sgd { momentum, nesterov, weight_decay } => {
                sgd::build(&mut step, momentum, nesterov, weight_decay)
            }
            Update::Adafactor { eps, clip_threshold, weight_decay } => {
                adafactor::build(&mut step, eps, clip_threshold, weight_decay)
            }
            Update::Muon { momentum, nesterov, ns_steps, weight_decay } => {
                muon::build(&mut step, momentum, nesterov, ns_steps, weight_decay)
            }
        }
    }
}

/// The type of a gradient or state of that shape.
pub(super) fn of_shape(shape: &[Dim]) -> TensorType {
    TensorType::new(DType::F32, shape.iter().cloned())
}

/// What a rule is built from.
pub(super) struct Step<'s, 'm> {
    pub(super) b: &'s mut Builder<'m>,
    pub(super) param: Value,
    pub(super) grad: Value,
    /// In the order of [`Update::states`].
    pub(super) states: &'s [Value],
    /// The learning rate, then those of [`Update::scalars`].
    pub(super) scalars: &'s [Value],
    /// Factor of gradients.
    pub(super) scale: Value,
}

impl Step<'_, '_> {
    /// A rule that is one operator.
    fn one_op(&mut self, op: &str, attrs: Attrs) -> Result<Vec<Value>, OpError> {
        let args = [&[self.param, self.grad], self.states, self.scalars, &[self.scale]].concat();
        let args: Vec<Option<Value>> = args.into_iter().map(Some).collect();
        self.b.op(op, attrs, &args)
    }

    /// The gradient in f32, clipped.
    fn gradient(&mut self) -> Result<Value, OpError> {
        let grad = self.b.cast(self.grad, DType::F32)?;
        self.b.mul(grad, self.scale)
    }

    fn number(&mut self, x: f64) -> Result<Value, OpError> {
        self.b.scalar(DType::F32, x)
    }

    fn times(&mut self, x: Value, factor: f64) -> Result<Value, OpError> {
        let factor = self.number(factor)?;
        self.b.mul(x, factor)
    }

    /// `1 - x`.
    fn rest(&mut self, x: Value) -> Result<Value, OpError> {
        let one = self.number(1.0)?;
        self.b.sub(one, x)
    }

    /// `state ← keep·state + x`, in place.
    fn accumulate(&mut self, state: Value, x: Value, keep: Value) -> Result<Value, OpError> {
        self.b.op1("accumulate", Attrs::none(), &[state, x, keep])
    }

    /// `state ← state + (x - state)·weight`, in place.
    fn lerp(&mut self, state: Value, x: Value, weight: Value) -> Result<Value, OpError> {
        let keep = self.rest(weight)?;
        let x = self.b.mul(x, weight)?;
        self.accumulate(state, x, keep)
    }

    /// `param ← param·(1 - lr·weight_decay) + change`, in place.
    fn apply(&mut self, change: Value, weight_decay: f64) -> Result<Value, OpError> {
        let keep = match weight_decay {
            0.0 => self.number(1.0)?,
            decay => {
                let lost = self.times(self.scalars[0], decay)?;
                self.rest(lost)?
            }
        };
        self.accumulate(self.param, change, keep)
    }

    /// The sum of squares, as a scalar.
    fn squares(&mut self, x: Value) -> Result<Value, OpError> {
        let sum = super::sum_of_squares(self.b, x)?;
        self.b.reshape(sum, Vec::new())
    }
}
