//! Rules by which parameters follow their gradients.

use std::sync::Arc;

use ir::{Attrs, Builder, DType, OpError, TensorType, Value};

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
    /// The operator.
    fn op(&self) -> &'static str {
        match self {
            Update::AdamW { .. } => "adamw_step",
            Update::Lion { .. } => "lion_step",
            Update::Sgd { momentum, .. } if *momentum == 0.0 => "sgd_step",
            Update::Sgd { .. } => "sgd_momentum_step",
        }
    }

    fn attrs(&self) -> Attrs {
        match *self {
            Update::AdamW { betas: [beta1, beta2], eps, weight_decay } => Attrs::none()
                .with("beta1", beta1)
                .with("beta2", beta2)
                .with("eps", eps)
                .with("weight_decay", weight_decay),
            Update::Lion { betas: [beta1, beta2], weight_decay } => Attrs::none()
                .with("beta1", beta1)
                .with("beta2", beta2)
                .with("weight_decay", weight_decay),
            Update::Sgd { momentum: 0.0, weight_decay, .. } => {
                Attrs::none().with("weight_decay", weight_decay)
            }
            Update::Sgd { momentum, nesterov, weight_decay } => Attrs::none()
                .with("momentum", momentum)
                .with("nesterov", nesterov)
                .with("weight_decay", weight_decay),
        }
    }

    /// The same rule without decay of weights.
    #[must_use]
    pub fn without_decay(mut self) -> Update {
        let (Update::AdamW { weight_decay, .. }
        | Update::Lion { weight_decay, .. }
        | Update::Sgd { weight_decay, .. }) = &mut self;
        *weight_decay = 0.0;
        self
    }

    /// The states that it keeps of a parameter, each of the parameter's shape in f32.
    #[must_use]
    pub fn states(&self) -> &'static [&'static str] {
        match self {
            Update::AdamW { .. } => &["m", "v"],
            Update::Lion { .. } => &["m"],
            Update::Sgd { momentum, .. } if *momentum == 0.0 => &[],
            Update::Sgd { .. } => &["m"],
        }
    }

    /// Inputs of `update` besides the learning rate, all f32: `correction1 = 1 - β1ᵗ` and
    /// `correction2 = 1 - β2ᵗ` in step t.
    #[must_use]
    pub fn scalars(&self) -> &'static [&'static str] {
        match self {
            Update::AdamW { .. } => &["correction1", "correction2"],
            _ => &[],
        }
    }

    /// The parameter and the states after a step; `scalars` are the learning rate and those of
    /// [`scalars`](Self::scalars).
    pub(super) fn build(
        &self,
        b: &mut Builder<'_>,
        [param, grad]: [Value; 2],
        states: &[Value],
        scalars: &[Value],
        scale: Value,
    ) -> Result<Vec<Value>, OpError> {
        let args = [&[param, grad], states, scalars, &[scale]].concat();
        let args: Vec<Option<Value>> = args.into_iter().map(Some).collect();
        b.op(self.op(), self.attrs(), &args)
    }
}

/// The type of an optimiser's state.
pub(super) fn state_type(param: &TensorType) -> TensorType {
    TensorType::new(DType::F32, param.shape.iter().cloned())
}
