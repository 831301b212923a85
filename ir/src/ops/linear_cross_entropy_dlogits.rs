//! `linear_cross_entropy_dlogits`.

use super::{
    elementwise::spread,
    linear_cross_entropy::{Head, examples, infer_head, products},
};
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    Vjp, op::one,
};

/// The `loss` of [`LinearCrossEntropy`](super::linear_cross_entropy::LinearCrossEntropy), bit for
/// bit, and its gradient by the logits, for a `dloss` that is known before the loss.
///
/// Of a logit s with weight `p = exp(s - lse)` it is `(p - [n = target])·dloss`, zero where the
/// target is ignored. Logits are computed once, where the gradient by x and w alone has to compute
/// them again. Liu et al. 2024, "Liger Kernel", arXiv:2410.10989.
/// # Shapes
/// `x: [T, K]`, `w: [N, K]`, any floats, `targets: [T]` i32, `dloss: [T]` f32 → `loss: [T]` f32,
/// `dlogits: [T, N]` f32.
pub(super) struct LinearCrossEntropyDlogits;

static SIGNATURE: Signature =
    Signature { operands: &[one("x"), one("w"), one("targets"), one("dloss")], attrs: &[] };

impl OpDef for LinearCrossEntropyDlogits {
    fn name(&self) -> &'static str {
        "linear_cross_entropy_dlogits"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let rows = infer_head(cx)?;
        if cx.ty(3).equal(&rows, cx.symbols) != Some(true) {
            return Err(OpError::new(format!("dloss is {}, not {rows}", cx.ty(3))));
        }
        let logits = [rows.shape[0].clone(), cx.ty(1).shape[0].clone()];
        Ok(vec![Fact::of(rows), Fact::of(TensorType::new(DType::F32, logits))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let head = Head::of(args);
            let dloss = args[3].as_ref().expect("operand").to_f64s();
            let (mut loss, mut dlogits) = (Vec::new(), Vec::new());
            for (t, dloss) in dloss.into_iter().enumerate() {
                let logits = head.logits(t);
                let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let lse = max + logits.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
                let target = head.target(t);
                loss.push(target.map_or(0.0, |n| lse - logits[n]));
                dlogits.extend(logits.iter().enumerate().map(|(n, s)| match target {
                    Some(target) if n == target => ((s - lse).exp() - 1.0) * dloss,
                    Some(_) => (s - lse).exp() * dloss,
                    None => 0.0,
                }));
            }
            let tensor =
                |i: usize, values| Tensor::from_f64s(cx.results[i].dtype, &cx.shape(i), values);
            vec![tensor(0, loss), tensor(1, dlogits)]
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], _: &[TensorType]) -> Dim {
        products(args) * Dim::from(2)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused("is a gradient itself, and has no second derivative")
    }
    fn samples(&self) -> Vec<Sample> {
        let with_dloss = |mut sample: Sample| {
            let rows = sample.args[2].as_ref().map_or(0, Tensor::len);
            sample.args.push(Some(spread(DType::F32, &[rows], -1.0, 2.0)));
            sample
        };
        examples().into_iter().map(with_dloss).collect()
    }
}
