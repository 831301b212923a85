//! `rms_norm_grad`.

use super::norm_grad::{example, expand_norm, infer_norm};
use crate::{
    Attrs, Body, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, one, required},
};

/// Gradient of [`RmsNorm`](super::rms_norm::RmsNorm) by x and weight.
///
/// Zhang \& Sennrich 2019, arXiv:1910.07467. Statistics are computed again from x; the sum over
/// rows has one order, whatever the number of threads.
/// # Shapes
/// `x: [.., H]`, `weight: [H]`, `dy: [.., H]` → `dx: [.., H]`, `dweight: [H]`.
pub(super) struct RmsNormGrad;

static SIGNATURE: Signature = Signature {
    operands: &[one("x"), one("weight"), one("dy")],
    attrs: &[required("eps", AttrKind::Float)],
};

impl OpDef for RmsNormGrad {
    fn name(&self) -> &'static str {
        "rms_norm_grad"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        infer_norm(cx)?;
        Ok(vec![Fact::of(cx.ty(0).clone()), Fact::of(cx.ty(1).clone())])
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| expand_norm(b, attrs, args, false))
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused("is a gradient itself, and has no second derivative")
    }
    fn samples(&self) -> Vec<Sample> {
        let attrs = Attrs::none().with("eps", 1e-5);
        [(3, 37), (70, 9)].map(|(r, h)| Sample { attrs: attrs.clone(), ..example(r, h) }).into()
    }
}
