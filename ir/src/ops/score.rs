//! `score`: attention's scores, before the softmax.

use super::elementwise::spread;
use crate::{
    Attr, Attrs, Body, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, defaulted, one, optional, same_dtype},
};

/// `cap(q·kᵀ·scale) + bias`, where a `softcap` c > 0 maps scores to `c·tanh(s/c)`; -inf where the
/// bias is, whatever else there is.
///
/// No kernel computes it: it is what the rules collect scales, caps and masks in until a softmax
/// and a product with values make it an [`Attention`](super::attention::Attention).
/// # Shapes
/// `q: [.., M, D]`, `k: [.., N, D]`, leading axes broadcast, `bias` broadcast to the result →
/// `[.., M, N]`.
pub(super) struct Score;

static SIGNATURE: Signature = Signature {
    operands: &[one("q"), one("k"), optional("bias")],
    attrs: &[
        defaulted("scale", AttrKind::Float, || Attr::from(1.0)),
        defaulted("softcap", AttrKind::Float, || Attr::from(0.0)),
    ],
};

impl OpDef for Score {
    fn name(&self) -> &'static str {
        "score"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (q, k) = (cx.ty(0), cx.ty(1));
        let dtype = same_dtype(q.dtype, k.dtype)?;
        let ([lq @ .., m, d], [lk @ .., n, d2]) = (q.shape.as_slice(), k.shape.as_slice()) else {
            return Err(OpError::new(format!("takes matrices, got {q} and {k}")));
        };
        cx.same("head size", d, d2)?;
        let mut shape = cx.broadcast(lq, lk)?;
        shape.extend([m.clone(), n.clone()]);
        if let Some(bias) = cx.args.get(2).copied().flatten() {
            same_dtype(dtype, bias.ty.dtype)?;
            let full = cx.broadcast(&bias.ty.shape, &shape)?;
            if full.len() != shape.len() {
                return Err(OpError::new(format!("bias is {}", bias.ty)));
            }
            for (i, (x, y)) in full.iter().zip(&shape).enumerate() {
                cx.same(&format!("bias axis {i}"), x, y)?;
            }
        }
        Ok(vec![Fact::of(TensorType::new(dtype, shape))])
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| {
            let [q, k] = [0, 1].map(|i| args[i].expect("operand"));
            let (dtype, rank) = (b.ty(k).dtype, b.ty(k).rank());
            let mut perm: Vec<i64> = (0..).take(rank).collect();
            perm.swap(rank - 2, rank - 1);
            let k = b.transpose(k, &perm)?;
            let s = b.matmul(q, k)?;
            let scale = b.scalar(dtype, attrs.float("scale"))?;
            let mut s = b.mul(s, scale)?;
            if attrs.float("softcap") > 0.0 {
                let cap = b.scalar(dtype, attrs.float("softcap"))?;
                s = b.div(s, cap)?;
                s = b.tanh(s)?;
                s = b.mul(s, cap)?;
            }
            Ok(vec![match args.get(2).copied().flatten() {
                Some(bias) => {
                    let lowest = b.scalar(dtype, f64::NEG_INFINITY)?;
                    let hidden = b.op1("equal", Attrs::none(), &[bias, lowest])?;
                    let sum = b.add(s, bias)?;
                    b.select(hidden, lowest, sum)?
                }
                None => s,
            }])
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], results: &[TensorType]) -> Dim {
        let d = args[0].as_ref().and_then(|a| a.shape.last().cloned()).unwrap_or_default();
        results[0].elements() * d * Dim::from(2i64)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Expansion
    }
    fn samples(&self) -> Vec<Sample> {
        let f = |shape: &[usize]| Some(spread(crate::DType::F32, shape, -2.0, 2.0));
        let attrs = Attrs::none().with("scale", 0.5);
        vec![
            Sample { attrs: attrs.clone(), args: vec![f(&[2, 3, 4]), f(&[2, 5, 4]), None] },
            Sample {
                attrs: attrs.with("softcap", 2.0),
                args: vec![f(&[2, 3, 4, 6]), f(&[2, 1, 5, 6]), f(&[2, 1, 1, 5])],
            },
        ]
    }
}
