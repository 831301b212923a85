//! `linear`: product with a packed weight, and what may follow it.

use super::adjoint::exchange;
use super::elementwise::spread;
use super::matmul::rows;
use super::pack::unpack;
use crate::{
    Attr, Attrs, Body, DType, Dim, Expand, Fact, InferCx, OpDef, OpError, Sample, Signature,
    Tensor, TensorType, Vjp,
    op::{AttrKind, defaulted, one, optional, required, same_dtype},
};

/// `act(x · w + bias) + residual`, the weight packed, of any float type, read at its own precision.
///
/// Every output sums its products from `k = 0` on, one fused multiply-add each, whatever the number
/// of rows.
/// # Shapes
/// `x: [.., K]`, `w: [ceil(n / 16), K, 16]`, `bias: [n]`, `residual: [.., n]` → `[.., n]`, dtype of
/// `x`.
pub(super) struct Linear;

static SIGNATURE: Signature = Signature {
    operands: &[one("x"), one("w"), optional("bias"), optional("residual")],
    attrs: &[required("n", AttrKind::Int), defaulted("act", AttrKind::Str, || Attr::from("none"))],
};

/// Checks the operands `bias` and `residual` of a product of type `ty`, the third and the fourth.
///
/// # Errors
/// [`OpError`] where one is of another type or shape.
pub(super) fn check_added(cx: &InferCx<'_>, ty: &TensorType) -> Result<(), OpError> {
    let optional = |i: usize| cx.args.get(i).copied().flatten();
    if let Some(bias) = optional(2) {
        same_dtype(ty.dtype, bias.ty.dtype)?;
        match &*bias.ty.shape {
            [n] => cx.same("bias", n, &ty.shape[ty.rank() - 1])?,
            _ => return Err(OpError::new(format!("bias is {}", bias.ty))),
        }
    }
    if let Some(residual) = optional(3)
        && residual.ty.equal(ty, cx.symbols) != Some(true)
    {
        return Err(OpError::new(format!("residual is {}, not {ty}", residual.ty)));
    }
    Ok(())
}

impl OpDef for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn is_rowwise(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let ty = infer_product(cx, 1)?;
        check_added(cx, &ty)?;
        Ok(vec![Fact::of(ty)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let [x, w] = [0, 1].map(|i| args[i].as_ref().expect("operand"));
            let n = usize::try_from(cx.attrs.int("n")).expect("inferred");
            let optional = |i: usize| args.get(i).and_then(Option::as_ref).map(Tensor::to_f64s);
            let (bias, residual) = (optional(2), optional(3));
            let act = activation(cx.attrs.str("act")).expect("inferred");
            let y = product(x, w, n).into_iter().enumerate().map(|(i, y)| {
                let y = act(y + bias.as_ref().map_or(0.0, |b| b[i % n]));
                y + residual.as_ref().map_or(0.0, |r| r[i])
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
            "none" => Vjp::Rule(|cx| {
                let ([x, w], ty) = ([0, 1].map(|i| cx.arg(i)), cx.ty(0));
                let dy = cx.cotangent(0)?;
                let n = Dim::from(cx.attrs.int("n"));
                let by_x = cx.when(0, |cx| {
                    let w = unpack(cx.b, w, &n)?;
                    let dy = rows(cx.b, dy)?;
                    let dx = match ty.shape.last().and_then(Dim::as_const) {
                        // A frozen weight is packed once, and read at its own precision.
                        Some(k) if !cx.needs(1) => {
                            let w = exchange(cx.b, w, 2, 1)?;
                            let w = cx.b.op1("pack", Attrs::none(), &[w])?;
                            cx.b.op1("linear", Attrs::none().with("n", k), &[dy, w])?
                        }
                        _ => {
                            let w = cx.b.cast(w, ty.dtype)?;
                            let w = exchange(cx.b, w, 2, 1)?;
                            cx.b.matmul(dy, w)?
                        }
                    };
                    cx.b.reshape(dx, ty.shape.to_vec())
                })?;
                let by_w = cx.when(1, |cx| {
                    let x = rows(cx.b, x)?;
                    let x = exchange(cx.b, x, 2, 1)?;
                    let dy = rows(cx.b, dy)?;
                    let dw = cx.b.matmul(x, dy)?;
                    let dw = cx.b.cast(dw, cx.ty(1).dtype)?;
                    cx.b.op1("pack", Attrs::none(), &[dw])
                })?;
                Ok(vec![by_x, by_w, Some(dy), Some(dy)])
            }),
            _ => in_parts(args, |b, attrs, args| {
                let plain = attrs.clone().with("act", "none");
                let bias = args.get(2).copied().flatten();
                let y = b.op("linear", plain, &[args[0], args[1], bias])?[0];
                let y = b.unary(attrs.str("act"), y)?;
                Ok(vec![match args.get(3).copied().flatten() {
                    Some(residual) => b.add(y, residual)?,
                    None => y,
                }])
            }),
        }
    }
    fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        for rows in [1, 3, 7, 20] {
            for (dtype, act) in [(DType::F32, "none"), (DType::Bf16, "silu"), (DType::F16, "gelu")]
            {
                let w = |p: usize| Some(spread(dtype, &[p, 19, 16], -0.5, 0.5));
                let f = |s: &[usize]| Some(spread(DType::F32, s, -1.0, 1.0));
                let attrs = Attrs::none().with("n", 37i64).with("act", act);
                let mut args = vec![f(&[rows, 19]), w(3)];
                if act != "none" {
                    args.extend([f(&[37]), f(&[rows, 37])]);
                }
                samples.push(Sample { attrs, args });
            }
        }
        samples
    }
}

/// Activations that an epilogue computes.
pub(super) fn activation(name: &str) -> Option<fn(f64) -> f64> {
    use std::f64::consts::{FRAC_1_SQRT_2, PI};
    Some(match name {
        "none" => |x| x,
        "relu" => |x| if x.is_nan() { x } else { x.max(0.0) },
        "tanh" => f64::tanh,
        "sigmoid" => |x| 1.0 / (1.0 + (-x).exp()),
        "silu" => |x| x / (1.0 + (-x).exp()),
        "gelu" => |x| x * 0.5 * (1.0 + super::erf::erf(x * FRAC_1_SQRT_2)),
        "gelu_tanh" => {
            |x| x * 0.5 * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        _ => return None,
    })
}

/// The derivative of a product and what follows it by those of its parts, whose results can be kept
/// where no sum is rounded before it is activated: in f32, in which kernels add, and f64.
pub(super) fn in_parts(args: &[Option<TensorType>], parts: Expand) -> Vjp {
    match args {
        [Some(x), ..] if matches!(x.dtype, DType::F32 | DType::F64) => Vjp::Replaced(parts),
        _ => Vjp::Recomputed(parts),
    }
}

/// `x · w` for packed `w`, `[rows, n]` in row-major order.
pub(super) fn product(x: &Tensor, w: &Tensor, n: usize) -> Vec<f64> {
    let [_, k, panel] = *w.shape() else { unreachable!("inferred") };
    let rows = x.len() / k.max(1);
    let (x, w) = (x.to_f64s(), w.to_f64s());
    let mut out = Vec::with_capacity(rows * n);
    for r in 0..rows {
        for c in 0..n {
            let column = |j: usize| w[((c / panel) * k + j) * panel + c % panel];
            out.push((0..k).map(|j| x[r * k + j] * column(j)).sum::<f64>());
        }
    }
    out
}

/// Checks activation, sizes and packing; returns the type of the product.
pub(super) fn infer_product(
    cx: &InferCx<'_>,
    panels_per_column: i64,
) -> Result<TensorType, OpError> {
    let (x, w) = (cx.ty(0), cx.ty(1));
    if activation(cx.attrs.str("act")).is_none() {
        return Err(OpError::attr("act", "is not an activation that an epilogue computes"));
    }
    let ([lead @ .., k], [panels, k2, width]) = (&*x.shape, &*w.shape) else {
        return Err(OpError::new(format!("takes [.., K] and a packed weight, got {x} and {w}")));
    };
    cx.same("inner dimension", k, k2)?;
    cx.same("panel width", width, &Dim::from(super::pack::PANEL))?;
    let n = Dim::from(cx.attrs.int("n"));
    if cx.attrs.int("n") < 1 {
        return Err(OpError::attr("n", format_args!("is {n}, not a number of columns")));
    }
    let need = n.ceil_div(super::pack::PANEL as i64) * Dim::from(panels_per_column);
    cx.same("panels", panels, &need)?;
    Ok(TensorType::new(x.dtype, lead.iter().cloned().chain([n])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Module;

    #[test]
    fn every_activation_keeps_nan() {
        for act in ["none", "relu", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh"] {
            assert!(activation(act).unwrap()(f64::NAN).is_nan(), "{act}");
        }
    }

    #[test]
    fn a_product_without_columns_is_refused() {
        let module = Module::new("m");
        let mut b = module.builder("f");
        let x = b.param("x", TensorType::new(DType::F32, [2i64, 4])).unwrap();
        let w = b.param("w", TensorType::new(DType::F32, [0i64, 4, 16])).unwrap();
        let why = b.op1("linear", Attrs::none().with("n", -5i64), &[x, w]).unwrap_err();
        assert_eq!(why.to_string(), "linear: attribute `n` is -5, not a number of columns");
    }
}
