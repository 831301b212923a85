//! `attention_grad`.

use super::{
    attention_lse::{ATTRS, Packed, infer_packed, masks, operands},
    elementwise::spread,
};
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    Vjp, op::one,
};

/// Gradient of [`AttentionLse`](super::attention_lse::AttentionLse)'s `y` by q, k and v.
///
/// Dao 2023, arXiv:2307.08691, algorithm 2: of a score s with weight `p = exp(s - lse)`, `dv` adds
/// `p·dy`, and q and k get `ds = p·(dy·v - dy·y)`, times the slope `1 - (s/c)²` of a cap c and the
/// scale. Sums have one order whatever the number of threads. There is no bias.
/// Tokens in no sequence get zeros.
/// # Shapes
/// `q: [T, Hq, D]`, `k: [T, Hkv, D]`, `v: [T, Hkv, Dv]`, `y: [T, Hq, Dv]`, `lse: [T, Hq]` f32,
/// `dy: [T, Hq, Dv]`, `cu_seqlens: [S+1]` i32 → `dq`, `dk`, `dv` as q, k, v.
pub(super) struct AttentionGrad;

static SIGNATURE: Signature = Signature {
    operands: &[one("q"), one("k"), one("v"), one("y"), one("lse"), one("dy"), one("cu_seqlens")],
    attrs: ATTRS,
};

impl OpDef for AttentionGrad {
    fn name(&self) -> &'static str {
        "attention_grad"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (y, lse) = infer_packed(cx, 6)?;
        for (i, name, want) in [(3, "y", &y), (4, "lse", &lse), (5, "dy", &y)] {
            if cx.ty(i).equal(want, cx.symbols) != Some(true) {
                return Err(OpError::new(format!("{name} is {}, not {want}", cx.ty(i))));
            }
        }
        Ok((0..3).map(|i| Fact::of(cx.ty(i).clone())).collect())
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let packed = Packed::of(args, 6);
            let [y, lse, dy] = [3, 4, 5].map(|i| args[i].as_ref().expect("operand").to_f64s());
            let (d, dv) = (packed.d, packed.dv);
            let (scale, c) = (cx.attrs.float("scale"), cx.attrs.float("softcap"));
            let sizes = [0, 1, 2].map(|i| cx.shape(i).iter().product::<usize>());
            let [mut gq, mut gk, mut gv] = sizes.map(|n| vec![0.0; n]);
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let add = |to: &mut [f64], w: f64, x: &[f64]| {
                to.iter_mut().zip(x).for_each(|(to, x)| *to += w * x);
            };
            for row in 0..lse.len() {
                let [y, dy] = [&y, &dy].map(|t| &t[row * dv..][..dv]);
                for (j, score) in packed.scores(cx.attrs, row) {
                    let p = (score - lse[row]).exp();
                    let slope = if c > 0.0 { 1.0 - (score / c).powi(2) } else { 1.0 };
                    let ds = p * (dot(dy, packed.value(row, j)) - dot(dy, y)) * slope * scale;
                    let kv = packed.kv_row(row, j);
                    add(&mut gq[row * d..][..d], ds, packed.key(row, j));
                    add(&mut gk[kv * d..][..d], ds, packed.query(row));
                    add(&mut gv[kv * dv..][..dv], p, dy);
                }
            }
            let results = [gq, gk, gv].into_iter().enumerate();
            let tensor =
                |(i, x): (usize, Vec<f64>)| Tensor::from_f64s(cx.results[i].dtype, &cx.shape(i), x);
            results.map(tensor).collect()
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], _: &[TensorType]) -> Dim {
        let [Some(q), Some(k), Some(v), ..] = args else { return Dim::from(0) };
        let pairs = q.shape[0].clone() * q.shape[1].clone() * k.shape[0].clone();
        // Three products along the key's size, two along the value's.
        let each = q.shape[2].clone() * Dim::from(6) + v.shape[2].clone() * Dim::from(4);
        pairs * each
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused("is a gradient itself, and has no second derivative")
    }
    fn samples(&self) -> Vec<Sample> {
        let sample = |attrs: Attrs| {
            let mut args = operands();
            let offsets = args.pop().flatten();
            args.extend([
                Some(spread(DType::F32, &[11, 6, 7], -1.0, 1.0)),
                Some(spread(DType::F32, &[11, 6], 2.0, 4.0)),
                Some(spread(DType::F32, &[11, 6, 7], 1.5, -1.0)),
                offsets,
            ]);
            Sample { attrs, args }
        };
        masks().into_iter().map(sample).collect()
    }
}
