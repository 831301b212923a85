//! `sort`.

use super::order::{AXIS, DESCENDING, indices, mixed, places, values};
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType,
    op::{normalize_axis, one},
};

/// Elements in order along an axis, and where each came from: stable, NaN above every number,
/// zeros of both signs equal.
/// # Shapes
/// `x: [.., N, ..]` → `values`, `indices` i64, of the same shape.
pub(super) struct Sort;

static SIGNATURE: Signature = Signature { operands: &[one("x")], attrs: &[AXIS, DESCENDING] };

impl OpDef for Sort {
    fn name(&self) -> &'static str {
        "sort"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        cx.axis("axis", cx.ty(0).rank())?;
        let x = cx.ty(0);
        Ok(vec![Fact::of(x.clone()), Fact::of(x.with_dtype(DType::I64))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let x = args[0].as_ref().expect("operand");
            let axis = normalize_axis(cx.attrs.int("axis"), x.rank()).expect("inferred");
            let shape = cx.shape(0);
            let places = places(x, axis, shape[axis], cx.attrs.bool("descending"));
            vec![values(x, &shape, &places), indices(x, axis, &shape, &places)]
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], _: &[TensorType]) -> Dim {
        args[0].as_ref().map_or(Dim::from(0), |x| x.elements() * Dim::from(16))
    }
    fn samples(&self) -> Vec<Sample> {
        let make = |dtype: DType, shape: &[usize], axis: i64, descending: bool| Sample {
            attrs: Attrs::none().with("axis", axis).with("descending", descending),
            args: vec![Some(mixed(dtype, shape))],
        };
        vec![
            make(DType::F32, &[3, 67], -1, false),
            make(DType::F16, &[2, 41, 3], 1, true),
            make(DType::I32, &[5, 19], 0, true),
            make(DType::I8, &[2, 37], 1, false),
            make(DType::Bool, &[53], 0, true),
        ]
    }
}
