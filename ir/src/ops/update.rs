//! What the updates of parameters have in common: types, and arithmetic in f32.

use super::elementwise::spread;
use crate::{
    Attr, Attrs, Builder, DType, Fact, InferCx, OpError, Operand, Sample, Tensor, Value,
    op::{AttrKind, AttrSpec, defaulted, one},
};

/// Checks a parameter, its gradient, `states` states of its shape and then the scalars; the results
/// are the parameter and the states.
pub(super) fn infer_update(cx: &InferCx<'_>, states: usize) -> Result<Vec<Fact>, OpError> {
    let param = cx.ty(0);
    for i in 0..2 + states {
        let ty = cx.ty(i);
        if !ty.dtype.is_float() {
            return Err(OpError::new(format!("updates floats, got {ty}")));
        }
        if ty.rank() != param.rank() {
            return Err(OpError::new(format!("gradient or state is {ty}, beside {param}")));
        }
        for (axis, (a, b)) in param.shape.iter().zip(ty.shape.iter()).enumerate() {
            cx.same(&format!("axis {axis} of parameter and gradient or state"), a, b)?;
        }
    }
    for i in 2 + states..cx.args.len() {
        if cx.ty(i).dtype != DType::F32 || cx.ty(i).rank() != 0 {
            return Err(OpError::new(format!("takes scalars as f32[], got {}", cx.ty(i))));
        }
    }
    let kept = std::iter::once(0).chain(2..2 + states);
    Ok(kept.map(|i| Fact::of(cx.ty(i).clone())).collect())
}

/// Operands of an update with one state.
pub(super) static ONE_STATE: &[Operand] =
    &[one("param"), one("grad"), one("m"), one("lr"), one("grad_scale")];

/// What it writes in place.
pub(super) static ONE_STATE_IN_PLACE: &[(usize, usize)] = &[(0, 0), (1, 2)];

/// Whether weights decay, and how much.
pub(super) const WEIGHT_DECAY: AttrSpec =
    defaulted("weight_decay", AttrKind::Float, || Attr::from(0.0));

/// The expansion of an update: every operand in f32, every result rounded to its own type.
pub(super) fn in_f32(
    b: &mut Builder<'_>,
    args: &[Option<Value>],
    step: impl FnOnce(&mut Builder<'_>, &[Value]) -> Result<Vec<Value>, OpError>,
) -> Result<Vec<Value>, OpError> {
    let args: Vec<Value> = args.iter().map(|v| v.expect("operand")).collect();
    let wide = args.iter().map(|v| b.cast(*v, DType::F32)).collect::<Result<Vec<_>, _>>()?;
    let results = step(b, &wide)?;
    let kept = std::iter::once(0).chain(2..).zip(results);
    kept.map(|(i, v)| b.cast(v, b.ty(args[i]).dtype)).collect()
}

/// `a · c`.
pub(super) fn times(b: &mut Builder<'_>, a: Value, c: f64) -> Result<Value, OpError> {
    let c = b.scalar(DType::F32, c)?;
    b.mul(a, c)
}

/// `param · (1 - lr · weight_decay)`: decay apart from the gradient, Loshchilov & Hutter 2019,
/// arXiv:1711.05101.
pub(super) fn decay(
    b: &mut Builder<'_>,
    attrs: &Attrs,
    param: Value,
    lr: Value,
) -> Result<Value, OpError> {
    if attrs.float("weight_decay") == 0.0 {
        return Ok(param);
    }
    let lost = times(b, lr, attrs.float("weight_decay"))?;
    let one = b.scalar(DType::F32, 1.0)?;
    let kept = b.sub(one, lost)?;
    b.mul(param, kept)
}

/// Samples with these attributes: shapes with tails, narrow parameters and gradients, no elements.
pub(super) fn samples(attrs: &Attrs, states: usize, scalars: &[f64]) -> Vec<Sample> {
    let shapes: [(&[usize], DType, DType); 4] = [
        (&[3, 37], DType::F32, DType::F32),
        (&[7], DType::F32, DType::Bf16),
        (&[2, 9], DType::Bf16, DType::Bf16),
        (&[0, 4], DType::F32, DType::F32),
    ];
    let sample = |(shape, param, grad): (&[usize], DType, DType)| {
        let mut args = vec![spread(param, shape, -1.0, 1.0), spread(grad, shape, 2.0, -3.0)];
        args.extend((0..states).map(|i| spread(DType::F32, shape, 0.1, 0.5 + i as f64)));
        args.extend(scalars.iter().map(|s| Tensor::from_f64s(DType::F32, &[], [*s])));
        Sample { attrs: attrs.clone(), args: args.into_iter().map(Some).collect() }
    };
    shapes.map(sample).into()
}
