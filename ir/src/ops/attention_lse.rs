//! `attention_lse`: attention that keeps what its gradient needs.

use super::{
    attention::{cap, check_attrs, check_heads, visible, weighted_mean},
    elementwise::spread,
};
use crate::{
    Attr, AttrSpec, Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature,
    Tensor, TensorType, Vjp,
    op::{AttrKind, defaulted, one, required, same_dtype},
};

/// Packed [`Attention`](super::attention::Attention) and the logarithm of every row's sum of
/// exponentials, from which [`AttentionGrad`](super::attention_grad::AttentionGrad) has the weights
/// again.
///
/// Dao 2023, arXiv:2307.08691. `y` is that of `attention`, bit for bit; `lse` of a query that sees
/// no key is -inf.
/// # Shapes
/// `q: [T, Hq, D]`, `k: [T, Hkv, D]`, `v: [T, Hkv, Dv]`, `cu_seqlens: [S+1]` i32 →
/// `y: [T, Hq, Dv]`, `lse: [T, Hq]` f32.
pub(super) struct AttentionLse;

/// What says which keys a query sees, and how a dot product becomes a score.
pub(super) const ATTRS: &[AttrSpec] = &[
    required("scale", AttrKind::Float),
    defaulted("mask", AttrKind::Str, || Attr::from("full")),
    defaulted("window", AttrKind::Int, || Attr::Int(0)),
    defaulted("softcap", AttrKind::Float, || Attr::from(0.0)),
];

static SIGNATURE: Signature =
    Signature { operands: &[one("q"), one("k"), one("v"), one("cu_seqlens")], attrs: ATTRS };

impl OpDef for AttentionLse {
    fn name(&self) -> &'static str {
        "attention_lse"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (y, lse) = infer_packed(cx, 3)?;
        Ok(vec![Fact::of(y), Fact::of(lse)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let packed = Packed::of(args, 3);
            let [t, hq, _] = *packed.q.shape() else { unreachable!("inferred") };
            let (mut y, mut lse) = (Vec::new(), Vec::new());
            for row in 0..t * hq {
                let scores: Vec<(usize, f64)> = packed.scores(cx.attrs, row).collect();
                let max = scores.iter().fold(f64::NEG_INFINITY, |m, (_, s)| m.max(*s));
                let sum: f64 = scores.iter().map(|(_, s)| (s - max).exp()).sum();
                lse.push(if scores.is_empty() { max } else { max + sum.ln() });
                let only: Vec<f64> = scores.iter().map(|(_, s)| *s).collect();
                let rows = scores.iter().map(|(j, _)| packed.value(row, *j));
                y.extend(weighted_mean(&only, rows, packed.dv));
            }
            vec![
                Tensor::from_f64s(cx.results[0].dtype, &cx.shape(0), y),
                Tensor::from_f64s(cx.results[1].dtype, &cx.shape(1), lse),
            ]
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], results: &[TensorType]) -> Dim {
        let keys = args[1].as_ref().map_or(Dim::from(1), |k| k.shape[0].clone());
        results[0].elements() * keys * Dim::from(4i64)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            if cx.cotangents[1].is_some() {
                return Err(OpError::new("has no derivative by way of its logarithms"));
            }
            let ([q, k, v, cu], dy) = ([0, 1, 2, 3].map(|i| cx.arg(i)), cx.cotangent(0)?);
            let args = [q, k, v, cx.results[0], cx.results[1], dy, cu].map(Some);
            let grads = cx.b.op("attention_grad", cx.attrs.clone(), &args)?;
            Ok(grads.into_iter().map(Some).collect())
        })
    }
    fn samples(&self) -> Vec<Sample> {
        masks().into_iter().map(|attrs| Sample { attrs, args: operands() }).collect()
    }
}

/// Every mask, and a cap.
pub(super) fn masks() -> Vec<Attrs> {
    let attrs = |mask: &str, window: i64, cap: f64| {
        let attrs = Attrs::none().with("scale", 0.4).with("mask", mask);
        attrs.with("window", window).with("softcap", cap)
    };
    vec![
        attrs("full", 0, 0.0),
        attrs("causal", 0, 0.0),
        attrs("causal", 3, 0.0),
        attrs("full", 3, 2.0),
        attrs("causal", 0, 1.5),
    ]
}

/// Operands of grouped heads in sequences of 4, 0 and 7 tokens.
pub(super) fn operands() -> Vec<Option<Tensor>> {
    vec![
        Some(spread(DType::F32, &[11, 6, 5], -2.0, 2.0)),
        Some(spread(DType::F32, &[11, 2, 5], 2.0, -2.0)),
        Some(spread(DType::F32, &[11, 2, 7], -1.0, 2.0)),
        Some(Tensor::from_i64s(DType::I32, &[4], [0, 4, 4, 11])),
    ]
}

/// Checks packed q, k, v and offsets at operand `offsets`; returns the types of result and
/// logarithms.
pub(super) fn infer_packed(
    cx: &InferCx<'_>,
    offsets: usize,
) -> Result<(TensorType, TensorType), OpError> {
    check_attrs(cx)?;
    let (q, k, v, cu) = (cx.ty(0), cx.ty(1), cx.ty(2), cx.ty(offsets));
    same_dtype(q.dtype, k.dtype)?;
    same_dtype(q.dtype, v.dtype)?;
    let ([t, hq, d], [tk, hkv, dk], [tv, hv, dv]) = (&*q.shape, &*k.shape, &*v.shape) else {
        let got = format!("takes packed q, k, v of three axes, no batch, got {q}, {k}, {v}");
        return Err(OpError::new(got));
    };
    cx.same("tokens of q and k", t, tk)?;
    cx.same("tokens of q and v", t, tv)?;
    cx.same("head size", d, dk)?;
    cx.same("key and value heads", hkv, hv)?;
    check_heads(hq, hkv)?;
    if cu.rank() != 1 || cu.dtype != DType::I32 {
        return Err(OpError::new(format!("cu_seqlens is {cu}")));
    }
    let y = TensorType::new(q.dtype, [t, hq, dv].map(Clone::clone));
    Ok((y, TensorType::new(DType::F32, [t, hq].map(Clone::clone))))
}

/// Packed operands as numbers; a row is a token and a query head.
pub(super) struct Packed {
    pub(super) q: Tensor,
    queries: Vec<f64>,
    keys: Vec<f64>,
    values: Vec<f64>,
    /// Segment of every token: the first sequence is number one; what lies before it and behind the
    /// last one is in none.
    segment: Vec<usize>,
    /// Number of sequences.
    sequences: usize,
    heads: usize,
    pub(super) kv_heads: usize,
    pub(super) d: usize,
    pub(super) dv: usize,
}

impl Packed {
    pub(super) fn of(args: &[Option<Tensor>], offsets: usize) -> Packed {
        let [q, k, v, cu] = [0, 1, 2, offsets].map(|i| args[i].as_ref().expect("operand"));
        let [tokens, heads, d] = *q.shape() else { unreachable!("inferred") };
        let [_, kv_heads, dv] = *v.shape() else { unreachable!("inferred") };
        let cu = cu.to_i64s();
        let segment = |t: usize| cu.iter().filter(|c| **c <= t as i64).count();
        Packed {
            q: q.clone(),
            queries: q.to_f64s(),
            keys: k.to_f64s(),
            values: v.to_f64s(),
            segment: (0..tokens).map(segment).collect(),
            sequences: cu.len().saturating_sub(1),
            heads,
            kv_heads,
            d,
            dv,
        }
    }

    /// The row of k and v, of their own heads, that a query's row reads for token `j`.
    pub(super) fn kv_row(&self, row: usize, j: usize) -> usize {
        j * self.kv_heads + row % self.heads / (self.heads / self.kv_heads)
    }

    pub(super) fn query(&self, row: usize) -> &[f64] {
        &self.queries[row * self.d..][..self.d]
    }

    pub(super) fn key(&self, row: usize, j: usize) -> &[f64] {
        &self.keys[self.kv_row(row, j) * self.d..][..self.d]
    }

    pub(super) fn value(&self, row: usize, j: usize) -> &[f64] {
        &self.values[self.kv_row(row, j) * self.dv..][..self.dv]
    }

    /// Tokens that a row sees, and their scores: none, where it is in no sequence.
    pub(super) fn scores<'a>(
        &'a self,
        attrs: &'a Attrs,
        row: usize,
    ) -> impl Iterator<Item = (usize, f64)> + 'a {
        let token = row / self.heads;
        let own = self.segment[token];
        let seen = move |j: &usize| {
            self.segment[*j] == own
                && (1..=self.sequences).contains(&own)
                && visible(attrs, token as i64, *j)
        };
        (0..self.segment.len()).filter(seen).map(move |j| {
            let dot = self.query(row).iter().zip(self.key(row, j)).map(|(a, b)| a * b).sum();
            (j, cap(attrs, dot))
        })
    }
}
