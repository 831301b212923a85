//! `sgd_step`.

use super::update::{decay, in_f32, infer_update, samples};
use crate::{
    Attr, Attrs, Body, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, defaulted, one},
};

/// One step of gradient descent, in place:
/// `param ← param·(1 - lr·weight_decay) - lr·grad·grad_scale`. Computed in f32.
/// # Shapes
/// `param`, `grad`: one shape, any floats; the scalars f32 `[]` → `param`.
pub(super) struct SgdStep;

static SIGNATURE: Signature = Signature {
    operands: &[one("param"), one("grad"), one("lr"), one("grad_scale")],
    attrs: &[defaulted("weight_decay", AttrKind::Float, || Attr::from(0.0))],
};

impl OpDef for SgdStep {
    fn name(&self) -> &'static str {
        "sgd_step"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        infer_update(cx, 0)
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| {
            in_f32(b, args, |b, args| {
                let [param, grad, lr, scale] = *args else { unreachable!("inferred") };
                let g = b.mul(grad, scale)?;
                let step = b.mul(g, lr)?;
                let param = decay(b, attrs, param, lr)?;
                Ok(vec![b.sub(param, step)?])
            })
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused("updates a parameter; losses are differentiated, steps are not")
    }
    fn samples(&self) -> Vec<Sample> {
        samples(&Attrs::none().with("weight_decay", 0.1), 0, &[0.01, 0.5])
    }
}
