//! Adafactor: Shazeer & Stern 2018, arXiv:1804.04235, as `torch.optim.Adafactor` computes it.
//!
//! The mean squares of a parameter's gradient, over its last two axes, are those of its rows times
//! those of its columns, over the mean of all: `R + C` numbers are kept in place of `R·C`. A
//! parameter of less than two dimensions keeps them all.

use ir::{Attrs, OpError, TensorType, Value};

use super::{Step, of_shape};

/// The smallest mean square of rows that is divided by, and of a gradient, squared: the distance
/// from one to the next f32.
const EPS: f64 = f32::EPSILON as f64;

/// `row [.., R, 1]` and `column [.., 1, C]`, or `v` of the parameter's shape.
pub(super) fn states(param: &TensorType) -> Vec<(&'static str, TensorType)> {
    let rank = param.rank();
    let without = |axis: usize| {
        let mut shape = param.shape.to_vec();
        shape[axis] = 1.into();
        of_shape(&shape)
    };
    match rank {
        0 | 1 => vec![("v", of_shape(&param.shape))],
        _ => vec![("row", without(rank - 1)), ("column", without(rank - 2))],
    }
}

pub(super) fn build(
    step: &mut Step<'_, '_>,
    eps: f64,
    clip_threshold: f64,
    weight_decay: f64,
) -> Result<Vec<Value>, OpError> {
    let [lr, newness, relative_rate] = *step.scalars else { unreachable!("asked for") };
    let elements = step.b.ty(step.param).elements().as_const().unwrap_or(1).max(1);
    #[allow(clippy::cast_precision_loss, reason = "sizes that fit into memory")]
    let root = (elements as f64).sqrt();
    // As much as the parameter's size, and no more than the learning rate allows.
    let size = size(step, step.param, root)?;
    let least = step.number(eps)?;
    let size = step.b.op1("maximum", Attrs::none(), &[size, least])?;
    let rate = step.b.op1("minimum", Attrs::none(), &[lr, relative_rate])?;
    let rate = step.b.mul(size, rate)?;

    let grad = step.gradient()?;
    let squares = step.b.mul(grad, grad)?;
    let (kept, estimate) = match *step.states {
        [v] => {
            let v = step.lerp(v, squares, newness)?;
            (vec![v], v)
        }
        [row, column] => {
            let rows = step.b.reduce("reduce_mean", squares, &[-1], true)?;
            let columns = step.b.reduce("reduce_mean", squares, &[-2], true)?;
            let row = step.lerp(row, rows, newness)?;
            let column = step.lerp(column, columns, newness)?;
            let mean = step.b.reduce("reduce_mean", row, &[-2], true)?;
            let mean = at_least(step, mean, EPS)?;
            let estimate = step.b.mul(row, column)?;
            (vec![row, column], step.b.div(estimate, mean)?)
        }
        _ => unreachable!("declared"),
    };
    let estimate = at_least(step, estimate, EPS * EPS)?;
    let inverse = step.b.unary("rsqrt", estimate)?;
    let change = step.b.mul(inverse, grad)?;
    let excess = self::size(step, change, root * clip_threshold)?;
    let excess = at_least(step, excess, 1.0)?;
    let rate = step.b.div(rate, excess)?;
    let rate = step.b.unary("neg", rate)?;
    let change = step.b.mul(change, rate)?;
    let param = step.apply(change, weight_decay)?;
    Ok([vec![param], kept].concat())
}

/// The norm, divided.
fn size(step: &mut Step<'_, '_>, x: Value, by: f64) -> Result<Value, OpError> {
    let squares = step.squares(x)?;
    let norm = step.b.unary("sqrt", squares)?;
    let by = step.number(by)?;
    step.b.div(norm, by)
}

fn at_least(step: &mut Step<'_, '_>, x: Value, least: f64) -> Result<Value, OpError> {
    let least = step.number(least)?;
    step.b.op1("maximum", Attrs::none(), &[x, least])
}
