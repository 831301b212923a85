//! `moe_combine`: what the experts of a token made of it, summed.

use super::adjoint::{add_rows, inside};
use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    Vjp,
    op::{one, same_dtype},
};

/// `out[t] = Σ_j weights[t, j] · y[slots[t, j]]`, from `j = 0` on; a slot outside the rows counts
/// nothing.
/// # Shapes
/// `y: [R, N]`, `slots: [T, k]` i32, `weights: [T, k]` → `[T, N]`, dtype of `y`.
pub(super) struct MoeCombine;

static SIGNATURE: Signature =
    Signature { operands: &[one("y"), one("slots"), one("weights")], attrs: &[] };

impl OpDef for MoeCombine {
    fn name(&self) -> &'static str {
        "moe_combine"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (y, slots, weights) = (cx.ty(0), cx.ty(1), cx.ty(2));
        same_dtype(y.dtype, weights.dtype)?;
        let ([_, n], [t, k], [t2, k2]) = (&*y.shape, &*slots.shape, &*weights.shape) else {
            let why = format!("takes [R, N], [T, k] and [T, k], got {y}, {slots} and {weights}");
            return Err(OpError::new(why));
        };
        if slots.dtype != DType::I32 || !y.dtype.is_float() {
            return Err(OpError::new(format!("takes floats and i32 slots, got {y} and {slots}")));
        }
        cx.same("tokens", t, t2)?;
        cx.same("experts of a token", k, k2)?;
        Ok(vec![Fact::of(TensorType::new(y.dtype, [t.clone(), n.clone()]))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let [y, slots, weights] = [0, 1, 2].map(|i| args[i].as_ref().expect("operand"));
            let [rows, n] = *y.shape() else { unreachable!("inferred") };
            let [tokens, k] = *slots.shape() else { unreachable!("inferred") };
            let (y, slots, weights) = (y.to_f64s(), slots.to_i64s(), weights.to_f64s());
            let mut out = vec![0.0; tokens * n];
            for (i, slot) in slots.iter().enumerate() {
                let Some(row) = usize::try_from(*slot).ok().filter(|r| *r < rows) else { continue };
                for c in 0..n {
                    out[i / k * n + c] += weights[i] * y[row * n + c];
                }
            }
            vec![Tensor::from_f64s(cx.results[0].dtype, &cx.shape(0), out)]
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], results: &[TensorType]) -> Dim {
        let k = args[1].as_ref().and_then(|a| a.shape.last().cloned()).unwrap_or_default();
        results[0].elements() * k * Dim::from(2)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (dy, slots) = (cx.cotangent(0)?, cx.arg(1));
            let [y, weights] = [cx.arg(0), cx.arg(2)];
            let [[rows, n], [t, k]] =
                [cx.ty(0), cx.ty(1)].map(|ty| [ty.shape[0].clone(), ty.shape[1].clone()]);
            let each = cx.b.reshape(dy, vec![t.clone(), Dim::from(1), n.clone()])?;
            let by_y = cx.when(0, |cx| {
                let column = vec![t.clone(), k.clone(), Dim::from(1)];
                let weights = cx.b.reshape(weights, column)?;
                let part = cx.b.mul(each, weights)?;
                let count = t.clone() * k.clone();
                let part = cx.b.reshape(part, vec![count.clone(), n.clone()])?;
                let slots = cx.b.reshape(slots, vec![count])?;
                add_rows(cx.b, part, slots, &rows)
            })?;
            let by_weights = cx.when(2, |cx| {
                let fits = inside(cx.b, slots, &rows)?;
                let picked = cx.b.gather(y, slots, 0)?;
                let dot = cx.b.mul(each, picked)?;
                let dot = cx.b.reduce("reduce_sum", dot, &[-1], false)?;
                let zero = cx.b.scalar(cx.b.ty(dot).dtype, 0.0)?;
                cx.b.select(fits, dot, zero)
            })?;
            Ok(vec![by_y, None, by_weights])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let slots = Tensor::from_i64s(DType::I32, &[5, 2], [3, 0, 9, -1, 4, 5, 10, 1, 2, 8]);
        let args = [spread(DType::F32, &[10, 37], -2.0, 2.0), slots];
        let weights = spread(DType::F32, &[5, 2], 0.0, 1.0);
        let args = args.into_iter().chain([weights]).map(Some).collect();
        vec![Sample { attrs: Attrs::none(), args }]
    }
}
