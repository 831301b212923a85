//! Normalisations.

use ir::{Attrs, DType, Dim, OpError, Value};

use super::super::cx::{Cx, Results, product};

pub(super) fn layer_norm(cx: &mut Cx<'_, '_>) -> Results {
    norm(cx, "layer_norm")
}

pub(super) fn rms_norm(cx: &mut Cx<'_, '_>) -> Results {
    norm(cx, "rms_norm")
}

/// A norm over the axes from `axis` on, which are merged; narrow floats are widened for it.
fn norm(cx: &mut Cx<'_, '_>, op: &str) -> Results {
    let x = cx.arg(0)?;
    let (shape, dtype) = (cx.shape(x), cx.dtype(x));
    let axis = cx.axis(-1, shape.len())?;
    let eps = cx.attrs.float_or("epsilon", 1e-5)?;
    let wide = match cx.attrs.int_or("stash_type", 1)? {
        1 if matches!(dtype, DType::Bf16 | DType::F16) => DType::F32,
        1 => dtype,
        11 => DType::F64,
        other => return Err(OpError::attr("stash_type", format_args!("{other} is not supported"))),
    };
    let merged = product(&shape[axis..]);
    let mut flat: Vec<Dim> = shape[..axis].to_vec();
    flat.push(merged.clone());
    let mut args: Vec<Value> = Vec::new();
    let v = cx.reshape(x, flat)?;
    args.push(cx.cast(v, wide)?);
    let scales = if op == "layer_norm" { 2 } else { 1 };
    for i in 1..=scales {
        let Some(w) = (if i == 1 { Some(cx.arg(1)?) } else { cx.opt(i) }) else { continue };
        let w = cx.broadcast_to(w, shape[axis..].to_vec())?;
        let w = cx.reshape(w, vec![merged.clone()])?;
        args.push(cx.cast(w, wide)?);
    }
    let y = cx.op(op, Attrs::none().with("eps", eps), &args)?;
    let y = cx.cast(y, dtype)?;
    let mut results = vec![cx.reshape(y, shape.clone())?];
    if cx.outputs > 1 && op == "layer_norm" {
        let mut kept = shape;
        kept[axis..].fill(Dim::from(1));
        results.extend(moments(cx, args[0], eps, &kept)?);
    }
    Ok(results)
}

/// Mean and inverse standard deviation over the last axis, which a layer norm has as results.
fn moments(cx: &mut Cx<'_, '_>, x: Value, eps: f64, shape: &[Dim]) -> Result<[Value; 2], OpError> {
    let axis = cx.rank(x) - 1;
    let mean = cx.reduce("reduce_mean", x, &[axis], true)?;
    let centred = cx.plain("sub", &[x, mean])?;
    let square = cx.plain("mul", &[centred, centred])?;
    let var = cx.reduce("reduce_mean", square, &[axis], true)?;
    let eps = cx.scalar(cx.dtype(x), eps)?;
    let var = cx.plain("add", &[var, eps])?;
    let inverse = cx.plain("rsqrt", &[var])?;
    Ok([cx.reshape(mean, shape.to_vec())?, cx.reshape(inverse, shape.to_vec())?])
}

/// Inference: `(x - mean) / sqrt(var + eps) · scale + bias` by channel, axis 1.
pub(super) fn batch_norm(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let rank = cx.rank(x);
    let eps = cx.attrs.float_or("epsilon", 1e-5)?;
    // The momentum matters in training only.
    cx.attrs.float("momentum")?;
    if cx.attrs.flag("training_mode", false)? || !cx.attrs.flag("spatial", true)? {
        return Err(OpError::new("is in training mode: export the model with model.eval()"));
    }
    if rank < 2 {
        return Err(OpError::new("takes an operand of two or more axes"));
    }
    let mut params = Vec::new();
    for i in 1..=4 {
        let p = cx.arg(i)?;
        let mut shape = vec![Dim::from(1); rank - 1];
        shape[0] = product(&cx.shape(p));
        params.push(cx.reshape(p, shape)?);
    }
    let eps = cx.scalar(cx.dtype(params[3]), eps)?;
    let var = cx.plain("add", &[params[3], eps])?;
    let std = cx.plain("sqrt", &[var])?;
    let centred = cx.plain("sub", &[x, params[2]])?;
    let unit = cx.plain("div", &[centred, std])?;
    let scaled = cx.plain("mul", &[unit, params[0]])?;
    Ok(vec![cx.plain("add", &[scaled, params[1]])?])
}

/// One group a channel.
pub(super) fn instance_norm(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let channels = cx.shape(x).get(1).and_then(Dim::as_const);
    let channels = channels.ok_or_else(|| OpError::new("takes [N, C, ..] with a constant C"))?;
    let eps = cx.attrs.float_or("epsilon", 1e-5)?;
    let attrs = Attrs::none().with("groups", channels).with("eps", eps);
    Ok(vec![cx.op("group_norm", attrs, &[x, cx.arg(1)?, cx.arg(2)?])?])
}

/// Scale and bias are by channel since opset 21, by group before.
pub(super) fn group_norm(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let groups = cx.attrs.int("num_groups")?;
    let groups = groups.ok_or_else(|| OpError::attr("num_groups", "is required"))?;
    let eps = cx.attrs.float_or("epsilon", 1e-5)?;
    let dtype = cx.dtype(x);
    let wide = match cx.attrs.int_or("stash_type", 1)? {
        1 if matches!(dtype, DType::Bf16 | DType::F16) => DType::F32,
        1 => dtype,
        other => return Err(OpError::attr("stash_type", format_args!("{other} is not supported"))),
    };
    let channels = cx.shape(x).get(1).cloned();
    let channels = channels.ok_or_else(|| OpError::new("takes [N, C, ..]"))?;
    let mut args = vec![cx.cast(x, wide)?];
    for i in 1..=2 {
        let mut v = cx.arg(i)?;
        if cx.opset < 21 {
            let each = channels.as_const().filter(|c| groups > 0 && c % groups == 0);
            let each = each.ok_or_else(|| {
                OpError::attr("num_groups", format_args!("{groups} does not divide {channels}"))
            })?;
            let each = each / groups;
            v = cx.reshape(v, vec![groups.into(), 1.into()])?;
            v = cx.broadcast_to(v, vec![groups.into(), each.into()])?;
            v = cx.reshape(v, vec![channels.clone()])?;
        }
        args.push(cx.cast(v, wide)?);
    }
    let attrs = Attrs::none().with("groups", groups).with("eps", eps);
    let y = cx.op("group_norm", attrs, &args)?;
    Ok(vec![cx.cast(y, dtype)?])
}
