//! The derivative of batched `attention`, for which there is no kernel of its own: products and
//! elementwise operators.

use super::adjoint::{compare, exchange, iota, one_minus_square, size, times};
use crate::{Attrs, Builder, DType, Dim, OpError, Value, VjpCx};

/// Cotangents of q, k, v and bias. Of a score s with weight p, `dv` adds `p·dy` and `ds` is
/// `p·(dy·v - dy·y)`; Dao 2023, arXiv:2307.08691. Weights are computed again.
pub(super) fn batched_attention(cx: &mut VjpCx<'_, '_>) -> Result<Vec<Option<Value>>, OpError> {
    let [q, k, v] = [0, 1, 2].map(|i| cx.arg(i));
    let (dy, bias) = (cx.cotangent(0)?, cx.args.get(4).copied().flatten());
    let heads = Heads::of(cx.b, q, k)?;
    let [q, y, dy] =
        [heads.group(cx.b, q)?, heads.group(cx.b, cx.results[0])?, heads.group(cx.b, dy)?];
    let Weights { p, slope, hidden } = weights(cx, &heads, [q, k], bias)?;
    let dv = cx.when(2, |cx| {
        let p = exchange(cx.b, p, 2, 1)?;
        cx.b.matmul(p, dy)
    })?;
    let mut out = vec![None, None, dv, None, None];
    if ![0, 1, 4].into_iter().any(|i| cx.needs(i)) {
        return Ok(out);
    }
    let transposed = exchange(cx.b, v, 2, 1)?;
    let dp = cx.b.matmul(dy, transposed)?;
    let mean = cx.b.mul(dy, y)?;
    let mean = cx.b.reduce("reduce_sum", mean, &[-1], true)?;
    let ds = cx.b.sub(dp, mean)?;
    let mut ds = cx.b.mul(p, ds)?;
    if let Some(hidden) = hidden {
        let zero = cx.b.scalar(cx.b.ty(ds).dtype, 0.0)?;
        ds = cx.b.select(hidden, zero, ds)?;
    }
    out[4] = cx.when(4, |cx| cx.b.reshape(ds, heads.scores(false)))?;
    if let Some(slope) = slope {
        ds = cx.b.mul(ds, slope)?;
    }
    let ds = times(cx.b, ds, cx.attrs.float("scale"))?;
    out[0] = cx.when(0, |cx| {
        let dq = cx.b.matmul(ds, k)?;
        let shape = cx.ty(0).shape.to_vec();
        cx.b.reshape(dq, shape)
    })?;
    out[1] = cx.when(1, |cx| {
        let ds = exchange(cx.b, ds, 2, 1)?;
        cx.b.matmul(ds, q)
    })?;
    Ok(out)
}

/// Sizes of the scores.
struct Heads {
    batch: Dim,
    queries: Dim,
    keys: Dim,
    heads: Dim,
    kv_heads: Dim,
    /// Query heads that share one of keys and values.
    each: Dim,
}

impl Heads {
    fn of(b: &Builder<'_>, q: Value, k: Value) -> Result<Heads, OpError> {
        let ([batch, heads, queries, _], [_, kv_heads, keys, _]) =
            (&*b.ty(q).shape, &*b.ty(k).shape)
        else {
            return Err(OpError::new("takes q and k of four axes"));
        };
        let each = match (heads.as_const(), kv_heads.as_const()) {
            (Some(h), Some(g)) if g > 0 => Dim::from(h / g),
            _ => return Err(OpError::new("takes a constant number of heads")),
        };
        let [batch, queries, keys] = [batch, queries, keys].map(Clone::clone);
        let [heads, kv_heads] = [heads, kv_heads].map(Clone::clone);
        Ok(Heads { batch, queries, keys, heads, kv_heads, each })
    }

    /// `[B, Hq, M, D]` as `[B, Hkv, Hq / Hkv · M, D]`: all queries that meet the same keys.
    fn group(&self, b: &mut Builder<'_>, x: Value) -> Result<Value, OpError> {
        let width = b.ty(x).shape[3].clone();
        let rows = self.each.clone() * self.queries.clone();
        b.reshape(x, vec![self.batch.clone(), self.kv_heads.clone(), rows, width])
    }

    /// The shape of the scores by head, or with the queries of a group together.
    fn scores(&self, grouped: bool) -> Vec<Dim> {
        let rows = self.each.clone() * self.queries.clone();
        let (heads, rows) = match grouped {
            true => (self.kv_heads.clone(), rows),
            false => (self.heads.clone(), self.queries.clone()),
        };
        vec![self.batch.clone(), heads, rows, self.keys.clone()]
    }
}

struct Weights {
    p: Value,
    /// The slope of the cap, where there is one.
    slope: Option<Value>,
    /// Which keys a query does not see, where there are any.
    hidden: Option<Value>,
}

fn weights(
    cx: &mut VjpCx<'_, '_>,
    heads: &Heads,
    [q, k]: [Value; 2],
    bias: Option<Value>,
) -> Result<Weights, OpError> {
    let cap = cx.attrs.float("softcap");
    let transposed = exchange(cx.b, k, 2, 1)?;
    let s = cx.b.matmul(q, transposed)?;
    let mut s = times(cx.b, s, cx.attrs.float("scale"))?;
    let mut slope = None;
    if cap > 0.0 {
        let t = times(cx.b, s, 1.0 / cap)?;
        let t = cx.b.tanh(t)?;
        slope = Some(one_minus_square(cx.b, t)?);
        s = times(cx.b, t, cap)?;
    }
    let b = &mut *cx.b;
    let dtype = b.ty(s).dtype;
    let lowest = b.scalar(dtype, f64::NEG_INFINITY)?;
    let mut hidden = masked(b, cx.attrs, heads)?;
    if let Some(bias) = bias {
        let full = Attrs::none().with("shape", heads.scores(false));
        let bias = b.op1("broadcast_to", full, &[bias])?;
        let bias = b.reshape(bias, heads.scores(true))?;
        s = b.add(s, bias)?;
        let off = compare(b, "equal", bias, lowest)?;
        hidden = Some(match hidden {
            Some(mask) => compare(b, "or", mask, off)?,
            None => off,
        });
    }
    if let Some(hidden) = hidden {
        s = b.select(hidden, lowest, s)?;
    }
    // A query that sees no key has no weights.
    let (zero, one) = (b.scalar(dtype, 0.0)?, b.scalar(dtype, 1.0)?);
    let max = b.reduce("reduce_max", s, &[-1], true)?;
    let blind = compare(b, "equal", max, lowest)?;
    let max = b.select(blind, zero, max)?;
    let e = b.sub(s, max)?;
    let e = b.exp(e)?;
    let sum = b.reduce("reduce_sum", e, &[-1], true)?;
    let sum = b.select(blind, one, sum)?;
    Ok(Weights { p: b.div(e, sum)?, slope, hidden })
}

/// Which keys the mask and the window hide from each query of a group: `[Hq / Hkv · M, N]`.
fn masked(b: &mut Builder<'_>, attrs: &Attrs, heads: &Heads) -> Result<Option<Value>, OpError> {
    let (causal, window) = (attrs.str("mask") == "causal", attrs.int("window"));
    if !causal && window == 0 {
        return Ok(None);
    }
    let grid = [heads.each.clone(), heads.queries.clone(), heads.keys.clone()];
    let [row, key] = [iota(b, &grid, 1, DType::I64)?, iota(b, &grid, 2, DType::I64)?];
    let ahead = heads.keys.clone() - heads.queries.clone();
    let ahead = size(b, &ahead, DType::I64)?;
    let position = b.add(row, ahead)?;
    let distance = b.sub(position, key)?;
    let mut hidden = None;
    if causal {
        let zero = b.scalar(DType::I64, 0.0)?;
        hidden = Some(compare(b, "less", distance, zero)?);
    }
    if window > 0 {
        let window = size(b, &Dim::from(window), DType::I64)?;
        let far = compare(b, "greater_equal", distance, window)?;
        hidden = Some(match hidden {
            Some(later) => compare(b, "or", later, far)?,
            None => far,
        });
    }
    let rows = heads.each.clone() * heads.queries.clone();
    hidden.map(|h| b.reshape(h, vec![rows, heads.keys.clone()])).transpose()
}
