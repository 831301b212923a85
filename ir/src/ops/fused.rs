//! `fused`: several elementwise operators in one loop, perhaps behind a product.

use crate::{
    Attrs, Body, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, required, variadic},
};

/// Applies a function of elementwise operators to operands, as [`Call`](super::call::Call) does, in
/// one pass over the index space of its results, which all have one shape. The function may begin
/// with a product of its first operands, which has that shape: loops behind products are for GPUs.
pub(super) struct Fused;

static SIGNATURE: Signature =
    Signature { operands: &[variadic("operands")], attrs: &[required("callee", AttrKind::Str)] };

impl OpDef for Fused {
    fn name(&self) -> &'static str {
        "fused"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        super::call::Call.infer(cx)
    }
    fn body(&self) -> Body {
        Body::Structural
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused("is made after differentiation, when loops are fused")
    }
    fn samples(&self) -> Vec<Sample> {
        Vec::new()
    }
}
