//! `call`: another function of the module.

use crate::{
    Attrs, Body, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, required, variadic},
};

/// Applies a function of the module to operands. Types must equal the parameters'.
pub(super) struct Call;

static SIGNATURE: Signature =
    Signature { operands: &[variadic("operands")], attrs: &[required("callee", AttrKind::Str)] };

impl OpDef for Call {
    fn name(&self) -> &'static str {
        "call"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let callee = cx.attrs.str("callee");
        let Some((params, results)) = (cx.callee)(callee) else {
            return Err(OpError::new(format!("no function `{callee}`")));
        };
        if params.len() != cx.args.len() {
            let (want, got) = (params.len(), cx.args.len());
            return Err(OpError::new(format!("`{callee}` takes {want} operands, got {got}")));
        }
        for (i, want) in params.iter().enumerate() {
            if cx.ty(i).equal(want, cx.symbols) != Some(true) {
                let got = cx.ty(i);
                let why = format!("operand {i} of `{callee}` is {want}, got {got}");
                return Err(OpError::new(why));
            }
        }
        Ok(results.into_iter().map(Fact::of).collect())
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
