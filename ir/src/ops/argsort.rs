//! `argsort`.

use super::order::{AXIS, DESCENDING, flops, in_order, sample};
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::one,
};

/// Indices that put the elements along an axis in order: stable, NaN above every number, zeros of
/// both signs equal.
/// # Shapes
/// `x: [.., N, ..]` → i64 of the same shape.
pub(super) struct Argsort;

static SIGNATURE: Signature = Signature { operands: &[one("x")], attrs: &[AXIS, DESCENDING] };

impl OpDef for Argsort {
    fn name(&self) -> &'static str {
        "argsort"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        cx.axis("axis", cx.ty(0).rank())?;
        Ok(vec![Fact::of(cx.ty(0).with_dtype(DType::I64))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| in_order(cx, args)[1..].to_vec())
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], _: &[TensorType]) -> Dim {
        flops(args)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            sample(DType::F32, &[3, 67], -1, true),
            sample(DType::Bf16, &[2, 41, 3], 1, false),
            sample(DType::I64, &[5, 19], 0, false),
            sample(DType::U8, &[2, 37], 1, true),
        ]
    }
}
