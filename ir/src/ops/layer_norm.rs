//! `layer_norm`.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, one, optional, required, same_dtype},
};

/// Layer norm over the last axis: `y = (x - mean) / sqrt(var + eps) · w + b`, the bias optional.
///
/// Ba et al. 2016, arXiv:1607.06450.
/// # Shapes
/// `x: [.., H]`, `weight: [H]`, `bias: [H]` → `y: [.., H]`.
pub(super) struct LayerNorm;

static SIGNATURE: Signature = Signature {
    operands: &[one("x"), one("weight"), optional("bias")],
    attrs: &[required("eps", AttrKind::Float)],
};

impl OpDef for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn is_rowwise(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let x = cx.ty(0);
        for w in cx.args[1..].iter().flatten() {
            same_dtype(x.dtype, w.ty.dtype)?;
            match (x.shape.last(), w.ty.shape.as_slice()) {
                (Some(h), [n]) => cx.same("weight or bias", h, n)?,
                _ => return Err(OpError::new(format!("takes [.., H] and [H], got {x}"))),
            }
        }
        Ok(vec![Fact::of(x.clone())])
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| {
            let [x, w] = [0, 1].map(|i| args[i].expect("operand"));
            let eps = b.scalar(b.ty(x).dtype, attrs.float("eps"))?;
            let mean = b.reduce("reduce_mean", x, &[-1], true)?;
            let d = b.sub(x, mean)?;
            let sq = b.mul(d, d)?;
            let var = b.reduce("reduce_mean", sq, &[-1], true)?;
            let var = b.add(var, eps)?;
            let std = b.unary("sqrt", var)?;
            let y = b.div(d, std)?;
            let y = b.mul(y, w)?;
            Ok(vec![match args.get(2).copied().flatten() {
                Some(bias) => b.add(y, bias)?,
                None => y,
            }])
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let dy = cx.cotangent(0)?;
            let args = [cx.args[0], cx.args[1], Some(dy)];
            let grads = cx.b.op("layer_norm_grad", cx.attrs.clone(), &args)?;
            Ok(grads.into_iter().map(Some).take(cx.args.len()).collect())
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let [x, w, b] =
            [&[3, 37][..], &[37], &[37]].map(|s| Some(spread(DType::F32, s, -2.0, 2.0)));
        let attrs = Attrs::none().with("eps", 1e-5);
        vec![
            Sample { attrs: attrs.clone(), args: vec![x.clone(), w.clone(), b] },
            Sample { attrs, args: vec![x, w, None] },
        ]
    }
}
