//! `layer_norm_grad`.

use super::norm_grad::{example, expand_norm, infer_norm};
use crate::{
    Attrs, Body, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, one, required},
};

/// Gradient of [`LayerNorm`](super::layer_norm::LayerNorm) by x, weight and bias.
///
/// Ba et al. 2016, arXiv:1607.06450. Statistics are computed again from x; the sum over rows has
/// one order, whatever the number of threads.
/// # Shapes
/// `x: [.., H]`, `weight: [H]`, `dy: [.., H]` → `dx: [.., H]`, `dweight: [H]`, `dbias: [H]`.
pub(super) struct LayerNormGrad;

static SIGNATURE: Signature = Signature {
    operands: &[one("x"), one("weight"), one("dy")],
    attrs: &[required("eps", AttrKind::Float)],
};

impl OpDef for LayerNormGrad {
    fn name(&self) -> &'static str {
        "layer_norm_grad"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        infer_norm(cx)?;
        Ok({
            let weight = Fact::of(cx.ty(1).clone());
            vec![Fact::of(cx.ty(0).clone()), weight.clone(), weight]
        })
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| expand_norm(b, attrs, args, true))
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused("is a gradient itself, and has no second derivative")
    }
    fn samples(&self) -> Vec<Sample> {
        let attrs = Attrs::none().with("eps", 1e-5);
        [(3, 37), (70, 9)].map(|(r, h)| Sample { attrs: attrs.clone(), ..example(r, h) }).into()
    }
}
