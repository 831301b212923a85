//! Operators that change shapes and not values.

use ir::{Dim, OpError};

use super::super::cx::{self, Cx, Results, product};

pub(super) fn identity(cx: &mut Cx<'_, '_>) -> Results {
    Ok(vec![cx.arg(0)?])
}

/// Inference only: the operand as it is, and no mask.
pub(super) fn dropout(cx: &mut Cx<'_, '_>) -> Results {
    // Neither matters where nothing is dropped.
    cx.attrs.float("ratio")?;
    cx.attrs.int("seed")?;
    if cx.opt(2).is_some() && cx.int(2, "training_mode")? != 0 {
        return Err(OpError::new("is in training mode: export the model with model.eval()"));
    }
    Ok(vec![cx.arg(0)?])
}

pub(super) fn reshape(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let allow_zero = cx.attrs.flag("allowzero", false)?;
    let target = cx.elements(1, "the shape")?;
    cx::check_rank(target.len())?;
    let from = cx.shape(x);
    let mut shape = Vec::with_capacity(target.len());
    let mut free = None;
    for (i, d) in target.iter().enumerate() {
        if d.is(-1) {
            if free.replace(i).is_some() {
                return Err(OpError::new("the shape holds -1 twice"));
            }
        } else if d.is(0) && !allow_zero {
            shape.push(from.get(i).cloned().ok_or_else(|| {
                OpError::new(format!("the shape copies axis {i}, which the operand lacks"))
            })?);
        } else if cx.sizes.non_negative(d) == Some(true) {
            shape.push(d.clone());
        } else {
            return Err(OpError::new(format!("the shape holds `{d}`, which may be negative")));
        }
    }
    if let Some(i) = free {
        let rest = quotient(&from, &shape).ok_or_else(|| {
            let (n, by) = (product(&from), product(&shape));
            OpError::new(format!("the shape's -1: cannot divide `{n}` elements by `{by}`"))
        })?;
        shape.insert(i, rest);
    }
    Ok(vec![cx.reshape(x, shape)?])
}

/// The product of some sizes over that of others; equal factors cancel.
fn quotient(from: &[Dim], by: &[Dim]) -> Option<Dim> {
    let mut left = from.to_vec();
    let mut divisor = Dim::from(1);
    for d in by {
        match left.iter().position(|l| l == d && !d.is(0)) {
            Some(i) => drop(left.swap_remove(i)),
            None => divisor = divisor * d.clone(),
        }
    }
    product(&left).exact_div(&divisor)
}

pub(super) fn flatten(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let shape = cx.shape(x);
    let given = cx.attrs.int_or("axis", 1)?;
    let split = match i64::try_from(shape.len()) {
        Ok(rank) if given == rank => shape.len(),
        _ => cx::axis(given, shape.len())?,
    };
    Ok(vec![cx.reshape(x, vec![product(&shape[..split]), product(&shape[split..])])?])
}

pub(super) fn squeeze(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let shape = cx.shape(x);
    let one = Dim::from(1);
    let axes = match cx.axes(1, shape.len())? {
        Some(axes) => {
            for a in &axes {
                if !cx.equal(&format!("axis {a}"), &shape[*a], &one)? {
                    let d = &shape[*a];
                    return Err(OpError::new(format!("axis {a} has extent `{d}`, not 1")));
                }
            }
            axes
        }
        None => {
            let mut axes = Vec::new();
            for (a, d) in shape.iter().enumerate() {
                if cx.equal(&format!("without axes: axis {a}"), d, &one)? {
                    axes.push(a);
                }
            }
            axes
        }
    };
    let kept = (0..shape.len()).filter(|a| !axes.contains(a)).map(|a| shape[a].clone()).collect();
    Ok(vec![cx.reshape(x, kept)?])
}

pub(super) fn unsqueeze(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let mut shape = cx.shape(x).into_iter();
    let added = match cx.attrs.ints("axes")? {
        Some(axes) => axes.len(),
        None => cx.elements(1, "axes")?.len(),
    };
    let rank = shape.len() + added;
    cx::check_rank(rank)?;
    let axes = cx.axes(1, rank)?.unwrap_or_default();
    let next = |a: usize| {
        if axes.contains(&a) { Dim::from(1) } else { shape.next().unwrap_or_default() }
    };
    let shape = (0..rank).map(next).collect();
    Ok(vec![cx.reshape(x, shape)?])
}

pub(super) fn transpose(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let rank = cx.rank(x);
    let perm = match cx.attrs.ints("perm")? {
        Some(perm) => perm.iter().map(|a| cx::axis(*a, rank)).collect::<Result<_, _>>()?,
        None => (0..rank).rev().collect::<Vec<_>>(),
    };
    Ok(vec![cx.transpose(x, &perm)?])
}

pub(super) fn expand(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let target = cx.elements(1, "the shape")?;
    let shape = broadcast(cx, &cx.shape(x), &target)?;
    Ok(vec![cx.broadcast_to(x, shape)?])
}

/// The shape that two shapes broadcast to.
pub(super) fn broadcast(cx: &Cx<'_, '_>, a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, OpError> {
    let rank = a.len().max(b.len());
    cx::check_rank(rank)?;
    let at = |s: &[Dim], i: usize| {
        (i + s.len()).checked_sub(rank).map_or_else(|| Dim::from(1), |j| s[j].clone())
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if y.is(1) || x == y => Ok(x),
            (x, y) if x.is(1) => match cx.sizes.non_negative(&y) {
                Some(true) => Ok(y),
                _ => Err(OpError::new(format!("the shape holds `{y}`, which may be negative"))),
            },
            (x, y) => match cx.equal(&format!("axis {i}"), &x, &y)? {
                true => Ok(x),
                false => Err(OpError::new(format!("axis {i}: `{x}` and `{y}` differ"))),
            },
        })
        .collect()
}

/// `repeats[i]` copies along axis `i`: broadcast along an axis in front of it, then merged.
pub(super) fn tile(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let shape = cx.shape(x);
    let repeats = cx.elements(1, "the repeats")?;
    if repeats.len() != shape.len() {
        let (n, rank) = (repeats.len(), shape.len());
        return Err(OpError::new(format!("has {n} repeats for {rank} axes")));
    }
    if let Some(r) = repeats.iter().find(|r| cx.sizes.non_negative(r) != Some(true)) {
        return Err(OpError::new(format!("repeats `{r}` times, which may be negative")));
    }
    let (mut apart, mut repeated, mut merged) = (Vec::new(), Vec::new(), Vec::new());
    for (d, r) in shape.iter().zip(&repeats) {
        if !r.is(1) {
            apart.push(Dim::from(1));
            repeated.push(r.clone());
        }
        apart.push(d.clone());
        repeated.push(d.clone());
        merged.push(d.clone() * r.clone());
    }
    let y = cx.reshape(x, apart)?;
    let y = cx.broadcast_to(y, repeated)?;
    Ok(vec![cx.reshape(y, merged)?])
}

pub(super) fn size(cx: &mut Cx<'_, '_>) -> Results {
    let n = product(&cx.shape(cx.arg(0)?));
    Ok(vec![cx.size(ir::DType::I64, &n)?])
}
