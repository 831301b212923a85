//! `sort`.

use super::order::{AXIS, DESCENDING, flops, in_order, sample};
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::one,
};

/// Elements in order along an axis, and where each came from: stable, NaN above every number,
/// zeros of both signs equal.
/// # Shapes
/// `x: [.., N, ..]` → `values`, `indices` i64, of the same shape.
pub(super) struct Sort;

static SIGNATURE: Signature = Signature { operands: &[one("x")], attrs: &[AXIS, DESCENDING] };

impl OpDef for Sort {
    fn name(&self) -> &'static str {
        "sort"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        cx.axis("axis", cx.ty(0).rank())?;
        let x = cx.ty(0);
        Ok(vec![Fact::of(x.clone()), Fact::of(x.with_dtype(DType::I64))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| in_order(cx, args).to_vec())
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], _: &[TensorType]) -> Dim {
        flops(args)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let dy = cx.cotangent(0)?;
            let axis = Attrs::none().with("axis", cx.attrs.int("axis"));
            let back = cx.b.op1("argsort", axis.clone(), &[cx.results[1]])?;
            Ok(vec![Some(cx.b.op1("gather_elements", axis, &[dy, back])?)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            sample(DType::F32, &[3, 67], -1, false),
            sample(DType::F16, &[2, 41, 3], 1, true),
            sample(DType::I32, &[5, 19], 0, true),
            sample(DType::I8, &[2, 37], 1, false),
            sample(DType::Bool, &[53], 0, true),
        ]
    }
}
