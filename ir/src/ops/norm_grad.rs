//! `norm_grad`: what the gradients of both norms have in common.

use super::elementwise::spread;
use crate::{
    Attr, Attrs, Body, Builder, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature,
    Tensor, TensorType, Value, Vjp,
    op::{AttrKind, defaulted, one, optional, required, same_dtype},
};

/// Rows whose weight gradients are summed into one row of partial sums.
pub const NORM_GRAD_ROWS: usize = 64;

/// Gradient of a norm over the last axis, by x, and partial sums of those by weight and bias.
///
/// With `n = (x - mean)·r`, `r = 1/sqrt(var + eps)` and `g = dy·weight`:
/// `dx = r·(g - mean(g) - n·mean(g·n))`, and of every [`NORM_GRAD_ROWS`] rows, in their order, the
/// sums of `dy·n` and of `dy`. Where not `centred`, both means of x and g are zero, `var` is
/// `mean(x²)`, and there are no sums of `dy`. Zhang & Sennrich 2019, arXiv:1910.07467; Ba et al.
/// 2016, arXiv:1607.06450.
///
/// A residual is another cotangent of x, which is added to dx. Where `rounded` is a narrower type,
/// there is dx in that type too. A row is read once for all results, and what is left to sum does
/// not depend on how rows are shared among threads.
/// # Shapes
/// `x: [R, H]`, `weight: [H]`, `dy: [R, H]`, `residual: [R, H]` → `dx: [R, H]`,
/// `dweights: [ceil(R / 64), H]` f32, where centred `dbiases` of the same type, and last, where
/// `rounded` is not f32, dx in that type.
pub(super) struct NormGrad;

static SIGNATURE: Signature = Signature {
    operands: &[one("x"), one("weight"), one("dy"), optional("residual")],
    attrs: &[
        required("eps", AttrKind::Float),
        defaulted("centred", AttrKind::Bool, || Attr::Bool(false)),
        defaulted("rounded", AttrKind::DType, || Attr::DType(DType::F32)),
    ],
};

impl OpDef for NormGrad {
    fn name(&self) -> &'static str {
        "norm_grad"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        infer_norm(cx)?;
        let x = cx.ty(0);
        let [rows, width] = &*x.shape else {
            return Err(OpError::new(format!("takes [R, H], got {x}")));
        };
        if let Some(residual) = cx.args.get(3).copied().flatten()
            && residual.ty.equal(x, cx.symbols) != Some(true)
        {
            return Err(OpError::new(format!("the residual is {}, not {x}", residual.ty)));
        }
        let blocks = rows.ceil_div(NORM_GRAD_ROWS as i64);
        let sums = Fact::of(TensorType::new(DType::F32, [blocks, width.clone()]));
        let mut facts = vec![Fact::of(x.clone()), sums.clone()];
        if cx.attrs.bool("centred") {
            facts.push(sums);
        }
        match cx.attrs.dtype("rounded") {
            DType::F32 => {}
            to if to.is_float() => facts.push(Fact::of(x.with_dtype(to))),
            to => return Err(OpError::new(format!("rounds to no {to}"))),
        }
        Ok(facts)
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let [x, w, dy] = [0, 1, 2].map(|i| args[i].as_ref().expect("operand"));
            let [rows, width] = *x.shape() else { unreachable!("inferred") };
            let (dtype, centred) = (x.dtype(), cx.attrs.bool("centred"));
            let (x, w, dy) = (x.to_f64s(), w.to_f64s(), dy.to_f64s());
            let residual = args.get(3).and_then(Option::as_ref).map(Tensor::to_f64s);
            let blocks = rows.div_ceil(NORM_GRAD_ROWS);
            let mut dx = Vec::with_capacity(rows * width);
            let mut sums = [0, 1].map(|_| vec![0.0; blocks * width]);
            for row in 0..rows {
                let [x, dy] = [&x, &dy].map(|t| &t[row * width..][..width]);
                let mean =
                    |of: &dyn Fn(usize) -> f64| (0..width).map(of).sum::<f64>() / width as f64;
                let shift = if centred { mean(&|i| x[i]) } else { 0.0 };
                let r = 1.0 / (mean(&|i| (x[i] - shift).powi(2)) + cx.attrs.float("eps")).sqrt();
                let n = |i: usize| (x[i] - shift) * r;
                let g = |i: usize| dy[i] * w[i];
                let level = if centred { mean(&g) } else { 0.0 };
                let slope = mean(&|i| g(i) * n(i));
                let other = |i: usize| residual.as_ref().map_or(0.0, |r| r[row * width + i]);
                dx.extend((0..width).map(|i| r * (g(i) - level - n(i) * slope) + other(i)));
                let first = row / NORM_GRAD_ROWS * width;
                for (i, dy) in dy.iter().enumerate() {
                    sums[0][first + i] += dy * n(i);
                    sums[1][first + i] += dy;
                }
            }
            let of_x = |dtype| Tensor::from_f64s(dtype, &cx.shape(0), dx.iter().copied());
            let mut out = vec![of_x(dtype)];
            let count = 1 + usize::from(centred);
            for (sums, ty) in sums.into_iter().take(count).zip(&cx.results[1..]) {
                out.push(Tensor::from_f64s(ty.dtype, &cx.shape(1), sums));
            }
            if let Some(rounded) = cx.results.get(1 + count) {
                out.push(of_x(rounded.dtype));
            }
            out
        })
    }
    fn flops(&self, _: &Attrs, _: &[Option<TensorType>], results: &[TensorType]) -> Dim {
        results[0].elements() * Dim::from(12i64)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused("is a gradient itself, and has no second derivative")
    }
    fn samples(&self) -> Vec<Sample> {
        let samples = [(false, 3, 37), (true, 131, 20), (false, 64, 16), (true, 1, 5)];
        let sample = |(centred, rows, width): (bool, usize, usize)| Sample {
            attrs: Attrs::none().with("eps", 1e-5).with("centred", centred),
            ..example(rows, width)
        };
        let with_residual = |(centred, rounded): (bool, DType)| {
            let mut sample = sample((centred, 70, 8));
            sample.attrs = sample.attrs.with("rounded", rounded);
            sample.args.push(Some(spread(DType::F32, &[70, 8], -1.0, 3.0)));
            sample
        };
        let others = [(false, DType::F32), (true, DType::Bf16), (false, DType::F16)];
        samples.into_iter().map(sample).chain(others.map(with_residual)).collect()
    }
}

/// Checks x, weight and dy of a norm's gradient.
pub(super) fn infer_norm(cx: &InferCx<'_>) -> Result<(), OpError> {
    let (x, w, dy) = (cx.ty(0), cx.ty(1), cx.ty(2));
    same_dtype(x.dtype, w.dtype)?;
    if !x.dtype.is_float() {
        return Err(OpError::new(format!("takes floats, got {x}")));
    }
    if dy.equal(x, cx.symbols) != Some(true) {
        return Err(OpError::new(format!("dy is {dy}, not {x}")));
    }
    match (x.shape.last(), w.shape.as_slice()) {
        (Some(h), [n]) => cx.same("weight", h, n),
        _ => Err(OpError::new(format!("takes [.., H] and [H], got {x} and {w}"))),
    }
}

/// The gradients of a norm: by x, by weight and, where `centred`, by bias.
pub(super) fn expand_norm(
    b: &mut Builder<'_>,
    attrs: &Attrs,
    args: &[Option<Value>],
    centred: bool,
) -> Result<Vec<Value>, OpError> {
    let [x, w, dy] = [0, 1, 2].map(|i| args[i].expect("operand"));
    let (ty, dtype) = (b.ty(x).clone(), b.ty(w).dtype);
    let (width, lead) = ty.shape.split_last().expect("inferred");
    let rows = lead.iter().fold(Dim::from(1), |n, d| n * d.clone());
    let flat = vec![rows, width.clone()];
    let x = b.reshape(x, flat.clone())?;
    let dy = b.reshape(dy, flat)?;
    let attrs = Attrs::none().with("eps", attrs.float("eps")).with("centred", centred);
    let parts = b.op("norm_grad", attrs, &[Some(x), Some(w), Some(dy)])?;
    let mut out = vec![b.reshape(parts[0], ty.shape.to_vec())?];
    for sums in &parts[1..] {
        let sum = b.reduce("reduce_sum", *sums, &[0], false)?;
        out.push(b.cast(sum, dtype)?);
    }
    Ok(out)
}

/// The operands of a norm's gradient, without attributes.
pub(super) fn example(rows: usize, width: usize) -> Sample {
    let x = spread(DType::F32, &[rows, width], -2.0, 2.0);
    let w = spread(DType::F32, &[width], 0.5, 2.0);
    let dy = spread(DType::F32, &[rows, width], 1.0, -1.5);
    Sample { attrs: Attrs::none(), args: vec![Some(x), Some(w), Some(dy)] }
}
