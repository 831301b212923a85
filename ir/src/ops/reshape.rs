//! `reshape`.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, one, required},
};

/// The elements of `x` in row-major order under another shape of as many elements.
pub(super) struct Reshape;

static SIGNATURE: Signature =
    Signature { operands: &[one("x")], attrs: &[required("shape", AttrKind::Dims)] };

impl OpDef for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn is_view(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let shape = cx.attrs.dims("shape").to_vec();
        let ty = TensorType::new(cx.ty(0).dtype, shape);
        cx.same("number of elements", &cx.ty(0).elements(), &ty.elements())?;
        Ok(vec![match &cx.arg(0).dims {
            Some(dims) if ty.rank() <= 1 => Fact::symbolic(ty, dims.clone()),
            _ => Fact::of(ty),
        }])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| vec![args[0].as_ref().expect("operand").reshape(&cx.shape(0))])
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (dy, shape) = (cx.cotangent(0)?, cx.ty(0).shape.to_vec());
            Ok(vec![Some(cx.b.reshape(dy, shape)?)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let x = Some(spread(DType::F32, &[4, 6], -1.0, 1.0));
        let shape: Vec<Dim> = [2i64, 3, 4].map(Dim::from).to_vec();
        vec![Sample { attrs: Attrs::none().with("shape", shape), args: vec![x] }]
    }
}
