//! `grouped_linear`: rows sorted by expert, each times its expert's packed weight.

use super::adjoint::{compare, exchange, iota, segments};
use super::pack::unpack;
use super::{
    elementwise::spread,
    linear::{activation, in_parts, infer_product, product},
};
use crate::{
    Attr, Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType, Value, Vjp, VjpCx,
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
    fn vjp(&self, attrs: &Attrs, args: &[Option<TensorType>]) -> Vjp {
        match attrs.str("act") {
            "none" => Vjp::Rule(grouped_rule),
            _ => in_parts(args, |b, attrs, args| {
                let plain = attrs.clone().with("act", "none");
                let y = b.op("grouped_linear", plain, args)?[0];
                let y = b.unary(attrs.str("act"), y)?;
                if attrs.str("act") != "sigmoid" {
                    return Ok(vec![y]);
                }
                // Rows of no expert are zero, which sigmoid is nowhere.
                let offsets = args[2].expect("operand");
                let tokens = b.ty(y).shape[0].clone();
                let (_, within) = segments(b, offsets, &tokens)?;
                let within = b.reshape(within, vec![tokens, Dim::from(1)])?;
                let zero = b.scalar(b.ty(y).dtype, 0.0)?;
                Ok(vec![b.select(within, y, zero)?])
            }),
        }
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
/// Cotangents of products by expert, without activation.
fn grouped_rule(cx: &mut VjpCx<'_, '_>) -> Result<Vec<Option<Value>>, OpError> {
    let ([x, w, offsets], dy) = ([0, 1, 2].map(|i| cx.arg(i)), cx.cotangent(0)?);
    let n = Dim::from(cx.attrs.int("n"));
    let [rows, width] = [0, 1].map(|i| cx.ty(0).shape[i].clone());
    let by_x = cx.when(0, |cx| {
        let width = width.as_const().ok_or_else(|| OpError::new("takes rows of constant width"))?;
        let w = unpack(cx.b, w, &n)?;
        let w = exchange(cx.b, w, 2, 1)?;
        let w = cx.b.op1("pack", Attrs::none(), &[w])?;
        cx.b.op1("grouped_linear", Attrs::none().with("n", width), &[dy, w, offsets])
    })?;
    if !cx.needs(1) && !cx.needs(3) {
        return Ok(vec![by_x]);
    }
    let experts = cx.ty(1).shape[0].clone();
    let grid = [experts.clone(), rows.clone()];
    let at = iota(cx.b, &grid, 1, DType::I32)?;
    let column = vec![experts.clone(), Dim::from(1)];
    let first = cx.b.slice(offsets, 0, 0i64, experts.clone())?;
    let first = cx.b.reshape(first, column.clone())?;
    let end = cx.b.slice(offsets, 0, 1i64, experts.clone() + Dim::from(1))?;
    let end = cx.b.reshape(end, column)?;
    let begun = compare(cx.b, "greater_equal", at, first)?;
    let open = compare(cx.b, "less", at, end)?;
    let own = compare(cx.b, "and", begun, open)?;
    let by_w = cx.when(1, |cx| {
        let own = cx.b.reshape(own, vec![experts, Dim::from(1), rows])?;
        let x = exchange(cx.b, x, 2, 1)?;
        let zero = cx.b.scalar(cx.b.ty(x).dtype, 0.0)?;
        let x = cx.b.select(own, x, zero)?;
        let dw = cx.b.matmul(x, dy)?;
        let dw = cx.b.cast(dw, cx.ty(1).dtype)?;
        cx.b.op1("pack", Attrs::none(), &[dw])
    })?;
    let by_bias = cx.when(3, |cx| {
        let own = cx.b.cast(own, cx.b.ty(dy).dtype)?;
        cx.b.matmul(own, dy)
    })?;
    Ok(vec![by_x, by_w, None, by_bias])
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
