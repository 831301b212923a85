//! `gated_linear`: both halves of a gated MLP in one product.

use super::interleave::separate;
use super::{
    elementwise::spread,
    linear::{activation, in_parts, infer_product, product},
};
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    Vjp,
    op::{AttrKind, one, required},
};

/// `act(x · gate) · (x · up)`, the weights packed and interleaved panel by panel.
///
/// Shazeer 2020, arXiv:2002.05202.
/// # Shapes
/// `x: [.., K]`, `w: [2·ceil(n / 16), K, 16]` → `[.., n]`, dtype of `x`.
pub(super) struct GatedLinear;

static SIGNATURE: Signature = Signature {
    operands: &[one("x"), one("w")],
    attrs: &[required("n", AttrKind::Int), required("act", AttrKind::Str)],
};

impl OpDef for GatedLinear {
    fn name(&self) -> &'static str {
        "gated_linear"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn is_rowwise(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::of(infer_product(cx, 2)?)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let [x, w] = [0, 1].map(|i| args[i].as_ref().expect("operand"));
            let n = usize::try_from(cx.attrs.int("n")).expect("inferred");
            let act = activation(cx.attrs.str("act")).expect("inferred");
            let half = |first: usize| product(x, &w.slice(0, first, w.shape()[0] / 2, 2), n);
            let y = half(0).into_iter().zip(half(1)).map(|(g, u)| act(g) * u);
            vec![Tensor::from_f64s(cx.results[0].dtype, &cx.shape(0), y)]
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], results: &[TensorType]) -> Dim {
        let k = args[0].as_ref().and_then(|a| a.shape.last().cloned()).unwrap_or_default();
        results[0].elements() * k * Dim::from(4i64)
    }
    fn vjp(&self, _: &Attrs, args: &[Option<TensorType>]) -> Vjp {
        in_parts(args, |b, attrs, args| {
            let plain = Attrs::none().with("n", attrs.int("n"));
            let [gate, up] = separate(b, args[1].expect("operand"))?;
            let gate = b.op("linear", plain.clone(), &[args[0], Some(gate)])?[0];
            let up = b.op("linear", plain, &[args[0], Some(up)])?[0];
            let gate =
                if attrs.str("act") == "none" { gate } else { b.unary(attrs.str("act"), gate)? };
            Ok(vec![b.mul(gate, up)?])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let make = |rows: usize, dtype: DType, act: &str| Sample {
            attrs: Attrs::none().with("n", 37i64).with("act", act),
            args: vec![
                Some(spread(DType::F32, &[rows, 19], -1.0, 1.0)),
                Some(spread(dtype, &[6, 19, 16], -0.5, 0.5)),
            ],
        };
        vec![make(1, DType::Bf16, "silu"), make(13, DType::F32, "gelu_tanh")]
    }
}
