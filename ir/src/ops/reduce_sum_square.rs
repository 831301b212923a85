//! `reduce_sum_square`.

use crate::{Attrs, Body, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp};

/// Sum of squares over axes, kept with extent one where `keep` is set: ONNX's `ReduceSumSquare`.
pub(super) struct ReduceSumSquare;

impl OpDef for ReduceSumSquare {
    fn name(&self) -> &'static str {
        "reduce_sum_square"
    }
    fn signature(&self) -> &'static Signature {
        &super::reduction::SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        super::reduction::infer(cx)
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| {
            let x = args[0].expect("operand");
            let squares = b.mul(x, x)?;
            Ok(vec![b.op1("reduce_sum", attrs.clone(), &[squares])?])
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Expansion
    }
    fn samples(&self) -> Vec<Sample> {
        super::reduction::samples()
    }
}
