//! `linear_cross_entropy_grad`.

use super::{
    elementwise::spread,
    linear_cross_entropy::{Head, examples, infer_head, products},
};
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    Vjp, op::one,
};

/// Gradient of [`LinearCrossEntropy`](super::linear_cross_entropy::LinearCrossEntropy)'s `loss` by
/// x and w.
///
/// Of a logit s with weight `p = exp(s - lse)` it is `(p - [n = target])·dloss`, zero where the
/// target is ignored. The logits are computed again, in chunks of the vocabulary. Liu et al. 2024,
/// "Liger Kernel", arXiv:2410.10989.
/// # Shapes
/// `x: [T, K]`, `w: [N, K]`, `targets: [T]` i32, `lse: [T]` f32, `dloss: [T]` f32 → `dx: [T, K]`,
/// `dw: [N, K]`.
pub(super) struct LinearCrossEntropyGrad;

static SIGNATURE: Signature = Signature {
    operands: &[one("x"), one("w"), one("targets"), one("lse"), one("dloss")],
    attrs: &[],
};

impl OpDef for LinearCrossEntropyGrad {
    fn name(&self) -> &'static str {
        "linear_cross_entropy_grad"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let rows = infer_head(cx)?;
        for (i, name) in [(3, "lse"), (4, "dloss")] {
            if cx.ty(i).equal(&rows, cx.symbols) != Some(true) {
                return Err(OpError::new(format!("{name} is {}, not {rows}", cx.ty(i))));
            }
        }
        Ok(vec![Fact::of(cx.ty(0).clone()), Fact::of(cx.ty(1).clone())])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let head = Head::of(args);
            let [lse, dloss] = [3, 4].map(|i| args[i].as_ref().expect("operand").to_f64s());
            let (mut dx, mut dw) = (vec![0.0; head.x.len()], vec![0.0; head.w.len()]);
            for t in 0..head.targets.len() {
                let Some(target) = head.target(t) else { continue };
                for (n, logit) in head.logits(t).into_iter().enumerate() {
                    let hit = if n == target { 1.0 } else { 0.0 };
                    let g = ((logit - lse[t]).exp() - hit) * dloss[t];
                    for i in 0..head.k {
                        dx[t * head.k + i] += g * head.w[n * head.k + i];
                        dw[n * head.k + i] += g * head.x[t * head.k + i];
                    }
                }
            }
            let results = [dx, dw].into_iter().enumerate();
            let tensor =
                |(i, v): (usize, Vec<f64>)| Tensor::from_f64s(cx.results[i].dtype, &cx.shape(i), v);
            results.map(tensor).collect()
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], _: &[TensorType]) -> Dim {
        // The logits once for either result.
        products(args) * Dim::from(8)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused("is a gradient itself, and has no second derivative")
    }
    fn samples(&self) -> Vec<Sample> {
        let with_rows = |mut sample: Sample| {
            let rows = sample.args[2].as_ref().map_or(0, Tensor::len);
            sample.args.push(Some(spread(DType::F32, &[rows], 3.0, 5.0)));
            sample.args.push(Some(spread(DType::F32, &[rows], -1.0, 2.0)));
            sample
        };
        examples().into_iter().map(with_rows).collect()
    }
}
