//! Gradients against central differences in f64, with the tolerances of `torch.autograd.gradcheck`.

mod functions;
pub(crate) mod models;
mod operators;
mod torch;

use std::{collections::BTreeSet, sync::Arc};

use indexmap::IndexMap;
use ir::{Env, Interpreter, Module, Precision, Tensor};

use super::{Recompute, Wrt, differentiate};

/// Weights by name.
pub(crate) type Weights = IndexMap<Arc<str>, Tensor>;

/// Step of a difference, and how far a derivative may be from it.
const STEP: f64 = 1e-6;
const ABSOLUTE: f64 = 1e-5;
const RELATIVE: f64 = 1e-3;

/// Most elements of a tensor that are moved.
const MOVED: usize = 96;

/// Evaluates a function in f64.
pub(crate) fn run(
    module: &Module,
    f: &str,
    weights: &Weights,
    inputs: &[Tensor],
    env: &Env,
) -> Vec<Tensor> {
    let out = Interpreter::new(module, weights, Precision::F64).run(f, inputs, env);
    out.unwrap_or_else(|e| panic!("{f}: {e}"))
}

/// Compares a gradient with differences of a loss that is a function of one tensor.
pub(crate) fn compare(
    grad: &Tensor,
    at: &Tensor,
    loss: &mut dyn FnMut(&Tensor) -> f64,
) -> Result<(), String> {
    if grad.shape() != at.shape() {
        return Err(format!("is {:?}, not {:?}", grad.shape(), at.shape()));
    }
    let (values, grads) = (at.to_f64s(), grad.to_f64s());
    // A stride that shares no factor with the extents.
    let stride = values.len().div_ceil(MOVED) | 1;
    for i in (0..values.len()).step_by(stride) {
        let mut moved = |step: f64| {
            let mut values = values.clone();
            values[i] += step;
            loss(&Tensor::from_f64s(at.dtype(), at.shape(), values))
        };
        let want = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        let got = grads[i];
        let near = (got - want).abs() <= ABSOLUTE + RELATIVE * want.abs();
        if !near {
            return Err(format!("element {i} is {got}, not {want}"));
        }
    }
    Ok(())
}

fn names(names: &[&str]) -> BTreeSet<Arc<str>> {
    names.iter().map(|n| (*n).into()).collect()
}

fn bits(tensors: &[Tensor]) -> Vec<Vec<u8>> {
    tensors.iter().map(Tensor::to_bytes).collect()
}

/// Floats of f32 as f64, in which the interpreter keeps them.
fn wide(t: &Tensor) -> Tensor {
    if t.dtype() == ir::DType::F32 { t.cast(ir::DType::F64) } else { t.clone() }
}
