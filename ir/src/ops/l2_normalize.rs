//! `l2_normalize`.

use super::adjoint::compare;
use super::elementwise::spread;
use crate::{
    Attr, Attrs, Body, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, defaulted, one},
};

/// `x / max(‖x‖₂, eps)` over the last axis.
pub(super) struct L2Normalize;

static SIGNATURE: Signature = Signature {
    operands: &[one("x")],
    attrs: &[defaulted("eps", AttrKind::Float, || Attr::from(1e-12))],
};

impl OpDef for L2Normalize {
    fn name(&self) -> &'static str {
        "l2_normalize"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn is_rowwise(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        if cx.ty(0).rank() == 0 {
            return Err(OpError::new("takes at least one axis"));
        }
        Ok(vec![Fact::of(cx.ty(0).clone())])
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| {
            let x = args[0].expect("operand");
            let eps = b.scalar(b.ty(x).dtype, attrs.float("eps"))?;
            let sq = b.mul(x, x)?;
            let sum = b.reduce("reduce_sum", sq, &[-1], true)?;
            let norm = b.unary("sqrt", sum)?;
            let norm = b.op1("maximum", Attrs::none(), &[norm, eps])?;
            Ok(vec![b.div(x, norm)?])
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (x, y, dtype, dy) = (cx.arg(0), cx.results[0], cx.ty(0).dtype, cx.cotangent(0)?);
            let (eps, zero) =
                (cx.b.scalar(dtype, cx.attrs.float("eps"))?, cx.b.scalar(dtype, 0.0)?);
            let square = cx.b.mul(x, x)?;
            let sum = cx.b.reduce("reduce_sum", square, &[-1], true)?;
            let norm = cx.b.unary("sqrt", sum)?;
            let free = compare(cx.b, "greater", norm, eps)?;
            let norm = cx.b.select(free, norm, eps)?;
            let along = cx.b.mul(dy, y)?;
            let along = cx.b.reduce("reduce_sum", along, &[-1], true)?;
            let along = cx.b.select(free, along, zero)?;
            let along = cx.b.mul(y, along)?;
            let rest = cx.b.sub(dy, along)?;
            Ok(vec![Some(cx.b.div(rest, norm)?)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let x = Some(spread(DType::F32, &[3, 37], -2.0, 2.0));
        vec![Sample { attrs: Attrs::none(), args: vec![x] }]
    }
}
