//! `is_nan`.

use super::elementwise::{UNARY, eval_unary, spread};
use crate::{
    Attrs, Body, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
};

/// Whether `x` is not a number.
pub(super) struct IsNan;

impl OpDef for IsNan {
    fn name(&self) -> &'static str {
        "is_nan"
    }
    fn signature(&self) -> &'static Signature {
        &UNARY
    }
    fn onnx(&self) -> &'static [&'static str] {
        &["IsNaN"]
    }
    fn is_elementwise(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::of(cx.ty(0).with_dtype(DType::Bool))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| eval_unary(cx, args, |x| f64::from(u8::from(x.is_nan())), |_| 0))
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        let mut v = spread(DType::F32, &[2, 19], -1.0, 1.0).to_f64s();
        v[3] = f64::NAN;
        let x = crate::Tensor::from_f64s(DType::F32, &[2, 19], v);
        vec![Sample { attrs: Attrs::none(), args: vec![Some(x)] }]
    }
}
