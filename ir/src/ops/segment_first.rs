//! `segment_first`.

use super::adjoint::{compare, iota, segments};
use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    Vjp, op::one,
};

/// The first row of each segment; zero for an empty one.
/// # Shapes
/// `x: [T, H]`, `cu_seqlens: [S+1]` i32 → `[S, H]`.
pub(super) struct SegmentFirst;

static SIGNATURE: Signature = Signature { operands: &[one("x"), one("cu_seqlens")], attrs: &[] };

impl OpDef for SegmentFirst {
    fn name(&self) -> &'static str {
        "segment_first"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (x, cu) = (cx.ty(0), cx.ty(1));
        let ([_, h], [s1], DType::I32) = (&*x.shape, &*cu.shape, cu.dtype) else {
            return Err(OpError::new(format!("takes [T, H] and [S+1] i32, got {x} and {cu}")));
        };
        let shape = [s1.clone() - Dim::from(1i64), h.clone()];
        Ok(vec![Fact::of(TensorType::new(x.dtype, shape))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let [x, cu] = [0, 1].map(|i| args[i].as_ref().expect("operand"));
            let h = x.shape()[1];
            let x = x.to_f64s();
            let cu = cu.to_i64s();
            let segments = cu.windows(2).flat_map(|w| {
                let [start, end] = [w[0], w[1]].map(|v| usize::try_from(v).unwrap_or(0));
                let x = &x;
                (0..h).map(move |c| if start < end { x[start * h + c] } else { 0.0 })
            });
            vec![Tensor::from_f64s(cx.results[0].dtype, &cx.shape(0), segments)]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (dy, cu, tokens) = (cx.cotangent(0)?, cx.arg(1), cx.ty(0).shape[0].clone());
            let (own, within) = segments(cx.b, cu, &tokens)?;
            let first = cx.b.gather(cu, own, 0)?;
            let at = iota(cx.b, std::slice::from_ref(&tokens), 0, DType::I32)?;
            let first = compare(cx.b, "equal", first, at)?;
            let first = compare(cx.b, "and", first, within)?;
            let first = cx.b.reshape(first, vec![tokens, Dim::from(1)])?;
            let picked = cx.b.gather(dy, own, 0)?;
            let zero = cx.b.scalar(cx.ty(0).dtype, 0.0)?;
            Ok(vec![Some(cx.b.select(first, picked, zero)?)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let cu = Tensor::from_i64s(DType::I32, &[4], [0, 4, 4, 9]);
        let x = spread(DType::F32, &[9, 21], -2.0, 2.0);
        vec![Sample { attrs: Attrs::none(), args: vec![Some(x), Some(cu)] }]
    }
}
