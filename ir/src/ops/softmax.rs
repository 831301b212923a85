//! `softmax`.

use super::elementwise::spread;
use crate::{
    Attr, Attrs, Body, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, defaulted, one},
};

/// `exp(x - max x) / Σ exp(x - max x)` along an axis.
pub(super) struct Softmax;

static SIGNATURE: Signature = Signature {
    operands: &[one("x")],
    attrs: &[defaulted("axis", AttrKind::Int, || Attr::Int(-1))],
};

impl OpDef for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        cx.axis("axis", cx.ty(0).rank())?;
        Ok(vec![Fact::of(cx.ty(0).clone())])
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| {
            let x = args[0].expect("operand");
            let axis = [attrs.int("axis")];
            let max = b.reduce("reduce_max", x, &axis, true)?;
            let e = b.sub(x, max)?;
            let e = b.exp(e)?;
            let sum = b.reduce("reduce_sum", e, &axis, true)?;
            Ok(vec![b.div(e, sum)?])
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (y, dy) = (cx.results[0], cx.cotangent(0)?);
            let weighted = cx.b.mul(dy, y)?;
            let mean = cx.b.reduce("reduce_sum", weighted, &[cx.attrs.int("axis")], true)?;
            let rest = cx.b.sub(dy, mean)?;
            Ok(vec![Some(cx.b.mul(y, rest)?)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let x = Some(spread(DType::F32, &[3, 37], -9.0, 9.0));
        vec![
            Sample { attrs: Attrs::none(), args: vec![x.clone()] },
            Sample { attrs: Attrs::none().with("axis", 0i64), args: vec![x] },
        ]
    }
}
