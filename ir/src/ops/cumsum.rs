//! `cumsum`.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
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
            let mut v = x.to_f64s();
            for i in 0..v.len() {
                if !(i / inner).is_multiple_of(n) {
                    v[i] += v[i - inner];
                }
            }
            vec![Tensor::from_f64s(cx.results[0].dtype, x.shape(), v)]
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let x = Some(spread(DType::F32, &[3, 5, 4], -1.0, 1.0));
        vec![Sample { attrs: Attrs::none().with("axis", 1i64), args: vec![x] }]
    }
}
