//! What rules of differentiation have in common.

use crate::{Attrs, Builder, DType, Dim, OpError, Value};

/// `x · c`.
pub(super) fn times(b: &mut Builder<'_>, x: Value, c: f64) -> Result<Value, OpError> {
    let c = b.scalar(b.ty(x).dtype, c)?;
    b.mul(x, c)
}

/// `1 - x²`.
pub(super) fn one_minus_square(b: &mut Builder<'_>, x: Value) -> Result<Value, OpError> {
    let one = b.scalar(b.ty(x).dtype, 1.0)?;
    let square = b.mul(x, x)?;
    b.sub(one, square)
}

/// The cotangent of `own` in its larger or smaller with `other`: of equals, each gets half.
pub(super) fn extremum(
    b: &mut Builder<'_>,
    better: &str,
    own: Value,
    other: Value,
    dc: Value,
) -> Result<Value, OpError> {
    let zero = b.scalar(b.ty(own).dtype, 0.0)?;
    let lost = compare(b, better, other, own)?;
    let tied = compare(b, "equal", own, other)?;
    let half = times(b, dc, 0.5)?;
    let kept = b.select(tied, half, dc)?;
    b.select(lost, zero, kept)
}

/// A comparison, broadcast.
pub(super) fn compare(b: &mut Builder<'_>, op: &str, x: Value, y: Value) -> Result<Value, OpError> {
    b.op1(op, Attrs::none(), &[x, y])
}

/// `x` with axes `i` and `j` exchanged, counted from the end.
pub(super) fn exchange(
    b: &mut Builder<'_>,
    x: Value,
    i: usize,
    j: usize,
) -> Result<Value, OpError> {
    let rank = b.ty(x).rank();
    let mut perm: Vec<i64> = (0..).take(rank).collect();
    perm.swap(rank - i, rank - j);
    b.transpose(x, &perm)
}

/// A symbolic size as a scalar.
pub(super) fn size(b: &mut Builder<'_>, size: &Dim, dtype: DType) -> Result<Value, OpError> {
    let attrs = Attrs::none().with("sizes", vec![size.clone()]).with("scalar", true);
    let int = if dtype.is_int() { dtype } else { DType::I64 };
    let v = b.op1("size_vector", attrs.with("dtype", int), &[])?;
    b.cast(v, dtype)
}

/// Coordinates along an axis of a shape.
pub(super) fn iota(
    b: &mut Builder<'_>,
    shape: &[Dim],
    axis: usize,
    dtype: DType,
) -> Result<Value, OpError> {
    let attrs = Attrs::none().with("shape", shape.to_vec()).with("axis", axis as i64);
    b.op1("iota", attrs.with("dtype", dtype), &[])
}

/// `x` between `before` and `after` elements of one value along an axis.
pub(super) fn pad(
    b: &mut Builder<'_>,
    x: Value,
    axis: usize,
    [before, after]: [Dim; 2],
    value: f64,
) -> Result<Value, OpError> {
    let ty = b.ty(x).clone();
    let mut parts = vec![x];
    for (i, size) in [before, after].into_iter().enumerate() {
        if !size.is(0) {
            let mut shape = ty.shape.clone();
            shape[axis] = size;
            let part = b.full(ty.dtype, value, &shape)?;
            parts.insert(if i == 0 { 0 } else { parts.len() }, part);
        }
    }
    if parts.len() == 1 { Ok(x) } else { b.concat(&parts, axis as i64) }
}

/// The elements along an axis in reverse.
pub(super) fn flip(b: &mut Builder<'_>, x: Value, axis: usize) -> Result<Value, OpError> {
    let last = b.ty(x).shape[axis].clone() - Dim::from(1);
    let attrs = Attrs::none().with("axis", axis as i64).with("range", vec![last, Dim::from(-1)]);
    b.op1("slice", attrs.with("step", -1i64), &[x])
}

/// Every `step`-th of the elements from `start` on along an axis, `n` of them.
pub(super) fn take(
    b: &mut Builder<'_>,
    x: Value,
    axis: usize,
    (start, step): (Dim, i64),
    n: &Dim,
) -> Result<Value, OpError> {
    let end = start.clone() + reach(b, n, step);
    if start.is(0) && step == 1 && end == b.ty(x).shape[axis] {
        return Ok(x);
    }
    let attrs = Attrs::none().with("axis", axis as i64).with("range", vec![start, end]);
    b.op1("slice", attrs.with("step", step), &[x])
}

/// The transpose of [`take`]: elements laid `step` apart from `start` on in zeros, along an axis of
/// `extent`.
pub(super) fn lay(
    b: &mut Builder<'_>,
    x: Value,
    axis: usize,
    (start, step): (Dim, i64),
    extent: &Dim,
) -> Result<Value, OpError> {
    let ty = b.ty(x).clone();
    let n = ty.shape[axis].clone();
    let mut y = x;
    if step > 1 {
        let mut apart = ty.shape.to_vec();
        apart.insert(axis + 1, Dim::from(1));
        y = b.reshape(y, apart)?;
        y = pad(b, y, axis + 1, [Dim::from(0), Dim::from(step - 1)], 0.0)?;
        let mut joined = ty.shape.to_vec();
        joined[axis] = n.clone() * Dim::from(step);
        y = b.reshape(y, joined)?;
        let end = reach(b, &n, step);
        y = b.slice(y, axis as i64, 0i64, end)?;
    }
    let rest = extent.clone() - start.clone() - reach(b, &n, step);
    pad(b, y, axis, [start, rest], 0.0)
}

/// Elements from the first to the last of `n` that lie `step` apart; none of none.
pub(super) fn reach(b: &Builder<'_>, n: &Dim, step: i64) -> Dim {
    if step == 1 {
        return n.clone();
    }
    let span = (n.clone() - Dim::from(1)) * Dim::from(step) + Dim::from(1);
    if n.bounds(&b.module().symbols).lo > 0 { span } else { span.maximum(&Dim::from(0)) }
}

/// Rows of `x: [R, D]` added to the rows of a table that `ids: [R]` name; one that is negative or
/// no row adds nothing.
pub(super) fn add_rows(
    b: &mut Builder<'_>,
    x: Value,
    ids: Value,
    rows: &Dim,
) -> Result<Value, OpError> {
    let dtype = b.ty(ids).dtype;
    let ids = if matches!(dtype, DType::I32 | DType::I64) { ids } else { b.cast(ids, DType::I64)? };
    let dtype = b.ty(ids).dtype;
    let zero = b.scalar(dtype, 0.0)?;
    let none = size(b, rows, dtype)?;
    let negative = compare(b, "less", ids, zero)?;
    let ids = b.select(negative, none, ids)?;
    b.op1("embedding_grad", Attrs::none().with("rows", vec![rows.clone()]), &[x, ids])
}

/// Indices as i64, those that count from the end of an axis of `extent` counted from its front.
pub(super) fn from_front(b: &mut Builder<'_>, ids: Value, extent: &Dim) -> Result<Value, OpError> {
    let ids = b.cast(ids, DType::I64)?;
    let (zero, extent) = (b.scalar(DType::I64, 0.0)?, size(b, extent, DType::I64)?);
    let negative = compare(b, "less", ids, zero)?;
    let counted = b.add(ids, extent)?;
    b.select(negative, counted, ids)
}

/// Whether indices lie in `0..extent`.
pub(super) fn inside(b: &mut Builder<'_>, ids: Value, extent: &Dim) -> Result<Value, OpError> {
    let dtype = b.ty(ids).dtype;
    let (zero, extent) = (b.scalar(dtype, 0.0)?, size(b, extent, dtype)?);
    let low = compare(b, "greater_equal", ids, zero)?;
    let high = compare(b, "less", ids, extent)?;
    compare(b, "and", low, high)
}

/// Elements of `x` added to zeros of `shape` at `indices` along an axis: the transpose of
/// `gather_elements`. Both have one shape, off the axis no larger than `shape`.
pub(super) fn add_elements(
    b: &mut Builder<'_>,
    x: Value,
    indices: Value,
    axis: usize,
    shape: &[Dim],
) -> Result<Value, OpError> {
    let own = b.ty(x).shape.to_vec();
    let ids = from_front(b, indices, &shape[axis])?;
    let fits = inside(b, ids, &shape[axis])?;
    let mut place = None;
    for (a, extent) in shape.iter().enumerate() {
        let at = if a == axis { ids } else { iota(b, &own, a, DType::I64)? };
        place = Some(match place {
            None => at,
            Some(before) => {
                let extent = size(b, extent, DType::I64)?;
                let before = b.mul(before, extent)?;
                b.add(before, at)?
            }
        });
    }
    let none = b.scalar(DType::I64, -1.0)?;
    let place = b.select(fits, place.expect("an axis"), none)?;
    let count = own.iter().fold(Dim::from(1), |n, d| n * d.clone());
    let rows = shape.iter().fold(Dim::from(1), |n, d| n * d.clone());
    let place = b.reshape(place, vec![count.clone()])?;
    let x = b.reshape(x, vec![count, Dim::from(1)])?;
    let sums = add_rows(b, x, place, &rows)?;
    b.reshape(sums, shape.to_vec())
}

/// The sequence of each of `tokens` tokens by `cu_seqlens: [S + 1]`, and whether it has one.
pub(super) fn segments(
    b: &mut Builder<'_>,
    cu: Value,
    tokens: &Dim,
) -> Result<(Value, Value), OpError> {
    let bounds = b.ty(cu).shape[0].clone();
    let at = iota(b, &[tokens.clone(), bounds.clone()], 0, DType::I32)?;
    let begun = compare(b, "less_equal", cu, at)?;
    let begun = b.cast(begun, DType::I32)?;
    let begun = b.reduce("reduce_sum", begun, &[1], false)?;
    let one = b.scalar(DType::I32, 1.0)?;
    let own = b.sub(begun, one)?;
    let within = inside(b, own, &(bounds - Dim::from(1)))?;
    let zero = b.scalar(DType::I32, 0.0)?;
    Ok((b.select(within, own, zero)?, within))
}

/// The sum of two cotangents, of which either may be zero.
pub(super) fn plus(
    b: &mut Builder<'_>,
    x: Option<Value>,
    y: Option<Value>,
) -> Result<Option<Value>, OpError> {
    match (x, y) {
        (Some(x), Some(y)) => b.add(x, y).map(Some),
        (x, y) => Ok(x.or(y)),
    }
}
