//! `paged_attention`: causal attention over paged keys and values.

use super::{
    attention::{cap, check_attrs, check_heads, visible, weighted_mean},
    elementwise::spread,
};
use crate::{
    Attr, Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType,
    op::{AttrKind, defaulted, one, required, same_dtype},
};

/// Causal attention of packed tokens over the keys and values of their sequences, which
/// [`KvWrite`](super::kv_write::KvWrite) has put in blocks.
///
/// Token `t` of sequence `s` (by `cu_seqlens`) stands at `positions[t]` and sees keys
/// `0..=positions[t]`; key `j` is in slot `j % BS` of block `block_tables[s, j / BS]`. Kwon et al.
/// 2023, arXiv:2309.06180.
/// # Shapes
/// `q: [T, Hq, D]`, `k_cache: [NB, Hkv, D, BS]`, `v_cache: [NB, Hkv, BS, Dv]`, `block_tables: [S,
/// MB]`, `cu_seqlens: [S+1]`, `positions: [T]`, all indices i32 → `[T, Hq, Dv]`, dtype of `q`.
pub(super) struct PagedAttention;

static SIGNATURE: Signature = Signature {
    operands: &[
        one("q"),
        one("k_cache"),
        one("v_cache"),
        one("block_tables"),
        one("cu_seqlens"),
        one("positions"),
    ],
    attrs: &[
        required("scale", AttrKind::Float),
        defaulted("mask", AttrKind::Str, || Attr::from("causal")),
        defaulted("window", AttrKind::Int, || Attr::Int(0)),
        defaulted("softcap", AttrKind::Float, || Attr::from(0.0)),
    ],
};

impl OpDef for PagedAttention {
    fn name(&self) -> &'static str {
        "paged_attention"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        check_attrs(cx)?;
        if cx.attrs.str("mask") != "causal" {
            return Err(OpError::attr("mask", "must be `causal`: later keys may not be there yet"));
        }
        let (q, kc, vc) = (cx.ty(0), cx.ty(1), cx.ty(2));
        let ([t, hq, d], [_, h, d2, bs], [_, h2, bs2, dv], [s, _], [s1], [t2]) = (
            &*q.shape,
            &*kc.shape,
            &*vc.shape,
            &*cx.ty(3).shape,
            &*cx.ty(4).shape,
            &*cx.ty(5).shape,
        ) else {
            return Err(OpError::new(format!("cannot attend from {q} to {kc} and {vc}")));
        };
        if (3..6).any(|i| cx.ty(i).dtype != DType::I32) {
            return Err(OpError::new("block_tables, cu_seqlens and positions must be i32"));
        }
        same_dtype(kc.dtype, vc.dtype)?;
        cx.same("head size", d, d2)?;
        cx.same("key and value heads", h, h2)?;
        cx.same("block size", bs, bs2)?;
        cx.same("tokens", t, t2)?;
        cx.same("sequences", &(s.clone() + Dim::from(1i64)), s1)?;
        check_heads(hq, h)?;
        let shape = [t, hq, dv].map(Clone::clone);
        Ok(vec![Fact::of(TensorType::new(q.dtype, shape))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let [q, kc, vc, tables, cu, positions] =
                [0, 1, 2, 3, 4, 5].map(|i| args[i].as_ref().expect("operand"));
            let [tokens, hq, d] = *q.shape() else { unreachable!("inferred") };
            let [_, hkv, bs, dv] = *vc.shape() else { unreachable!("inferred") };
            let blocks = tables.shape()[1];
            let (q, kc, vc) = (q.to_f64s(), kc.to_f64s(), vc.to_f64s());
            let (tables, cu, positions) = (tables.to_i64s(), cu.to_i64s(), positions.to_i64s());
            let mut out = Vec::with_capacity(tokens * hq * dv);
            for t in 0..tokens {
                let s = cu.iter().filter(|c| **c <= t as i64).count() - 1;
                let position = positions[t];
                let seen = usize::try_from(position).expect("positions are not negative");
                let keys: Vec<usize> =
                    (0..=seen).filter(|j| visible(cx.attrs, position, *j)).collect();
                for h in 0..hq {
                    let place = |j: usize| {
                        let block = usize::try_from(tables[s * blocks + j / bs]).expect("block");
                        (block * hkv + h / (hq / hkv), j % bs)
                    };
                    let score = |j: &usize| {
                        let (block, slot) = place(*j);
                        let key = |e: usize| kc[(block * d + e) * bs + slot];
                        let dot = (0..d).map(|e| q[(t * hq + h) * d + e] * key(e)).sum::<f64>();
                        cap(cx.attrs, dot)
                    };
                    let scores: Vec<f64> = keys.iter().map(score).collect();
                    let rows = keys.iter().map(|j| {
                        let (block, slot) = place(*j);
                        &vc[(block * bs + slot) * dv..][..dv]
                    });
                    out.extend(weighted_mean(&scores, rows, dv));
                }
            }
            vec![Tensor::from_f64s(cx.results[0].dtype, &cx.shape(0), out)]
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let ints = |shape: &[usize], v: &[i64]| {
            Some(Tensor::from_i64s(DType::I32, shape, v.iter().copied()))
        };
        let make = |window: i64, dtype: DType| Sample {
            attrs: Attrs::none().with("scale", 0.4).with("window", window),
            args: vec![
                Some(spread(DType::F32, &[5, 6, 8], -2.0, 2.0)),
                Some(spread(dtype, &[4, 2, 8, 16], 2.0, -2.0)),
                Some(spread(dtype, &[4, 2, 16, 7], -1.0, 2.0)),
                ints(&[2, 3], &[2, 0, 3, 1, 0, 0]),
                ints(&[3], &[0, 2, 5]),
                ints(&[5], &[33, 34, 0, 1, 2]),
            ],
        };
        vec![make(0, DType::F32), make(5, DType::F32), make(0, DType::Bf16)]
    }
}
