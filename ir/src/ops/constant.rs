//! `constant`.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, required},
};

/// A constant tensor.
pub(super) struct Constant;

static SIGNATURE: Signature =
    Signature { operands: &[], attrs: &[required("value", AttrKind::Tensor)] };

impl OpDef for Constant {
    fn name(&self) -> &'static str {
        "constant"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::constant(cx.attrs.tensor("value"))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, _| vec![cx.attrs.tensor("value").cast(cx.results[0].dtype)])
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        let value = spread(DType::F32, &[2, 3], -1.0, 1.0);
        vec![Sample { attrs: Attrs::none().with("value", value), args: vec![] }]
    }
}
