//! `sgd_momentum_step`.

use super::update::{
    ONE_STATE, ONE_STATE_IN_PLACE, WEIGHT_DECAY, decay, in_f32, infer_update, samples, times,
};
use crate::{
    Attr, Attrs, Body, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, defaulted, required},
};

/// One step of gradient descent with momentum μ, in place. With `g = grad · grad_scale`:
/// `m ← μ·m + g`, `param ← param·(1 - lr·weight_decay) - lr·m`; Nesterov's form steps by `g + μ·m`.
///
/// Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning".
/// Computed in f32.
/// # Shapes
/// `param`, `grad`, `m`: one shape, any floats; the scalars f32 `[]` → `param`, `m`.
pub(super) struct SgdMomentumStep;

static SIGNATURE: Signature = Signature {
    operands: ONE_STATE,
    attrs: &[
        required("momentum", AttrKind::Float),
        defaulted("nesterov", AttrKind::Bool, || Attr::Bool(false)),
        WEIGHT_DECAY,
    ],
};

impl OpDef for SgdMomentumStep {
    fn name(&self) -> &'static str {
        "sgd_momentum_step"
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
                let kept = times(b, m, attrs.float("momentum"))?;
                let m = b.add(kept, g)?;
                let mut step = m;
                if attrs.bool("nesterov") {
                    let ahead = times(b, m, attrs.float("momentum"))?;
                    step = b.add(g, ahead)?;
                }
                let step = b.mul(step, lr)?;
                let param = decay(b, attrs, param, lr)?;
                Ok(vec![b.sub(param, step)?, m])
            })
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused("updates a parameter; losses are differentiated, steps are not")
    }
    fn samples(&self) -> Vec<Sample> {
        let attrs = Attrs::none().with("momentum", 0.9);
        let all = [attrs.clone().with("nesterov", true), attrs.with("weight_decay", 0.1)];
        all.iter().flat_map(|attrs| samples(attrs, 1, &[0.01, 0.5])).collect()
    }
}
