//! Muon: Jordan et al. 2024, as `torch.optim.Muon` has it, but for the iteration, which is in f32
//! and not in bf16.
//!
//! The update is the momentum with its singular values brought near one, by the quintic iteration
//! of Newton and Schulz: `A = X·Xᵀ`, `X ← a·X + (b·A + c·A²)·X`.

use ir::{OpError, Value};

use super::Step;

/// Coefficients of the polynomial, which is steepest at zero.
const A: f64 = 3.4445;
const B: f64 = -4.7750;
const C: f64 = 2.0315;

/// The smallest norm that is divided by.
const EPS: f64 = 1e-7;

pub(super) fn build(
    step: &mut Step<'_, '_>,
    momentum: f64,
    nesterov: bool,
    ns_steps: u64,
    weight_decay: f64,
) -> Result<Vec<Value>, OpError> {
    let ([m], [lr]) = (step.states, step.scalars) else { unreachable!("declared") };
    let (m, lr) = (*m, *lr);
    let shape = step.b.ty(step.param).shape.to_vec();
    let [rows, columns] = &*shape else {
        return Err(OpError::new("muon updates matrices; take another rule for this parameter"));
    };
    let sides = [rows, columns].map(|d| d.as_const().unwrap_or(1));
    let grad = step.gradient()?;
    let new = step.times(grad, 1.0 - momentum)?;
    let keep = step.number(momentum)?;
    let m = step.accumulate(m, new, keep)?;
    let direction = match nesterov {
        true => {
            let ahead = step.times(m, momentum)?;
            step.b.add(new, ahead)?
        }
        false => m,
    };
    let change = orthogonal(step, direction, ns_steps, sides[0] > sides[1])?;
    #[allow(clippy::cast_precision_loss, reason = "sizes that fit into memory")]
    let ratio = (sides[0] as f64 / sides[1].max(1) as f64).max(1.0).sqrt();
    let rate = step.times(lr, -ratio)?;
    let change = step.b.mul(change, rate)?;
    Ok(vec![step.apply(change, weight_decay)?, m])
}

/// The matrix with singular values near one; `is_tall` if it has more rows than columns.
fn orthogonal(
    step: &mut Step<'_, '_>,
    x: Value,
    ns_steps: u64,
    is_tall: bool,
) -> Result<Value, OpError> {
    let squares = step.squares(x)?;
    let norm = step.b.unary("sqrt", squares)?;
    let least = step.number(EPS)?;
    let norm = step.b.op1("maximum", ir::Attrs::none(), &[norm, least])?;
    let x = step.b.div(x, norm)?;
    let turn = |step: &mut Step<'_, '_>, x| step.b.transpose(x, &[1, 0]);
    let mut x = if is_tall { turn(step, x)? } else { x };
    for _ in 0..ns_steps {
        let turned = turn(step, x)?;
        let gram = step.b.matmul(x, turned)?;
        let square = step.b.matmul(gram, gram)?;
        let (first, second) = (step.times(gram, B)?, step.times(square, C)?);
        let polynomial = step.b.add(first, second)?;
        let far = step.b.matmul(polynomial, x)?;
        let near = step.times(x, A)?;
        x = step.b.add(near, far)?;
    }
    if is_tall { turn(step, x) } else { Ok(x) }
}
