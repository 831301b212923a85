//! `iota`: coordinates.

use crate::tensor::for_each_index;
use crate::{
    Attr, Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType, Vjp,
    op::{AttrKind, defaulted, normalize_axis, required},
};

/// The coordinate along `axis` of every element of `shape`. ONNX `Range` imports as `start + delta
/// · iota`.
pub(super) struct Iota;

static SIGNATURE: Signature = Signature {
    operands: &[],
    attrs: &[
        required("shape", AttrKind::Dims),
        defaulted("axis", AttrKind::Int, || Attr::Int(0)),
        defaulted("dtype", AttrKind::DType, || Attr::DType(DType::I64)),
    ],
};

impl OpDef for Iota {
    fn name(&self) -> &'static str {
        "iota"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let shape = cx.attrs.dims("shape").to_vec();
        cx.axis("axis", shape.len())?;
        let ty = TensorType::new(cx.attrs.dtype("dtype"), shape);
        if let ([n], true) = (ty.shape.as_slice(), ty.dtype.is_int())
            && let Some(n) = n.as_const().filter(|n| *n <= 64)
        {
            return Ok(vec![Fact::symbolic(ty, (0..n).map(Dim::from).collect())]);
        }
        Ok(vec![Fact::of(ty)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, _| {
            let shape = cx.shape(0);
            let axis = normalize_axis(cx.attrs.int("axis"), shape.len()).expect("inferred");
            let mut values = Vec::new();
            for_each_index(&shape, |index| values.push(index[axis] as i64));
            vec![Tensor::from_i64s(cx.results[0].dtype, &shape, values)]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        let attrs = Attrs::none().with("shape", vec![Dim::from(3i64), Dim::from(20i64)]);
        vec![
            Sample { attrs: attrs.clone(), args: vec![] },
            Sample { attrs: attrs.with("axis", 1i64).with("dtype", DType::F32), args: vec![] },
        ]
    }
}
