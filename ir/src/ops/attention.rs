//! `attention`: the only operator that mixes positions.

use super::attention_batched::batched_attention;
use super::elementwise::spread;
use crate::{
    Attr, Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType, Vjp,
    op::{AttrKind, defaulted, one, optional, required, same_dtype},
};

/// Scaled dot-product attention, `softmax(mask(cap(q·kᵀ·scale) + bias)) · v`.
///
/// Vaswani et al. 2017, arXiv:1706.03762; grouped heads: Ainslie et al. 2023, arXiv:2305.13245.
/// Query head `h` reads key/value head `h / (Hq / Hkv)`. `mask` is `full` or `causal`; a positive
/// `window` W hides keys at distance W or more before the query; a positive `softcap` c maps scores
/// to `c·tanh(s/c)`. A bias of -inf hides a key, whatever its score. A query that sees no key
/// yields zero.
/// # Shapes
/// Packed: `q: [T, Hq, D]`, `k: [T, Hkv, D]`, `v: [T, Hkv, Dv]`, `cu_seqlens: [S+1]` →
/// `[T, Hq, Dv]`; token `t` sees tokens of its own segment.
///
/// Batched: `q: [B, Hq, M, D]`, `k: [B, Hkv, N, D]`, `v: [B, Hkv, N, Dv]`, `bias` broadcast to
/// `[B, Hq, M, N]` → `[B, Hq, M, Dv]`; query `i` stands at position `i + N - M`.
pub(super) struct Attention;

static SIGNATURE: Signature = Signature {
    operands: &[one("q"), one("k"), one("v"), optional("cu_seqlens"), optional("bias")],
    attrs: &[
        required("scale", AttrKind::Float),
        defaulted("mask", AttrKind::Str, || Attr::from("full")),
        defaulted("window", AttrKind::Int, || Attr::Int(0)),
        defaulted("softcap", AttrKind::Float, || Attr::from(0.0)),
    ],
};

impl OpDef for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        check_attrs(cx)?;
        let (q, k, v) = (cx.ty(0), cx.ty(1), cx.ty(2));
        same_dtype(q.dtype, k.dtype)?;
        same_dtype(q.dtype, v.dtype)?;
        let absent = |i: usize| cx.args.get(i).copied().flatten().is_none();
        let bad = || OpError::new(format!("takes q, k, v packed or batched, got {q}, {k}, {v}"));
        let (heads, kv_heads, out) = match (&*q.shape, &*k.shape, &*v.shape) {
            ([t, hq, d], [tk, hkv, dk], [tv, hv, dv]) => {
                cx.same("tokens of q and k", t, tk)?;
                cx.same("tokens of q and v", t, tv)?;
                cx.same("head size", d, dk)?;
                cx.same("key and value heads", hkv, hv)?;
                if absent(3) || !absent(4) {
                    return Err(OpError::new("the packed form takes cu_seqlens and no bias"));
                }
                if cx.ty(3).rank() != 1 || cx.ty(3).dtype != DType::I32 {
                    return Err(OpError::new(format!("cu_seqlens is {}", cx.ty(3))));
                }
                (hq, hkv, vec![t.clone(), hq.clone(), dv.clone()])
            }
            ([b, hq, m, d], [bk, hkv, n, dk], [bv, hv, nv, dv]) => {
                cx.same("batch of q and k", b, bk)?;
                cx.same("batch of q and v", b, bv)?;
                cx.same("head size", d, dk)?;
                cx.same("key and value heads", hkv, hv)?;
                cx.same("keys and values", n, nv)?;
                if !absent(3) {
                    return Err(OpError::new("the batched form takes no cu_seqlens"));
                }
                if !absent(4) {
                    same_dtype(q.dtype, cx.ty(4).dtype)?;
                    let full = [b, hq, m, n].map(Clone::clone);
                    let shape = cx.broadcast(&cx.ty(4).shape, &full)?;
                    if shape.len() != 4 {
                        return Err(OpError::new(format!("bias is {}", cx.ty(4))));
                    }
                    for (i, (x, y)) in shape.iter().zip(&full).enumerate() {
                        cx.same(&format!("bias axis {i}"), x, y)?;
                    }
                }
                (hq, hkv, vec![b.clone(), hq.clone(), m.clone(), dv.clone()])
            }
            _ => return Err(bad()),
        };
        check_heads(heads, kv_heads)?;
        Ok(vec![Fact::of(TensorType::new(q.dtype, out))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let get = |i: usize| args.get(i).and_then(Option::as_ref);
            let [q, k, v] = [0, 1, 2].map(|i| get(i).expect("operand"));
            let packed = q.rank() == 3;
            // The packed form is the batched one with a batch of one and tokens before heads.
            let lift = |t: &Tensor| match packed {
                true => t.reshape(&[&[1], t.shape()].concat()).transpose(&[0, 2, 1, 3]),
                false => t.clone(),
            };
            let (q, k, v) = (lift(q), lift(k), lift(v));
            let [b, hq, m, d] = *q.shape() else { unreachable!("inferred") };
            let [_, hkv, n, dv] = *v.shape() else { unreachable!("inferred") };
            let segment: Vec<usize> = match get(3) {
                Some(cu) => {
                    let cu = cu.to_i64s();
                    (0..n).map(|t| cu.iter().filter(|c| **c <= t as i64).count()).collect()
                }
                None => vec![0; n],
            };
            let bias = get(4).map(|x| x.broadcast_to(&[b, hq, m, n]).to_f64s());
            let (q, k, v) = (q.to_f64s(), k.to_f64s(), v.to_f64s());
            let mut out = Vec::with_capacity(b * hq * m * dv);
            for i in 0..b * hq * m {
                let (batch, head, row) = (i / (hq * m), i / m % hq, i % m);
                let kv = batch * hkv + head / (hq / hkv);
                // Negative where there are more queries than keys.
                let position = row as i64 + n as i64 - m as i64;
                let score = |j: usize| {
                    let dot: f64 = (0..d).map(|e| q[i * d + e] * k[(kv * n + j) * d + e]).sum();
                    match bias.as_ref().map(|x| x[i * n + j]) {
                        Some(f64::NEG_INFINITY) => f64::NEG_INFINITY,
                        bias => cap(cx.attrs, dot) + bias.unwrap_or(0.0),
                    }
                };
                let seen = |j: &usize| {
                    (!packed || segment[*j] == segment[row]) && visible(cx.attrs, position, *j)
                };
                let keys: Vec<usize> = (0..n).filter(seen).collect();
                let scores: Vec<f64> = keys.iter().map(|j| score(*j)).collect();
                let rows = keys.iter().map(|j| &v[(kv * n + j) * dv..][..dv]);
                out.extend(weighted_mean(&scores, rows, dv));
            }
            let shape = cx.shape(0);
            if !packed {
                return vec![Tensor::from_f64s(cx.results[0].dtype, &shape, out)];
            }
            let out = Tensor::from_f64s(cx.results[0].dtype, &[hq, m, dv], out);
            vec![out.transpose(&[1, 0, 2]).reshape(&shape)]
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], results: &[TensorType]) -> Dim {
        let keys = match args.get(1).and_then(Option::as_ref).map(|k| k.shape.as_slice()) {
            Some([t, _, _]) => t.clone(),
            Some([_, _, n, _]) => n.clone(),
            _ => Dim::from(1i64),
        };
        results[0].elements() * keys * Dim::from(4i64)
    }
    fn vjp(&self, _: &Attrs, args: &[Option<TensorType>]) -> Vjp {
        match args {
            // The same result, and what the gradient has the weights again from.
            [Some(q), ..] if q.rank() == 3 => {
                Vjp::Replaced(|b, attrs, args| b.op("attention_lse", attrs.clone(), &args[..4]))
            }
            _ => Vjp::Rule(batched_attention),
        }
    }
    fn samples(&self) -> Vec<Sample> {
        let cu = Tensor::from_i64s(DType::I32, &[3], [0, 4, 11]);
        let packed = |mask: &str, window: i64| Sample {
            attrs: Attrs::none().with("scale", 0.4).with("mask", mask).with("window", window),
            args: vec![
                Some(spread(DType::F32, &[11, 6, 5], -2.0, 2.0)),
                Some(spread(DType::F32, &[11, 2, 5], 2.0, -2.0)),
                Some(spread(DType::F32, &[11, 2, 7], -1.0, 2.0)),
                Some(cu.clone()),
            ],
        };
        let batched = Sample {
            attrs: Attrs::none().with("scale", 0.5).with("mask", "causal").with("softcap", 2.0),
            args: vec![
                Some(spread(DType::F32, &[2, 4, 3, 8], -2.0, 2.0)),
                Some(spread(DType::F32, &[2, 2, 5, 8], 2.0, -2.0)),
                Some(spread(DType::F32, &[2, 2, 5, 8], -1.0, 2.0)),
                None,
                Some(spread(DType::F32, &[2, 1, 1, 5], -1.0, 1.0)),
            ],
        };
        // Keys that the bias hides, of infinite scores; more queries than keys.
        let hiding = Sample {
            attrs: Attrs::none().with("scale", 0.5),
            args: vec![
                Some(spread(DType::F32, &[1, 2, 3, 2], -2.0, 2.0)),
                Some(Tensor::from_f32s(
                    &[1, 1, 3, 2],
                    &[0.5, -1.0, f32::INFINITY, f32::INFINITY, 1.0, 2.0],
                )),
                Some(spread(DType::F32, &[1, 1, 3, 5], -1.0, 2.0)),
                None,
                Some(Tensor::from_f32s(&[3], &[0.25, f32::NEG_INFINITY, 0.0])),
            ],
        };
        let many = Sample {
            attrs: Attrs::none().with("scale", 0.5).with("mask", "causal").with("window", 2i64),
            args: vec![
                Some(spread(DType::F32, &[1, 2, 5, 8], -2.0, 2.0)),
                Some(spread(DType::F32, &[1, 1, 3, 8], 2.0, -2.0)),
                Some(spread(DType::F32, &[1, 1, 3, 8], -1.0, 2.0)),
            ],
        };
        vec![packed("full", 0), packed("causal", 0), packed("causal", 3), batched, hiding, many]
    }
}

/// Checks what the two attention operators share.
pub(super) fn check_attrs(cx: &InferCx<'_>) -> Result<(), OpError> {
    if !matches!(cx.attrs.str("mask"), "full" | "causal") {
        return Err(OpError::attr("mask", "must be `full` or `causal`"));
    }
    if cx.attrs.int("window") < 0 {
        return Err(OpError::attr("window", "must not be negative"));
    }
    Ok(())
}

/// Checks that query heads are a multiple of key/value heads.
pub(super) fn check_heads(heads: &Dim, kv_heads: &Dim) -> Result<(), OpError> {
    match (heads.as_const(), kv_heads.as_const()) {
        (Some(h), Some(g)) if g > 0 && h % g == 0 => Ok(()),
        _ => Err(OpError::new(format!("{heads} query heads over {kv_heads} key/value heads"))),
    }
}

/// Whether the query at `position` sees key `j`.
pub(super) fn visible(attrs: &Attrs, position: i64, j: usize) -> bool {
    let (j, window) = (j as i64, attrs.int("window"));
    (attrs.str("mask") != "causal" || j <= position)
        && (window == 0 || position < j.saturating_add(window))
}

/// The score of a dot product.
pub(super) fn cap(attrs: &Attrs, dot: f64) -> f64 {
    let (s, c) = (dot * attrs.float("scale"), attrs.float("softcap"));
    if c > 0.0 { c * (s / c).tanh() } else { s }
}

/// `softmax(scores) · rows`; zeros where there is nothing to weigh.
pub(super) fn weighted_mean<'a>(
    scores: &[f64],
    rows: impl Iterator<Item = &'a [f64]>,
    width: usize,
) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut out = vec![0.0; width];
    if max == f64::NEG_INFINITY {
        return out;
    }
    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    for (w, row) in weights.iter().zip(rows) {
        for (o, x) in out.iter_mut().zip(row) {
            *o += w / total * x;
        }
    }
    out
}
