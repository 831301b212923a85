//! Parts of a tensor by ranges.

use ir::{Dim, OpError, Value};

use super::super::cx::{self, Cx, Results, product};

/// Ranges as attributes before opset 10, as operands since.
pub(super) fn slice(cx: &mut Cx<'_, '_>) -> Results {
    let mut x = cx.arg(0)?;
    let rank = cx.rank(x);
    let sizes = |v: &[i64]| v.iter().map(|v| Dim::from(*v)).collect::<Vec<_>>();
    let old = cx.opset < 10;
    let (starts, ends) = if old {
        let missing = |name| OpError::attr(name, "is required");
        let starts = cx.attrs.ints("starts")?.ok_or_else(|| missing("starts"))?;
        let ends = cx.attrs.ints("ends")?.ok_or_else(|| missing("ends"))?;
        (sizes(starts), sizes(ends))
    } else {
        (cx.elements(1, "starts")?, cx.elements(2, "ends")?)
    };
    let axes = match cx.axes(3, rank)? {
        Some(axes) => axes,
        None => (0..starts.len()).collect(),
    };
    let steps = match !old && cx.opt(4).is_some() {
        true => cx.ints(4, "steps")?,
        false => vec![1; starts.len()],
    };
    let n = axes.len();
    if [starts.len(), ends.len(), steps.len()] != [n; 3] || axes.iter().any(|a| *a >= rank) {
        let (s, e, t) = (starts.len(), ends.len(), steps.len());
        return Err(OpError::new(format!(
            "has {s} starts, {e} ends, {n} axes and {t} steps for an operand of {rank} axes"
        )));
    }
    for (i, a) in axes.into_iter().enumerate() {
        x = part(cx, x, a, &starts[i], &ends[i], steps[i])?;
    }
    Ok(vec![x])
}

/// `x[start:end:step]` along an axis as NumPy reads it: counted from the end where negative,
/// clamped to the axis.
fn part(
    cx: &mut Cx<'_, '_>,
    x: Value,
    axis: usize,
    start: &Dim,
    end: &Dim,
    step: i64,
) -> Result<Value, OpError> {
    if step == 0 || step.unsigned_abs() > u64::from(u32::MAX) {
        return Err(OpError::new(format!("steps by {step}")));
    }
    let n = cx.shape(x)[axis].clone();
    let last = n.clone() - Dim::from(1);
    let (zero, one) = (Dim::from(0), Dim::from(1));
    let place = |cx: &Cx<'_, '_>, v: &Dim| match cx.sizes.non_negative(v) {
        Some(true) => Ok(v.clone()),
        Some(false) => Ok(v.clone() + n.clone()),
        None => Err(OpError::new(format!(
            "cannot decide whether `{v}` counts from the start or the end of axis {axis}"
        ))),
    };
    let (start, end) = (place(cx, start)?, place(cx, end)?);
    if step > 0 {
        // A range that ends beyond the axis ends with it; that the sizes allow for that often
        // means that they should be bounded, as where positions are cut from a table.
        if cx.sizes.non_negative(&end) == Some(true) {
            cx.sizes.keep_at_most(&end, &n);
        }
        let clamp = |cx: &Cx<'_, '_>, v: &Dim| cx.sizes.minimum(&cx.sizes.maximum(v, &zero), &n);
        let start = clamp(cx, &start);
        let end = cx.sizes.maximum(&clamp(cx, &end), &start);
        return cx.slice(x, axis, &start, &end, step);
    }
    let start = cx.sizes.minimum(&cx.sizes.maximum(&start, &zero), &last);
    let end = cx.sizes.minimum(&cx.sizes.maximum(&end, &-one), &last);
    let end = cx.sizes.minimum(&end, &start);
    cx.slice(x, axis, &start, &end, step)
}

/// Lengths as an attribute before opset 13, as an operand since; or equal parts.
pub(super) fn split(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let axis = cx.axis(0, cx.rank(x))?;
    let n = cx.shape(x)[axis].clone();
    let given = match cx.attrs.ints("split")? {
        Some(lengths) => Some(lengths.iter().map(|v| Dim::from(*v)).collect()),
        None if cx.opt(1).is_some() => Some(cx.elements(1, "the lengths")?),
        None => None,
    };
    let count = cx.attrs.int("num_outputs")?;
    let parts = i64::try_from(cx.outputs).unwrap_or(i64::MAX);
    if count.is_some_and(|c| c != parts) || parts == 0 {
        return Err(OpError::attr(
            "num_outputs",
            format!("must be the number of results, {parts}"),
        ));
    }
    let lengths = match given {
        Some(lengths) => lengths,
        None => equal_parts(&n, parts).ok_or_else(|| {
            OpError::new(format!("cannot split an axis of `{n}` into {parts} equal parts"))
        })?,
    };
    let total = lengths.iter().fold(Dim::from(0), |n, d| n + d.clone());
    if lengths.len() != cx.outputs || !cx.equal("the lengths' sum", &total, &n)? {
        let k = lengths.len();
        return Err(OpError::new(format!(
            "has {k} lengths, `{total}` in all, for {parts} results of an axis of `{n}`"
        )));
    }
    let mut at = Dim::from(0);
    let mut results = Vec::with_capacity(lengths.len());
    for length in lengths {
        if cx.sizes.non_negative(&length) != Some(true) {
            return Err(OpError::new(format!("the length `{length}` may be negative")));
        }
        let end = at.clone() + length;
        results.push(cx.slice(x, axis, &at, &end, 1)?);
        at = end;
    }
    Ok(results)
}

/// Equal lengths, the last smaller where a constant does not divide.
fn equal_parts(n: &Dim, parts: i64) -> Option<Vec<Dim>> {
    let count = usize::try_from(parts).ok()?;
    if let Some(each) = n.exact_div(&Dim::from(parts)) {
        return Some(vec![each; count]);
    }
    let n = n.as_const()?;
    let each = n.checked_add(parts - 1)? / parts;
    let last = n - each * (parts - 1);
    let mut lengths = vec![Dim::from(each); count];
    *lengths.last_mut()? = Dim::from(last);
    (last >= 0).then_some(lengths)
}

/// The number of elements of an operand's leading axes, and of the rest.
pub(super) fn halves(shape: &[Dim], axis: usize) -> [Dim; 2] {
    let axis = axis.min(shape.len());
    [product(&shape[..axis]), product(&shape[axis..])]
}

/// Splits an axis of constant extent in two at `at`.
pub(super) fn cut(
    cx: &mut Cx<'_, '_>,
    x: Value,
    axis: i64,
    at: &Dim,
) -> Result<[Value; 2], OpError> {
    let shape = cx.shape(x);
    let axis = cx::axis(axis, shape.len())?;
    let first = cx.slice(x, axis, &Dim::from(0), at, 1)?;
    let second = cx.slice(x, axis, at, &shape[axis], 1)?;
    Ok([first, second])
}
