//! `moe_combine`: what the experts of a token made of it, summed.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
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
    fn samples(&self) -> Vec<Sample> {
        let slots = Tensor::from_i64s(DType::I32, &[5, 2], [3, 0, 9, -1, 4, 5, 10, 1, 2, 8]);
        let args = [spread(DType::F32, &[10, 37], -2.0, 2.0), slots];
        let weights = spread(DType::F32, &[5, 2], 0.0, 1.0);
        let args = args.into_iter().chain([weights]).map(Some).collect();
        vec![Sample { attrs: Attrs::none(), args }]
    }
}
