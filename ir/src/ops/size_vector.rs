//! `size_vector`: symbolic sizes as a tensor.

use crate::{
    Attr, Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType, Vjp,
    op::{AttrKind, defaulted, required},
};

/// The values of sizes, as a vector (or scalar, with `scalar`) of an integer type.
pub(super) struct SizeVector;

static SIGNATURE: Signature = Signature {
    operands: &[],
    attrs: &[
        required("sizes", AttrKind::Dims),
        defaulted("scalar", AttrKind::Bool, || Attr::Bool(false)),
        defaulted("dtype", AttrKind::DType, || Attr::DType(DType::I64)),
    ],
};

impl OpDef for SizeVector {
    fn name(&self) -> &'static str {
        "size_vector"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let sizes = cx.attrs.dims("sizes").to_vec();
        let dtype = cx.attrs.dtype("dtype");
        if !dtype.is_int() {
            return Err(OpError::attr("dtype", "must be an integer type"));
        }
        let scalar = cx.attrs.bool("scalar");
        if scalar && sizes.len() != 1 {
            return Err(OpError::attr("sizes", "must hold one size for a scalar"));
        }
        let shape = if scalar { vec![] } else { vec![sizes.len()] };
        Ok(vec![Fact::symbolic(TensorType::new(dtype, shape), sizes)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, _| {
            let sizes = cx.attrs.dims("sizes").iter();
            let values = sizes.map(|d| d.eval(cx.env).expect("symbols are bound"));
            vec![Tensor::from_i64s(cx.results[0].dtype, &cx.shape(0), values)]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        let attrs = Attrs::none().with("sizes", vec![Dim::from(3i64), Dim::from(7i64)]);
        vec![Sample { attrs, args: vec![] }]
    }
}
