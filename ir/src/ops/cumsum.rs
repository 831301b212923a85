//! `cumsum`.

use super::adjoint::flip;
use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType, Vjp,
    op::{AttrKind, normalize_axis, one, required},
};

/// Running sum along an axis, the element itself included.
pub(super) struct Cumsum;

static SIGNATURE: Signature =
    Signature { operands: &[one("x")], attrs: &[required("axis", AttrKind::Int)] };

impl OpDef for Cumsum {
    fn name(&self) -> &'static str {
        "cumsum"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        cx.axis("axis", cx.ty(0).rank())?;
        Ok(vec![Fact::of(cx.ty(0).clone())])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let x = args[0].as_ref().expect("operand");
            let axis = normalize_axis(cx.attrs.int("axis"), x.rank()).expect("inferred");
            let inner: usize = x.shape()[axis + 1..].iter().product();
            let n = x.shape()[axis];
            let dtype = cx.results[0].dtype;
            vec![if x.dtype().is_float() {
                let sums = running(x.to_f64s(), inner, n, |a, b| a + b);
                Tensor::from_f64s(dtype, x.shape(), sums)
            } else {
                let sums = running(x.to_i64s(), inner, n, i64::wrapping_add);
                Tensor::from_i64s(dtype, x.shape(), sums)
            }]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let dy = cx.cotangent(0)?;
            let axis = normalize_axis(cx.attrs.int("axis"), cx.ty(0).rank()).expect("inferred");
            let dy = flip(cx.b, dy, axis)?;
            let sums = cx.b.op1("cumsum", cx.attrs.clone(), &[dy])?;
            Ok(vec![Some(flip(cx.b, sums, axis)?)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let x = Some(spread(DType::F32, &[3, 5, 4], -1.0, 1.0));
        vec![Sample { attrs: Attrs::none().with("axis", 1i64), args: vec![x] }]
    }
}

/// Adds each element's predecessor, `inner` before it, along an axis of extent `n`.
fn running<T: Copy>(mut v: Vec<T>, inner: usize, n: usize, add: fn(T, T) -> T) -> Vec<T> {
    for i in 0..v.len() {
        if !(i / inner).is_multiple_of(n) {
            v[i] = add(v[i - inner], v[i]);
        }
    }
    v
}
