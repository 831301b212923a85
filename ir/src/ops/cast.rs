//! `cast`: the only place where precision changes.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType, Vjp,
    op::{AttrKind, one, required},
};

/// `x` as another element type: floats round to nearest even, floats to integers truncate, integers
/// wrap, anything but zero is true.
pub(super) struct Cast;

static SIGNATURE: Signature =
    Signature { operands: &[one("x")], attrs: &[required("to", AttrKind::DType)] };

impl OpDef for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn is_elementwise(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let to = cx.attrs.dtype("to");
        let ty = cx.ty(0).with_dtype(to);
        Ok(vec![match &cx.arg(0).dims {
            Some(dims) if to.is_int() => Fact::symbolic(ty, dims.clone()),
            _ => Fact::of(ty),
        }])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let x = args[0].as_ref().expect("operand");
            let to = cx.results[0].dtype;
            if to == DType::Bool {
                let bits = x.to_f64s().into_iter().map(|v| i64::from(v != 0.0));
                return vec![Tensor::from_i64s(to, x.shape(), bits)];
            }
            vec![x.cast(to)]
        })
    }
    fn vjp(&self, attrs: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        match attrs.dtype("to").is_float() {
            true => Vjp::Rule(|cx| Ok(vec![Some(cx.cotangent(0)?)])),
            false => Vjp::Zero,
        }
    }
    fn samples(&self) -> Vec<Sample> {
        let x = spread(DType::F32, &[3, 21], -9.0, 9.0);
        [DType::Bf16, DType::F16, DType::I32, DType::Bool]
            .iter()
            .map(|to| Sample { attrs: Attrs::none().with("to", *to), args: vec![Some(x.clone())] })
            .collect()
    }
}
