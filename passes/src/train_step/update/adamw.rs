//! AdamW: Loshchilov & Hutter 2019, arXiv:1711.05101.

use ir::{Attrs, OpError, Value};

use super::Step;

pub(super) fn build(
    step: &mut Step<'_, '_>,
    [beta1, beta2]: [f64; 2],
    eps: f64,
    weight_decay: f64,
) -> Result<Vec<Value>, OpError> {
    let attrs = Attrs::none().with("beta1", beta1).with("beta2", beta2).with("eps", eps);
    step.one_op("adamw_step", attrs.with("weight_decay", weight_decay))
}
