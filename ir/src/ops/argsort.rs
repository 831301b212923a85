//! `argsort`.

use super::order::{AXIS, DESCENDING, indices, mixed, places};
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, TensorType,
    op::{normalize_axis, one},
};

/// Indices that put the elements along an axis in order: stable, NaN above every number, zeros of
/// both signs equal.
/// # Shapes
/// `x: [.., N, ..]` → i64 of the same shape.
pub(super) struct Argsort;

static SIGNATURE: Signature = Signature { operands: &[one("x")], attrs: &[AXIS, DESCENDING] };

impl OpDef for Argsort {
    fn name(&self) -> &'static str {
        "argsort"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        cx.axis("axis", cx.ty(0).rank())?;
        Ok(vec![Fact::of(cx.ty(0).with_dtype(DType::I64))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let x = args[0].as_ref().expect("operand");
            let axis = normalize_axis(cx.attrs.int("axis"), x.rank()).expect("inferred");
            let shape = cx.shape(0);
            let places = places(x, axis, shape[axis], cx.attrs.bool("descending"));
            vec![indices(x, axis, &shape, &places)]
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
            make(DType::F32, &[3, 67], -1, true),
            make(DType::Bf16, &[2, 41, 3], 1, false),
            make(DType::I64, &[5, 19], 0, false),
            make(DType::U8, &[2, 37], 1, true),
        ]
    }
}
