//! Lion: Chen et al. 2023, arXiv:2302.06675.

use ir::{Attrs, OpError, Value};

use super::Step;

pub(super) fn build(
    step: &mut Step<'_, '_>,
    [beta1, beta2]: [f64; 2],
    weight_decay: f64,
) -> Result<Vec<Value>, OpError> {
    let attrs = Attrs::none().with("beta1", beta1).with("beta2", beta2);
    step.one_op("lion_step", attrs.with("weight_decay", weight_decay))
}
