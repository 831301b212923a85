//! `grouped_gated_linear`: both halves of the gated MLPs of experts in one product.

use super::interleave::separate;
use super::{
    elementwise::spread,
    grouped_linear::{by_expert, infer_grouped},
    linear::{activation, in_parts, product},
};
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    Vjp,
    op::{AttrKind, one, required},
};

/// `act(x · gate[e]) · (x · up[e])` for the rows of each expert, as `grouped_linear` divides them;
/// the weights packed and interleaved panel by panel.
///
/// A row is what `gated_linear` with the weight of its expert makes of it, bit for bit.
/// # Shapes
/// `x: [R, K]`, `w: [E, 2·ceil(n / 16), K, 16]`, `offsets: [E + 1]` i32 → `[R, n]`, dtype of `x`.
pub(super) struct GroupedGatedLinear;

static SIGNATURE: Signature = Signature {
    operands: &[one("x"), one("w"), one("offsets")],
    attrs: &[required("n", AttrKind::Int), required("act", AttrKind::Str)],
};

impl OpDef for GroupedGatedLinear {
    fn name(&self) -> &'static str {
        "grouped_gated_linear"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Fact::of(infer_grouped(cx, 2)?)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let n = usize::try_from(cx.attrs.int("n")).expect("inferred");
            let act = activation(cx.attrs.str("act")).expect("inferred");
            let y = by_expert(args, n, |_, x, w| {
                let half = |first| product(x, &w.slice(0, first, w.shape()[0] / 2, 2), n);
                half(0).into_iter().zip(half(1)).map(|(g, u)| act(g) * u).collect()
            });
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
            let gate = b.op("grouped_linear", plain.clone(), &[args[0], Some(gate), args[2]])?[0];
            let up = b.op("grouped_linear", plain, &[args[0], Some(up), args[2]])?[0];
            let gate =
                if attrs.str("act") == "none" { gate } else { b.unary(attrs.str("act"), gate)? };
            Ok(vec![b.mul(gate, up)?])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let make = |dtype: DType, offsets: [i64; 4], act: &str| Sample {
            attrs: Attrs::none().with("n", 37i64).with("act", act),
            args: vec![
                Some(spread(DType::F32, &[11, 19], -1.0, 1.0)),
                Some(spread(dtype, &[3, 6, 19, 16], -0.5, 0.5)),
                Some(Tensor::from_i64s(DType::I32, &[4], offsets)),
            ],
        };
        vec![make(DType::Bf16, [0, 3, 4, 11], "silu"), make(DType::F32, [0, 0, 5, 8], "gelu_tanh")]
    }
}
