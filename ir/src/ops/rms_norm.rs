//! `rms_norm`.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, one, required, same_dtype},
};

/// Root-mean-square norm over the last axis: `y = x / sqrt(mean(x²) + eps) · w`.
///
/// Zhang & Sennrich 2019, arXiv:1910.07467.
/// # Shapes
/// `x: [.., H]`, `weight: [H]` → `y: [.., H]`.
pub(super) struct RmsNorm;

static SIGNATURE: Signature =
    Signature { operands: &[one("x"), one("weight")], attrs: &[required("eps", AttrKind::Float)] };

impl OpDef for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn is_rowwise(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (x, w) = (cx.ty(0), cx.ty(1));
        same_dtype(x.dtype, w.dtype)?;
        match (x.shape.last(), w.shape.as_slice()) {
            (Some(h), [n]) => cx.same("weight", h, n)?,
            _ => return Err(OpError::new(format!("takes [.., H] and [H], got {x} and {w}"))),
        }
        Ok(vec![Fact::of(x.clone())])
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| {
            let [x, w] = [0, 1].map(|i| args[i].expect("operand"));
            let eps = b.scalar(b.ty(x).dtype, attrs.float("eps"))?;
            let sq = b.mul(x, x)?;
            let mean = b.reduce("reduce_mean", sq, &[-1], true)?;
            let mean = b.add(mean, eps)?;
            let r = b.unary("rsqrt", mean)?;
            let y = b.mul(x, r)?;
            Ok(vec![b.mul(y, w)?])
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let dy = cx.cotangent(0)?;
            let args = [cx.args[0], cx.args[1], Some(dy)];
            let grads = cx.b.op("rms_norm_grad", cx.attrs.clone(), &args)?;
            Ok(grads.into_iter().map(Some).collect())
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let args = [&[3, 37][..], &[37]].map(|s| Some(spread(DType::F32, s, -2.0, 2.0)));
        vec![Sample { attrs: Attrs::none().with("eps", 1e-5), args: args.to_vec() }]
    }
}
