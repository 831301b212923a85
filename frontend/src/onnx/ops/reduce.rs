//! Reductions, running sums, the best elements and softmax.

use ir::{Attrs, DType, Dim, OpError, Value};

use super::super::cx::{Cx, Results};
use super::slice::halves;

/// What is reduced: axes as an attribute in older opsets, as an operand since; all by default.
fn extent(cx: &Cx<'_, '_>, x: Value) -> Result<(Vec<usize>, bool), OpError> {
    let keep = cx.attrs.flag("keepdims", true)?;
    let noop = cx.attrs.flag("noop_with_empty_axes", false)?;
    let axes = cx.axes(1, cx.rank(x))?.filter(|a| !a.is_empty());
    Ok((axes.unwrap_or_else(|| if noop { vec![] } else { (0..cx.rank(x)).collect() }), keep))
}

pub(super) fn reduce(cx: &mut Cx<'_, '_>, op: &str) -> Results {
    let x = cx.arg(0)?;
    let (axes, keep) = extent(cx, x)?;
    if cx.dtype(x) == DType::Bool {
        let bits = cx.cast(x, DType::U8)?;
        let y = cx.reduce(op, bits, &axes, keep)?;
        return Ok(vec![cx.cast(y, DType::Bool)?]);
    }
    // Rules read the last axis as -1.
    if axes.len() == 1 && axes[0] + 1 == cx.rank(x) {
        let attrs = Attrs::none().with("axes", vec![-1]).with("keep", keep);
        return Ok(vec![cx.op(op, attrs, &[x])?]);
    }
    Ok(vec![cx.reduce(op, x, &axes, keep)?])
}

pub(super) fn l1(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let (axes, keep) = extent(cx, x)?;
    let size = cx.plain("abs", &[x])?;
    Ok(vec![cx.reduce("reduce_sum", size, &axes, keep)?])
}

pub(super) fn l2(cx: &mut Cx<'_, '_>) -> Results {
    let sum = reduce(cx, "reduce_sum_square")?[0];
    Ok(vec![cx.plain("sqrt", &[sum])?])
}

pub(super) fn cumsum(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let axis = super::super::cx::axis(cx.int(1, "the axis")?, cx.rank(x))?;
    let (exclusive, reverse) =
        (cx.attrs.flag("exclusive", false)?, cx.attrs.flag("reverse", false)?);
    let last = cx.shape(x)[axis].clone() - Dim::from(1);
    let flip = |cx: &mut Cx<'_, '_>, v| match reverse {
        true => cx.slice(v, axis, &last, &Dim::from(-1), -1),
        false => Ok(v),
    };
    let mut v = flip(cx, x)?;
    if exclusive {
        // Zero, then all but the last: what is taken off a sum again does not cancel in floats.
        let zero = cx.scalar(cx.dtype(x), 0.0)?;
        let mut shape = cx.shape(x);
        let extent = std::mem::replace(&mut shape[axis], Dim::from(1));
        let zero = cx.broadcast_to(zero, shape)?;
        v = cx.concat(&[zero, v], axis)?;
        v = cx.slice(v, axis, &Dim::from(0), &extent, 1)?;
    }
    let attrs = Attrs::none().with("axis", i64::try_from(axis).unwrap_or(i64::MAX));
    let v = cx.op("cumsum", attrs, &[v])?;
    Ok(vec![flip(cx, v)?])
}

/// `k` was an attribute before opset 10.
pub(super) fn topk(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let k = match cx.opset {
        ..10 => cx.attrs.int("k")?.into_iter().map(Dim::from).collect(),
        _ => cx.elements(1, "k")?,
    };
    let axis = cx.attrs.int_or("axis", -1)?;
    let attrs = Attrs::none().with("k", k).with("axis", axis);
    let attrs = attrs.with("largest", cx.attrs.flag("largest", true)?);
    let attrs = attrs.with("sorted", cx.attrs.flag("sorted", true)?);
    cx.b.op("topk", attrs, &[Some(x)])
}

/// Along one axis since opset 13; over all axes from `axis` on before.
pub(super) fn softmax(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let rank = cx.rank(x);
    let old = cx.opset < 13;
    let axis = cx.axis(if old { 1 } else { -1 }, rank)?;
    if !old || axis + 1 == rank {
        return Ok(vec![cx.softmax(x, axis)?]);
    }
    let shape = cx.shape(x);
    let flat = cx.reshape(x, halves(&shape, axis).to_vec())?;
    let y = cx.softmax(flat, 1)?;
    Ok(vec![cx.reshape(y, shape)?])
}

/// `x - log Σ exp(x)`, by way of the maximum.
pub(super) fn log_softmax(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let shape = cx.shape(x);
    let old = cx.opset < 13;
    let axis = cx.axis(if old { 1 } else { -1 }, shape.len())?;
    let (v, axis) = match old && axis + 1 < shape.len() {
        true => (cx.reshape(x, halves(&shape, axis).to_vec())?, 1),
        false => (x, axis),
    };
    let max = cx.reduce("reduce_max", v, &[axis], true)?;
    let v = cx.plain("sub", &[v, max])?;
    let e = cx.plain("exp", &[v])?;
    let sum = cx.reduce("reduce_sum", e, &[axis], true)?;
    let log = cx.plain("log", &[sum])?;
    let y = cx.plain("sub", &[v, log])?;
    Ok(vec![cx.reshape(y, shape)?])
}
