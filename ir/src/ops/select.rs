//! `select`.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType, Vjp,
    op::{one, same_dtype},
};

/// `cond ? a : b`, broadcast. ONNX `Where`.
pub(super) struct Select;

static SIGNATURE: Signature =
    Signature { operands: &[one("cond"), one("a"), one("b")], attrs: &[] };

impl OpDef for Select {
    fn name(&self) -> &'static str {
        "select"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn onnx(&self) -> &'static [&'static str] {
        &["Where"]
    }
    fn is_elementwise(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        if cx.ty(0).dtype != DType::Bool {
            return Err(OpError::new(format!("the condition is {}, not bool", cx.ty(0).dtype)));
        }
        let dtype = same_dtype(cx.ty(1).dtype, cx.ty(2).dtype)?;
        let shape = cx.broadcast(&cx.ty(1).shape, &cx.ty(2).shape)?;
        let shape = cx.broadcast(&cx.ty(0).shape, &shape)?;
        Ok(vec![Fact::of(TensorType::new(dtype, shape))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let shape = cx.shape(0);
            let [c, a, b] =
                [0, 1, 2].map(|i| args[i].as_ref().expect("operand").broadcast_to(&shape));
            let cond = c.to_i64s();
            vec![if a.dtype().is_float() {
                let pick = cond.iter().zip(a.to_f64s().into_iter().zip(b.to_f64s()));
                let it = pick.map(|(c, (a, b))| if *c != 0 { a } else { b });
                Tensor::from_f64s(cx.results[0].dtype, &shape, it)
            } else {
                let pick = cond.iter().zip(a.to_i64s().into_iter().zip(b.to_i64s()));
                let it = pick.map(|(c, (a, b))| if *c != 0 { a } else { b });
                Tensor::from_i64s(cx.results[0].dtype, &shape, it)
            }]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (cond, dy) = (cx.arg(0), cx.cotangent(0)?);
            let zero = cx.b.scalar(cx.ty(1).dtype, 0.0)?;
            Ok(vec![
                None,
                cx.when(1, |cx| cx.b.select(cond, dy, zero))?,
                cx.when(2, |cx| cx.b.select(cond, zero, dy))?,
            ])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let cond = spread(DType::Bool, &[3, 1], 0.0, 1.0);
        let cond = Tensor::from_i64s(DType::Bool, cond.shape(), [1, 0, 1]);
        let [a, b] = [[-3.0, 3.0], [3.0, -3.0]].map(|[l, h]| spread(DType::F32, &[3, 19], l, h));
        vec![Sample { attrs: Attrs::none(), args: vec![Some(cond), Some(a), Some(b)] }]
    }
}
