//! `param`: a parameter of a function.

use crate::{
    Attrs, Body, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, required},
};

/// A parameter of the function. Its type stands on the node.
pub(super) struct Param;

static SIGNATURE: Signature =
    Signature { operands: &[], attrs: &[required("name", AttrKind::Str)] };

impl OpDef for Param {
    fn name(&self) -> &'static str {
        "param"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let _ = cx;
        Err(OpError::new("parameters are declared with Builder::param"))
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
