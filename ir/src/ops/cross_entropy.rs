//! `cross_entropy`.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    Vjp,
    op::{one, optional},
};

/// Cross-entropy of `softmax(logits)` at the target of every row and, for a `dloss` that is known
/// before the loss, its gradient by the logits.
///
/// With `p = softmax(logits)` the gradient is `(p - [n = target])·dloss`. A target that is no
/// column, such as -100, is ignored: its loss is zero, and so is its gradient.
/// # Shapes
/// `logits: [T, N]` f32 or f64, `targets: [T]` i32, `dloss: [T]` → `loss: [T]` and, where there is
/// a dloss, `dlogits: [T, N]`, all of the logits' type.
pub(super) struct CrossEntropy;

static SIGNATURE: Signature =
    Signature { operands: &[one("logits"), one("targets"), optional("dloss")], attrs: &[] };

impl OpDef for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (logits, targets) = (cx.ty(0), cx.ty(1));
        let is_wide = matches!(logits.dtype, DType::F32 | DType::F64);
        if !is_wide || targets.dtype != DType::I32 {
            let got = format!("takes f32 or f64 and i32 targets, got {logits} and {targets}");
            return Err(OpError::new(got));
        }
        let ([rows, _], [count]) = (&*logits.shape, &*targets.shape) else {
            let got = format!("takes [T, N] and [T], got {logits} and {targets}");
            return Err(OpError::new(got));
        };
        cx.same("rows of logits and targets", rows, count)?;
        let of_rows = TensorType::new(logits.dtype, [rows.clone()]);
        let mut facts = vec![Fact::of(of_rows.clone())];
        if let Some(dloss) = cx.args.get(2).copied().flatten() {
            let dloss = &dloss.ty;
            if dloss.equal(&of_rows, cx.symbols) != Some(true) {
                return Err(OpError::new(format!("dloss is {dloss}, not {of_rows}")));
            }
            facts.push(Fact::of(logits.clone()));
        }
        Ok(facts)
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let [logits, targets] = [0, 1].map(|i| args[i].as_ref().expect("operand"));
            let width = logits.shape()[1];
            let (logits, targets) = (logits.to_f64s(), targets.to_i64s());
            let dloss = args.get(2).and_then(Option::as_ref).map(Tensor::to_f64s);
            let (mut loss, mut dlogits) = (Vec::new(), Vec::new());
            for (t, target) in targets.into_iter().enumerate() {
                let row = &logits[t * width..][..width];
                let target = usize::try_from(target).ok().filter(|n| *n < width);
                let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let lse = max + row.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
                loss.push(target.map_or(0.0, |n| lse - row[n]));
                let Some(dloss) = dloss.as_ref().map(|dloss| dloss[t]) else { continue };
                dlogits.extend(row.iter().enumerate().map(|(n, s)| match target {
                    Some(target) if n == target => ((s - lse).exp() - 1.0) * dloss,
                    Some(_) => (s - lse).exp() * dloss,
                    None => 0.0,
                }));
            }
            let values = [loss, dlogits].into_iter().zip(cx.results).enumerate();
            let tensor = |(i, (values, ty)): (usize, (Vec<f64>, &TensorType))| {
                Tensor::from_f64s(ty.dtype, &cx.shape(i), values)
            };
            values.map(tensor).collect()
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], results: &[TensorType]) -> Dim {
        let logits = args[0].as_ref().map_or(Dim::from(0), TensorType::elements);
        logits * Dim::from(if results.len() > 1 { 40i64 } else { 20 })
    }
    fn vjp(&self, _: &Attrs, args: &[Option<TensorType>]) -> Vjp {
        if args.get(2).is_some_and(Option::is_some) {
            return Vjp::Refused("with a dloss is a gradient itself, and has no second derivative");
        }
        Vjp::Rule(|cx| {
            let args = [cx.arg(0), cx.arg(1), cx.cotangent(0)?].map(Some);
            let dlogits = cx.b.op("cross_entropy", Attrs::none(), &args)?[1];
            Ok(vec![Some(dlogits)])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let sample = |width: usize, targets: &[i64], with_dloss: bool| {
            let rows = targets.len();
            let logits = spread(DType::F32, &[rows, width], -6.0, 4.0);
            let targets = Tensor::from_i64s(DType::I32, &[rows], targets.iter().copied());
            let dloss = with_dloss.then(|| spread(DType::F32, &[rows], -1.0, 2.0));
            Sample { attrs: Attrs::none(), args: vec![Some(logits), Some(targets), dloss] }
        };
        vec![
            sample(37, &[3, 36, -100, 0, 37, 12, 3], false),
            sample(37, &[3, 36, -100, 0, 37, 12, 3], true),
            sample(130, &[129, 64], true),
            sample(1, &[0, -1], true),
            sample(4, &[2], false),
        ]
    }
}
