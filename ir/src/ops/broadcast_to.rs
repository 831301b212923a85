//! `broadcast_to`.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType, Vjp,
    op::{AttrKind, one, required},
};

/// `x` repeated along axes of extent one and new leading axes. ONNX `Expand`, of a known shape.
pub(super) struct BroadcastTo;

static SIGNATURE: Signature =
    Signature { operands: &[one("x")], attrs: &[required("shape", AttrKind::Dims)] };

impl OpDef for BroadcastTo {
    fn name(&self) -> &'static str {
        "broadcast_to"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn is_view(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let shape = cx.attrs.dims("shape");
        let to = cx.broadcast(&cx.ty(0).shape, shape)?;
        if to.len() != shape.len() {
            return Err(OpError::attr("shape", "has fewer axes than the operand"));
        }
        for (i, (a, b)) in to.iter().zip(shape).enumerate() {
            cx.same(&format!("axis {i}"), a, b)?;
        }
        let ty = TensorType::new(cx.ty(0).dtype, to);
        let count = ty.shape.first().and_then(Dim::as_const).filter(|n| *n <= 64);
        Ok(vec![match (&cx.arg(0).dims, count, ty.rank()) {
            (Some(d), Some(n), 1) if d.len() == 1 => {
                Fact::symbolic(ty, (0..n).map(|_| d[0].clone()).collect())
            }
            _ => Fact::of(ty),
        }])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            vec![args[0].as_ref().expect("operand").broadcast_to(&cx.shape(0))]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| Ok(vec![Some(cx.cotangent(0)?)]))
    }
    fn samples(&self) -> Vec<Sample> {
        let x = Some(spread(DType::F32, &[3, 1], -1.0, 1.0));
        let shape: Vec<Dim> = [2i64, 3, 20].map(Dim::from).to_vec();
        vec![Sample { attrs: Attrs::none().with("shape", shape), args: vec![x] }]
    }
}
