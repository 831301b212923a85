//! Tensors that come from sizes alone, and triangles cut out of others.

use std::path::Path;

use ir::{DType, Dim, OpError, Tensor};
use onnx_protobuf::tensor_proto::DataLocation;

use super::super::{
    cx::{self, Cx, Results},
    external::ExternalFiles,
    tensor,
};
use super::slice;

pub(super) fn constant_of_shape(cx: &mut Cx<'_, '_>) -> Results {
    let shape = cx.elements(0, "the shape")?;
    cx::check_rank(shape.len())?;
    if let Some(d) = shape.iter().find(|d| cx.sizes.non_negative(d) != Some(true)) {
        return Err(OpError::new(format!("the shape holds `{d}`, which may be negative")));
    }
    let value = match cx.attrs.tensor("value")? {
        None => Tensor::from_f32s(&[], &[0.0]),
        Some(t) if t.data_location.enum_value() == Ok(DataLocation::EXTERNAL) => {
            return Err(OpError::attr("value", "must not be external data"));
        }
        Some(t) => tensor::decode(&mut t.clone(), &mut ExternalFiles::of(Path::new("")))
            .map_err(|e| OpError::attr("value", e))?,
    };
    if value.len() != 1 {
        return Err(OpError::attr("value", format_args!("holds {} elements, not 1", value.len())));
    }
    let value = cx.b.constant(value.reshape(&[]))?;
    Ok(vec![cx.broadcast_to(value, shape)?])
}

/// `start, start + delta, ..` below `limit`: `start + delta · iota`.
pub(super) fn range(cx: &mut Cx<'_, '_>) -> Results {
    let dtype = cx.dtype(cx.arg(0)?);
    if dtype.is_float() {
        return float_range(cx, dtype);
    }
    let mut bounds = Vec::new();
    for (i, what) in ["start", "limit", "delta"].into_iter().enumerate() {
        match <[Dim; 1]>::try_from(cx.elements(i, what)?) {
            Ok([d]) => bounds.push(d),
            Err(all) => {
                let n = all.len();
                return Err(OpError::new(format!("{what} must be one number, not {n}")));
            }
        }
    }
    let [start, limit, delta] = &bounds[..] else { unreachable!("three bounds") };
    let step = match delta.as_const() {
        Some(v) if v != 0 && v.unsigned_abs() <= u64::from(u32::MAX) => v,
        _ => return Err(OpError::new(format!("steps by `{delta}`"))),
    };
    let span = match step > 0 {
        true => limit.clone() - start.clone(),
        false => start.clone() - limit.clone(),
    };
    let n = cx.sizes.maximum(&span.ceil_div(step.abs()), &Dim::from(0));
    let mut v = cx.iota(vec![n], 0, dtype)?;
    if step != 1 {
        let step = cx.size(dtype, delta)?;
        v = cx.plain("mul", &[v, step])?;
    }
    if !start.is(0) {
        let start = cx.size(dtype, start)?;
        v = cx.plain("add", &[v, start])?;
    }
    Ok(vec![v])
}

fn float_range(cx: &mut Cx<'_, '_>, dtype: DType) -> Results {
    let mut bounds = [0.0; 3];
    for (i, bound) in bounds.iter_mut().enumerate() {
        let v = cx.arg(i)?;
        *bound = match cx.b.fact(v).constant.as_ref().map(Tensor::to_f64s).as_deref() {
            Some([v]) => *v,
            _ => return Err(OpError::new("bounds of a float range must be constant numbers")),
        };
    }
    let [start, limit, delta] = bounds;
    let n = ((limit - start) / delta).ceil().max(0.0);
    if delta == 0.0 || !n.is_finite() || n > f64::from(u32::MAX) {
        return Err(OpError::new(format!("the range {start}..{limit} by {delta} is no range")));
    }
    #[allow(clippy::cast_possible_truncation, reason = "a whole number below 2^32")]
    let n = Dim::from(n as i64);
    let v = cx.iota(vec![n], 0, dtype)?;
    let (delta, start) = (cx.scalar(dtype, delta)?, cx.scalar(dtype, start)?);
    let v = cx.plain("mul", &[v, delta])?;
    Ok(vec![cx.plain("add", &[v, start])?])
}

/// `on` where a new axis' coordinate is the index, `off` elsewhere.
pub(super) fn one_hot(cx: &mut Cx<'_, '_>) -> Results {
    let (indices, values) = (cx.arg(0)?, cx.arg(2)?);
    let mut shape = cx.shape(indices);
    cx::check_rank(shape.len() + 1)?;
    let axis = cx.axis(-1, shape.len() + 1)?;
    let depth = match &cx.elements(1, "the depth")?[..] {
        [d] if cx.sizes.non_negative(d) == Some(true) => d.clone(),
        _ => return Err(OpError::new("the depth must be one number, not negative")),
    };
    shape.insert(axis, Dim::from(1));
    let indices = cx.cast(indices, DType::I64)?;
    let indices = cx.reshape(indices, shape.clone())?;
    let (zero, size) = (cx.scalar(DType::I64, 0.0)?, cx.size(DType::I64, &depth)?);
    let negative = cx.plain("less", &[indices, zero])?;
    let from_end = cx.plain("add", &[indices, size])?;
    let indices = cx.plain("select", &[negative, from_end, indices])?;
    let mut coordinates = vec![Dim::from(1); shape.len()];
    coordinates[axis] = depth;
    let coordinates = cx.iota(coordinates, axis, DType::I64)?;
    let here = cx.plain("equal", &[indices, coordinates])?;
    let [off, on] = slice::cut(cx, values, 0, &Dim::from(1))?;
    let (off, on) = (cx.reshape(off, vec![])?, cx.reshape(on, vec![])?);
    Ok(vec![cx.plain("select", &[here, on, off])?])
}

/// Coordinates of the elements that are not zero, where all are known not to be: how exporters
/// number elements before opset 11.
pub(super) fn non_zero(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let node = cx.b.graph().node(x.node);
    let source = if node.op.name() == "broadcast_to" { node.input(0) } else { x };
    let nowhere = |t: &Tensor| t.to_f64s().contains(&0.0);
    let known = cx.b.fact(source).constant.as_ref().is_some_and(|t| !nowhere(t));
    match &cx.shape(x)[..] {
        [n] if known => Ok(vec![cx.iota(vec![Dim::from(1), n.clone()], 1, DType::I64)?]),
        _ => Err(OpError::new(
            "depends on data for its result's size, which is not supported: export the model \
             without it, for instance with another opset",
        )),
    }
}

/// The upper or lower triangle: a comparison of row and column numbers, so that masks stay
/// recognisable.
pub(super) fn trilu(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let upper = cx.attrs.flag("upper", true)?;
    let k = match cx.opt(1) {
        None => Dim::from(0),
        Some(_) => match <[Dim; 1]>::try_from(cx.elements(1, "the diagonal")?) {
            Ok([k]) => k,
            Err(_) => return Err(OpError::new("the diagonal must be one number")),
        },
    };
    let shape = cx.shape(x);
    let [.., rows, columns] = &shape[..] else {
        return Err(OpError::new("takes a matrix or a batch of them"));
    };
    let row = cx.iota(vec![rows.clone(), Dim::from(1)], 0, DType::I64)?;
    let column = cx.iota(vec![columns.clone()], 0, DType::I64)?;
    let edge = if k.is(0) {
        row
    } else {
        let k = cx.size(DType::I64, &k)?;
        cx.plain("add", &[row, k])?
    };
    let keep = cx.plain(if upper { "greater_equal" } else { "less_equal" }, &[column, edge])?;
    let dtype = cx.dtype(x);
    if dtype == DType::Bool {
        return Ok(vec![cx.plain("and", &[keep, x])?]);
    }
    let zero = cx.scalar(dtype, 0.0)?;
    Ok(vec![cx.plain("select", &[keep, x, zero])?])
}
