//! `weight`: a named weight of the module.

use crate::{
    Attrs, Body, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, required},
};

/// A weight of the module, by name. Its type stands in the module's table.
pub(super) struct Weight;

static SIGNATURE: Signature =
    Signature { operands: &[], attrs: &[required("name", AttrKind::Str)] };

impl OpDef for Weight {
    fn name(&self) -> &'static str {
        "weight"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let _ = cx;
        Err(OpError::new("weights are read with Builder::weight"))
    }
    fn body(&self) -> Body {
        Body::Structural
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Structural
    }
    fn samples(&self) -> Vec<Sample> {
        Vec::new()
    }
}
