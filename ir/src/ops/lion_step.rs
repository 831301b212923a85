//! `lion_step`.

use super::update::{
    ONE_STATE, ONE_STATE_IN_PLACE, WEIGHT_DECAY, decay, in_f32, infer_update, samples, times,
};
use crate::{
    Attrs, Body, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, required},
};

/// One step of Lion, in place. With `g = grad · grad_scale`:
/// `param ← param·(1 - lr·weight_decay) - lr·sign(β1·m + (1 - β1)·g)`, `m ← β2·m + (1 - β2)·g`.
///
/// Chen et al. 2023, arXiv:2302.06675. Computed in f32.
/// # Shapes
/// `param`, `grad`, `m`: one shape, any floats; the scalars f32 `[]` → `param`, `m`.
pub(super) struct LionStep;

static SIGNATURE: Signature = Signature {
    operands: ONE_STATE,
    attrs: &[required("beta1", AttrKind::Float), required("beta2", AttrKind::Float), WEIGHT_DECAY],
};

impl OpDef for LionStep {
    fn name(&self) -> &'static str {
        "lion_step"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn in_place(&self) -> &'static [(usize, usize)] {
        ONE_STATE_IN_PLACE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        infer_update(cx, 1)
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| {
            in_f32(b, args, |b, args| {
                let [param, grad, m, lr, scale] = *args else { unreachable!("inferred") };
                let g = b.mul(grad, scale)?;
                let mut blend = |beta: f64| {
                    let (old, new) = (times(b, m, beta)?, times(b, g, 1.0 - beta)?);
                    b.add(old, new)
                };
                let (direction, m) = (blend(attrs.float("beta1"))?, blend(attrs.float("beta2"))?);
                let direction = b.unary("sign", direction)?;
                let step = b.mul(direction, lr)?;
                let param = decay(b, attrs, param, lr)?;
                Ok(vec![b.sub(param, step)?, m])
            })
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused("updates a parameter; losses are differentiated, steps are not")
    }
    fn samples(&self) -> Vec<Sample> {
        let attrs = Attrs::none().with("beta1", 0.9).with("beta2", 0.99).with("weight_decay", 0.1);
        samples(&attrs, 1, &[0.01, 0.5])
    }
}
