//! `grouped_linear`: rows sorted by expert, each times its expert's packed weight.

use super::{
    elementwise::spread,
    linear::{activation, infer_product, product},
};
use crate::{
    Attr, Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType,
    op::{AttrKind, defaulted, one, optional, required, same_dtype},
};

/// `act(x · w[e] + bias[e])` for the rows `offsets[e]..offsets[e + 1]` of each expert `e`; zero for
/// rows before the first and behind the last offset. Offsets do not fall.
///
/// A row is what `linear` with the weight of its expert makes of it, bit for bit, whatever rows
/// share the launch. Gale et al. 2022, arXiv:2211.15841.
/// # Shapes
/// `x: [R, K]`, `w: [E, ceil(n / 16), K, 16]`, `offsets: [E + 1]` i32, `bias: [E, n]` → `[R, n]`,
/// dtype of `x`.
pub(super) struct GroupedLinear;

static SIGNATURE: Signature = Signature {
    operands: &[one("x"), one("w"), one("offsets"), optional("bias")],
    attrs: &[required("n", AttrKind::Int), defaulted("act", AttrKind::Str, || Attr::from("none"))],
};

impl OpDef for GroupedLinear {
    fn name(&self) -> &'static str {
        "grouped_linear"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let ty = infer_grouped(cx, 1)?;
        if let Some(bias) = cx.args.get(3).copied().flatten() {
            same_dtype(ty.dtype, bias.ty.dtype)?;
            let [e, n] = &*bias.ty.shape else {
                return Err(OpError::new(format!("bias is {}", bias.ty)));
            };
            cx.same("experts of the bias", e, &cx.ty(1).shape[0])?;
            cx.same("bias", n, &ty.shape[1])?;
        }
        Ok(vec![Fact::of(ty)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let n = usize::try_from(cx.attrs.int("n")).expect("inferred");
            let act = activation(cx.attrs.str("act")).expect("inferred");
            let bias = args.get(3).and_then(Option::as_ref).map(Tensor::to_f64s);
            let y = by_expert(args, n, |e, x, w| {
                let y = product(x, w, n).into_iter().enumerate();
                y.map(|(i, y)| act(y + bias.as_ref().map_or(0.0, |b| b[e * n + i % n]))).collect()
            });
            vec![Tensor::from_f64s(cx.results[0].dtype, &cx.shape(0), y)]
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], results: &[TensorType]) -> Dim {
        let k = args[0].as_ref().and_then(|a| a.shape.last().cloned()).unwrap_or_default();
        results[0].elements() * k * Dim::from(2i64)
    }
    fn samples(&self) -> Vec<Sample> {
        let make = |dtype: DType, offsets: [i64; 4], act: &str, bias: bool| Sample {
            attrs: Attrs::none().with("n", 37i64).with("act", act),
            args: vec![
                Some(spread(DType::F32, &[11, 19], -1.0, 1.0)),
                Some(spread(dtype, &[3, 3, 19, 16], -0.5, 0.5)),
                Some(Tensor::from_i64s(DType::I32, &[4], offsets)),
                bias.then(|| spread(DType::F32, &[3, 37], -1.0, 1.0)),
            ],
        };
        vec![
            make(DType::F32, [0, 3, 3, 11], "none", true),
            make(DType::Bf16, [0, 1, 7, 9], "silu", false),
            make(DType::F16, [2, 2, 2, 2], "none", true),
        ]
    }
}

/// Checks weight and offsets; returns the type of the product.
pub(super) fn infer_grouped(
    cx: &InferCx<'_>,
    panels_per_column: i64,
) -> Result<TensorType, OpError> {
    let (x, w, offsets) = (cx.ty(0), cx.ty(1), cx.ty(2));
    let ([_, _], [experts, rest @ ..]) = (&*x.shape, &*w.shape) else {
        return Err(OpError::new(format!("takes [R, K] and packed weights, got {x} and {w}")));
    };
    let ([bounds], DType::I32) = (&*offsets.shape, offsets.dtype) else {
        return Err(OpError::new(format!("offsets are {offsets}, not i32 [E + 1]")));
    };
    cx.same("offsets", bounds, &(experts.clone() + Dim::from(1)))?;
    let one = Fact::of(TensorType::new(w.dtype, rest.iter().cloned()));
    let args = [Some(cx.arg(0)), Some(&one)];
    infer_product(&InferCx { args: &args, ..*cx }, panels_per_column)
}

/// `value(expert, rows of x, its weight)` for every expert's rows, zero for the others.
pub(super) fn by_expert(
    args: &[Option<Tensor>],
    n: usize,
    value: impl Fn(usize, &Tensor, &Tensor) -> Vec<f64>,
) -> Vec<f64> {
    let [x, w, offsets] = [0, 1, 2].map(|i| args[i].as_ref().expect("operand"));
    let rows = x.shape()[0];
    let mut y = vec![0.0; rows * n];
    let clamp = |v: i64| usize::try_from(v).unwrap_or(0).min(rows);
    for (e, bounds) in offsets.to_i64s().windows(2).enumerate() {
        let (first, end) = (clamp(bounds[0]), clamp(bounds[1]));
        if first < end {
            let w = w.slice(0, e, 1, 1).reshape(&w.shape()[1..]);
            let part = value(e, &x.slice(0, first, end - first, 1), &w);
            y[first * n..end * n].copy_from_slice(&part);
        }
    }
    y
}
