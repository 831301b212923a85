//! `paged_attention`: causal attention over paged keys and values.

use super::{
    attention::{cap, check_attrs, check_heads, visible, weighted_mean},
    elementwise::spread,
    kv_write::{check_scales, same_shape},
};
use crate::{
    Attr, Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType, Vjp,
    op::{AttrKind, defaulted, one, optional, required, same_dtype},
};

/// Causal attention of packed tokens over the keys and values of their sequences, which
/// [`KvWrite`](super::kv_write::KvWrite) has put in blocks.
///
/// Token `t` of sequence `s` (by `cu_seqlens`) stands at `positions[t]` and sees keys
/// `0..=positions[t]`; key `j` is in slot `j % BS` of block `block_tables[s, j / BS]`. Kwon et al.
/// 2023, arXiv:2309.06180.
///
/// Keys and values in i8 or f8e4m3 have scales, one for each slot and head, which stay out of the
/// products: `q · (s_k · k) = s_k · (q · k)` and `p · (s_v · v) = (p · s_v) · v`. A score is the
/// product with the key's codes, times the key's scale, times `scale`, then capped; a weight is
/// multiplied by its value's scale after it has been added to the sum of weights. A scale that is
/// not finite makes every result NaN that sees its key. The codes of NaN, which
/// [`QuantizeHeads`](super::quantize_heads::QuantizeHeads) never gives, may be read as 480.
/// # Shapes
/// `q: [T, Hq, D]`, `k_cache: [NB, Hkv, D, BS]`, `v_cache: [NB, Hkv, BS, Dv]`, `block_tables: [S,
/// MB]`, `cu_seqlens: [S+1]`, `positions: [T]`, all indices i32, and for memories with scales
/// `k_scales, v_scales: f32 [NB, Hkv, BS]` → `[T, Hq, Dv]`, dtype of `q`.
pub(super) struct PagedAttention;

static SIGNATURE: Signature = Signature {
    operands: &[
        one("q"),
        one("k_cache"),
        one("v_cache"),
        one("block_tables"),
        one("cu_seqlens"),
        one("positions"),
        optional("k_scales"),
        optional("v_scales"),
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
        let ([t, hq, d], [nb, h, d2, bs], [_, h2, bs2, dv], [s, _], [s1], [t2]) = (
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
        if check_scales(cx, &[6, 7])? {
            for scales in [6, 7] {
                same_shape(cx, "scales", scales, &[nb, h, bs])?;
            }
        }
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
            let scales = |i: usize| args.get(i)?.as_ref().map(Tensor::to_f64s);
            let (k_scales, v_scales) = (scales(6), scales(7));
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
                    let scale = |scales: &Option<Vec<f64>>, (block, slot): (usize, usize)| {
                        scales.as_ref().map_or(1.0, |s| s[block * bs + slot])
                    };
                    let score = |j: &usize| {
                        let (block, slot) = place(*j);
                        let key = |e: usize| kc[(block * d + e) * bs + slot];
                        let dot = (0..d).map(|e| q[(t * hq + h) * d + e] * key(e)).sum::<f64>();
                        cap(cx.attrs, dot * scale(&k_scales, (block, slot)))
                    };
                    let scores: Vec<f64> = keys.iter().map(score).collect();
                    let rows: Vec<Vec<f64>> = keys
                        .iter()
                        .map(|j| {
                            let (block, slot) = place(*j);
                            let scale = scale(&v_scales, (block, slot));
                            let row = &vc[(block * bs + slot) * dv..][..dv];
                            row.iter().map(|x| x * scale).collect()
                        })
                        .collect();
                    let rows = rows.iter().map(Vec::as_slice);
                    out.extend(weighted_mean(&scores, rows, dv));
                }
            }
            vec![Tensor::from_f64s(cx.results[0].dtype, &cx.shape(0), out)]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused(
            "reads memory that steps of serving share; differentiate the function before page_kv",
        )
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
        let quantized = |window: i64, dtype: DType| {
            let Sample { attrs, mut args } = make(window, DType::F32);
            args[1] = Some(spread(dtype, &[4, 2, 8, 16], 127.0, -127.0));
            args[2] = Some(spread(dtype, &[4, 2, 16, 7], -127.0, 127.0));
            args.push(Some(spread(DType::F32, &[4, 2, 16], 0.001, 0.02)));
            args.push(Some(spread(DType::F32, &[4, 2, 16], 0.02, 0.001)));
            Sample { attrs: attrs.with("softcap", 3.0), args }
        };
        let floats = [DType::F32, DType::Bf16, DType::F16].map(|dtype| make(0, dtype));
        let [i8, fp8] = [DType::I8, DType::F8E4M3];
        let others = [make(5, DType::F32), quantized(0, i8), quantized(5, i8), quantized(5, fp8)];
        floats.into_iter().chain(others).collect()
    }
}
