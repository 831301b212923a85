//! `shape_of`.

use super::elementwise::spread;
use crate::{
    Attr, Attrs, Body, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    Vjp,
    op::{AttrKind, defaulted, one},
};

/// The extents of `x` from `start` to `end` (axes count from the end where negative), as i64. ONNX
/// `Shape`.
pub(super) struct ShapeOf;

static SIGNATURE: Signature = Signature {
    operands: &[one("x")],
    attrs: &[
        defaulted("start", AttrKind::Int, || Attr::Int(0)),
        defaulted("end", AttrKind::Int, || Attr::Int(i64::MAX)),
    ],
};

impl OpDef for ShapeOf {
    fn name(&self) -> &'static str {
        "shape_of"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn onnx(&self) -> &'static [&'static str] {
        &["Shape"]
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let shape = &cx.ty(0).shape;
        let rank = i64::try_from(shape.len()).unwrap_or(i64::MAX);
        let clamp = |v: i64| usize::try_from(if v < 0 { v + rank } else { v }.clamp(0, rank));
        let start = clamp(cx.attrs.int("start")).unwrap_or(0);
        let end = clamp(cx.attrs.int("end")).unwrap_or(0).max(start);
        let dims = shape[start..end].to_vec();
        let ty = TensorType::new(DType::I64, [dims.len()]);
        Ok(vec![Fact::symbolic(ty, dims)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let shape = args[0].as_ref().expect("operand").shape();
            let rank = shape.len() as i64;
            let from_front = |v: i64| if v < 0 { v + rank } else { v }.clamp(0, rank);
            let range = from_front(cx.attrs.int("start"))..from_front(cx.attrs.int("end"));
            let axes = shape.iter().zip(0i64..).filter(|(_, i)| range.contains(i));
            let dims = axes.map(|(d, _)| *d as i64);
            vec![Tensor::from_i64s(DType::I64, &cx.shape(0), dims)]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        let x = Some(spread(DType::F32, &[3, 4, 5], -1.0, 1.0));
        let last = Attrs::none().with("start", -1i64);
        vec![
            Sample { attrs: Attrs::none(), args: vec![x.clone()] },
            Sample { attrs: last, args: vec![x] },
        ]
    }
}
