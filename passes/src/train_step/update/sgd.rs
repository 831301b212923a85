//! Stochastic gradient descent, with and without momentum.

use ir::{Attrs, OpError, Value};

use super::Step;

pub(super) fn build(
    step: &mut Step<'_, '_>,
    momentum: f64,
    nesterov: bool,
    weight_decay: f64,
) -> Result<Vec<Value>, OpError> {
    let attrs = Attrs::none().with("weight_decay", weight_decay);
    if momentum == 0.0 {
        return step.one_op("sgd_step", attrs);
    }
    step.one_op("sgd_momentum_step", attrs.with("momentum", momentum).with("nesterov", nesterov))
}
