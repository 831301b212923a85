//! Elements picked by index tensors, as views where the indices are known to be grids.

use ir::{Attrs, Dim, OpError, Value, normalize_axis};

use super::super::{
    cx::{Cx, Results},
    index::Affine,
};

pub(super) fn gather(cx: &mut Cx<'_, '_>) -> Results {
    let (data, indices) = (cx.arg(0)?, cx.arg(1)?);
    let axis = cx.axis(0, cx.rank(data))?;
    let grid = cx.shape(indices);
    // Sizes picked from a shape are folded by their facts.
    if cx.b.fact(data).dims.is_none()
        && let Some(form) = cx.form(indices)
        && let Some(v) = take(cx, data, axis, &grid, &[form])?
    {
        return Ok(vec![v]);
    }
    let axis = i64::try_from(axis).unwrap_or(i64::MAX);
    Ok(vec![cx.op("gather", Attrs::none().with("axis", axis), &[data, indices])?])
}

pub(super) fn gather_elements(cx: &mut Cx<'_, '_>) -> Results {
    let (data, indices) = (cx.arg(0)?, cx.arg(1)?);
    let rank = cx.rank(data);
    let axis = cx.axis(0, rank)?;
    let grid = cx.shape(indices);
    if grid.len() != rank {
        let n = grid.len();
        return Err(OpError::new(format!("has indices of {n} axes for data of {rank}")));
    }
    if let Some(form) = cx.form(indices) {
        let own = |k: usize| {
            let mut strides = vec![Dim::from(0); rank];
            if !grid[k].is(1) {
                strides[k] = Dim::from(1);
            }
            Affine { base: Dim::from(0), strides }
        };
        let columns: Vec<_> =
            (0..rank).map(|k| if k == axis { form.clone() } else { own(k) }).collect();
        if let Some(v) = take(cx, data, 0, &grid, &columns)? {
            return Ok(vec![v]);
        }
    }
    if let Some(v) = everywhere(cx, data, &grid)? {
        return Ok(vec![v]);
    }
    let axis = i64::try_from(axis).unwrap_or(i64::MAX);
    Ok(vec![cx.op("gather_elements", Attrs::none().with("axis", axis), &[data, indices])?])
}

pub(super) fn gather_nd(cx: &mut Cx<'_, '_>) -> Results {
    let (data, indices) = (cx.arg(0)?, cx.arg(1)?);
    let batch = cx.attrs.int_or("batch_dims", 0)?;
    let grid = cx.shape(indices);
    if batch == 0
        && let Some(columns) = columns(cx, indices).filter(|c| c.len() <= cx.rank(data))
        && let Some(v) = take(cx, data, 0, &grid[..grid.len() - 1], &columns)?
    {
        return Ok(vec![v]);
    }
    Ok(vec![cx.op("gather_nd", Attrs::none().with("batch_dims", batch), &[data, indices])?])
}

pub(super) fn scatter_nd(cx: &mut Cx<'_, '_>) -> Results {
    let reduction = cx.attrs.text("reduction")?.unwrap_or("none");
    if reduction != "none" {
        return Err(OpError::attr("reduction", format_args!("`{reduction}` is not supported")));
    }
    let args = [cx.arg(0)?, cx.arg(1)?, cx.arg(2)?];
    Ok(vec![cx.plain("scatter_nd", &args)?])
}

/// The forms of the columns along the last axis of an index tensor, each over the other axes.
fn columns(cx: &mut Cx<'_, '_>, indices: Value) -> Option<Vec<Affine>> {
    let shape = cx.shape(indices);
    let last = shape.len().checked_sub(1)?;
    let node = cx.b.graph().node(indices.node);
    let parts: Vec<Value> = match node.op.name() {
        "concat" if normalize_axis(node.attrs.int("axis"), last + 1) == Some(last) => {
            node.inputs().iter().copied().collect::<Option<_>>()?
        }
        _ => vec![indices],
    };
    parts
        .into_iter()
        .map(|v| {
            if !cx.shape(v)[last].is(1) {
                return None;
            }
            let mut form = cx.form(v)?;
            form.strides.pop();
            Some(form)
        })
        .collect()
}

/// `data` with the axes from `first` on, one a column, replaced by `grid`, indexed by the columns'
/// values; `None` where that is not a view.
///
/// It is one where each column walks through a range of its axis in order, along grid axes of its
/// own: a slice, taken apart into those axes, brought into the grid's order and broadcast over the
/// axes that no column varies along.
fn take(
    cx: &mut Cx<'_, '_>,
    data: Value,
    first: usize,
    grid: &[Dim],
    columns: &[Affine],
) -> Result<Option<Value>, OpError> {
    let shape = cx.shape(data);
    let (lead, rest) = (&shape[..first], &shape[first + columns.len()..]);
    let mut ranges = Vec::new();
    let mut order = Vec::new();
    for (k, column) in columns.iter().enumerate() {
        let n = &shape[first + k];
        let axes = column.varying();
        let Some(range) = walk(cx, column, &axes, grid, n) else { return Ok(None) };
        if axes.iter().any(|a| order.contains(a)) {
            return Ok(None);
        }
        order.extend(axes);
        ranges.push(range);
    }
    let mut x = data;
    for (k, (start, end)) in ranges.iter().enumerate() {
        x = cx.slice(x, first + k, start, end, 1)?;
    }
    let apart = order.iter().map(|a| &grid[*a]);
    let shape = lead.iter().chain(apart).chain(rest).cloned().collect();
    x = cx.reshape(x, shape)?;
    let mut sorted = order.clone();
    sorted.sort_unstable();
    let place = |a: &usize| first + order.iter().position(|o| o == a).unwrap_or(0);
    let perm: Vec<usize> =
        (0..first).chain(sorted.iter().map(place)).chain(first + order.len()..cx.rank(x)).collect();
    if !perm.is_sorted() {
        x = cx.transpose(x, &perm)?;
    }
    let one = Dim::from(1);
    let thin = (0..grid.len()).map(|a| if order.contains(&a) { &grid[a] } else { &one });
    let thin = lead.iter().chain(thin).chain(rest).cloned().collect();
    x = cx.reshape(x, thin)?;
    let full = lead.iter().chain(grid).chain(rest).cloned().collect();
    Ok(Some(cx.broadcast_to(x, full)?))
}

/// The range of an axis of `n` that a column walks through in order along `axes`, if it does.
fn walk(
    cx: &mut Cx<'_, '_>,
    column: &Affine,
    axes: &[usize],
    grid: &[Dim],
    n: &Dim,
) -> Option<(Dim, Dim)> {
    let mut step = Dim::from(1);
    for a in axes.iter().rev() {
        if column.strides[*a] != step {
            return None;
        }
        step = step * grid[*a].clone();
    }
    let start = match cx.sizes.non_negative(&column.base)? {
        true => column.base.clone(),
        false => column.base.clone() + n.clone(),
    };
    if cx.sizes.non_negative(&start) != Some(true) {
        return None;
    }
    let end = start.clone() + step;
    cx.sizes.keep_at_most(&end, n).then_some((start, end))
}

/// Data that hold one value everywhere, over another shape.
fn everywhere(cx: &mut Cx<'_, '_>, data: Value, shape: &[Dim]) -> Result<Option<Value>, OpError> {
    let Some(form) = cx.form(data).filter(Affine::is_splat) else { return Ok(None) };
    let value = cx.size(cx.dtype(data), &form.base)?;
    cx.broadcast_to(value, shape.to_vec()).map(Some)
}
