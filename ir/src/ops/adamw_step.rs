//! `adamw_step`.

use super::update::{decay, in_f32, infer_update, samples, times};
use crate::{
    Attr, Attrs, Body, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, defaulted, one, required},
};

/// One step of AdamW, in place. With `g = grad · grad_scale`:
///
/// `m ← m + (g - m)(1 - β1)`, `v ← β2·v + (1 - β2)·g²`,
/// `param ← param·(1 - lr·weight_decay) - lr / correction1 · m / (√v / √correction2 + eps)`,
/// where `correction1 = 1 - β1ᵗ` and `correction2 = 1 - β2ᵗ` in step t. Kingma & Ba 2015,
/// arXiv:1412.6980; Loshchilov & Hutter 2019, arXiv:1711.05101. Computed in f32, as PyTorch does.
/// # Shapes
/// `param`, `grad`, `m`, `v`: one shape, any floats; the scalars f32 `[]` → `param`, `m`, `v`.
pub(super) struct AdamwStep;

static SIGNATURE: Signature = Signature {
    operands: &[
        one("param"),
        one("grad"),
        one("m"),
        one("v"),
        one("lr"),
        one("correction1"),
        one("correction2"),
        one("grad_scale"),
    ],
    attrs: &[
        required("beta1", AttrKind::Float),
        required("beta2", AttrKind::Float),
        required("eps", AttrKind::Float),
        defaulted("weight_decay", AttrKind::Float, || Attr::from(0.0)),
    ],
};

impl OpDef for AdamwStep {
    fn name(&self) -> &'static str {
        "adamw_step"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 2), (2, 3)]
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        infer_update(cx, 2)
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| {
            in_f32(b, args, |b, args| {
                let [param, grad, m, v, lr, correction1, correction2, scale] = *args else {
                    unreachable!("inferred")
                };
                let g = b.mul(grad, scale)?;
                let change = b.sub(g, m)?;
                let change = times(b, change, 1.0 - attrs.float("beta1"))?;
                let m = b.add(m, change)?;
                let square = b.mul(g, g)?;
                let square = times(b, square, 1.0 - attrs.float("beta2"))?;
                let v = times(b, v, attrs.float("beta2"))?;
                let v = b.add(v, square)?;
                let (root, unit) = (b.unary("sqrt", v)?, b.unary("sqrt", correction2)?);
                let root = b.div(root, unit)?;
                let eps = b.scalar(b.ty(root).dtype, attrs.float("eps"))?;
                let root = b.add(root, eps)?;
                let size = b.div(lr, correction1)?;
                let step = b.div(m, root)?;
                let step = b.mul(step, size)?;
                let param = decay(b, attrs, param, lr)?;
                Ok(vec![b.sub(param, step)?, m, v])
            })
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused("updates a parameter; losses are differentiated, steps are not")
    }
    fn samples(&self) -> Vec<Sample> {
        let attrs = Attrs::none().with("beta1", 0.9).with("beta2", 0.95).with("eps", 1e-8);
        let attrs = attrs.with("weight_decay", 0.1);
        samples(&attrs, 2, &[0.01, 0.271, 0.1426, 0.5])
    }
}
