//! `linear_cross_entropy`: a language model's head and its loss in one.

use super::adjoint::{exchange, plus};
use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Dim, EvalCx, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType, Vjp, op::one,
};

/// Cross-entropy of `softmax(x · wᵀ)` at the target of every row, and the logarithm of the row's
/// sum of exponentials.
///
/// The logits are never in memory together: kernels take the vocabulary in chunks, with a running
/// sum. Liu et al. 2024, "Liger Kernel", arXiv:2410.10989; Milakov & Gimelshein 2018,
/// arXiv:1805.02867. A target that is no row of w, such as -100, is ignored: its loss is zero.
/// # Shapes
/// `x: [T, K]`, `w: [N, K]`, any floats, `targets: [T]` i32 → `loss: [T]` f32, `lse: [T]` f32.
pub(super) struct LinearCrossEntropy;

static SIGNATURE: Signature =
    Signature { operands: &[one("x"), one("w"), one("targets")], attrs: &[] };

impl OpDef for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let rows = infer_head(cx)?;
        Ok(vec![Fact::of(rows.clone()), Fact::of(rows)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let head = Head::of(args);
            let (mut loss, mut lse) = (Vec::new(), Vec::new());
            for t in 0..head.targets.len() {
                let logits = head.logits(t);
                let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = logits.iter().map(|s| (s - max).exp()).sum();
                lse.push(max + sum.ln());
                loss.push(head.target(t).map_or(0.0, |n| max + sum.ln() - logits[n]));
            }
            vec![of_rows(cx, 0, loss), of_rows(cx, 1, lse)]
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], _: &[TensorType]) -> Dim {
        products(args) * Dim::from(2)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let [x, w, targets, lse] = [cx.arg(0), cx.arg(1), cx.arg(2), cx.results[1]];
            let (mut dx, mut dw) = (None, None);
            if let Some(dloss) = cx.cotangents[0] {
                let args = [x, w, targets, lse, dloss].map(Some);
                let grads = cx.b.op("linear_cross_entropy_grad", Attrs::none(), &args)?;
                (dx, dw) = (Some(grads[0]), Some(grads[1]));
            }
            // By way of the logarithms, which losses seldom use, all logits are computed again.
            if let Some(dlse) = cx.cotangents[1] {
                let column = vec![cx.ty(0).shape[0].clone(), Dim::from(1)];
                let [lse, dlse] = [lse, dlse].map(|v| cx.b.reshape(v, column.clone()));
                let (lse, dlse) = (cx.b.cast(lse?, cx.ty(0).dtype)?, dlse?);
                let dlse = cx.b.cast(dlse, cx.ty(0).dtype)?;
                let w = cx.b.cast(w, cx.ty(0).dtype)?;
                let transposed = exchange(cx.b, w, 2, 1)?;
                let p = cx.b.matmul(x, transposed)?;
                let p = cx.b.sub(p, lse)?;
                let p = cx.b.exp(p)?;
                let p = cx.b.mul(p, dlse)?;
                let own = cx.when(0, |cx| cx.b.matmul(p, w))?;
                dx = plus(cx.b, dx, own)?;
                let own = cx.when(1, |cx| {
                    let p = exchange(cx.b, p, 2, 1)?;
                    let own = cx.b.matmul(p, x)?;
                    cx.b.cast(own, cx.ty(1).dtype)
                })?;
                dw = plus(cx.b, dw, own)?;
            }
            Ok(vec![dx, dw])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        examples()
    }
}

fn of_rows(cx: &EvalCx<'_>, i: usize, values: Vec<f64>) -> Tensor {
    Tensor::from_f64s(cx.results[i].dtype, &cx.shape(i), values)
}

/// Checks x, w and targets; returns the type of a number for each row of x.
pub(super) fn infer_head(cx: &InferCx<'_>) -> Result<TensorType, OpError> {
    let (x, w, targets) = (cx.ty(0), cx.ty(1), cx.ty(2));
    if !x.dtype.is_float() || !w.dtype.is_float() || targets.dtype != DType::I32 {
        return Err(OpError::new(format!("takes floats and i32 targets, got {x} and {targets}")));
    }
    let ([t, k], [_, k2], [t2]) = (&*x.shape, &*w.shape, &*targets.shape) else {
        let got = format!("takes [T, K], [N, K] and [T], got {x}, {w} and {targets}");
        return Err(OpError::new(got));
    };
    cx.same("inner dimension", k, k2)?;
    cx.same("rows of x and targets", t, t2)?;
    Ok(TensorType::new(DType::F32, [t.clone()]))
}

/// Multiply-adds of the logits.
pub(super) fn products(args: &[Option<TensorType>]) -> Dim {
    let [Some(x), Some(w), ..] = args else { return Dim::from(0) };
    x.elements() * w.shape[0].clone()
}

/// Operands as numbers.
pub(super) struct Head {
    pub(super) x: Vec<f64>,
    pub(super) w: Vec<f64>,
    pub(super) targets: Vec<i64>,
    pub(super) k: usize,
    pub(super) n: usize,
}

impl Head {
    pub(super) fn of(args: &[Option<Tensor>]) -> Head {
        let [x, w, targets] = [0, 1, 2].map(|i| args[i].as_ref().expect("operand"));
        let [n, k] = *w.shape() else { unreachable!("inferred") };
        Head { x: x.to_f64s(), w: w.to_f64s(), targets: targets.to_i64s(), k, n }
    }

    pub(super) fn logits(&self, t: usize) -> Vec<f64> {
        let x = &self.x[t * self.k..][..self.k];
        let dot = |n: usize| x.iter().zip(&self.w[n * self.k..]).map(|(a, b)| a * b).sum();
        (0..self.n).map(dot).collect()
    }

    /// The target of a row, unless it is ignored.
    pub(super) fn target(&self, t: usize) -> Option<usize> {
        usize::try_from(self.targets[t]).ok().filter(|n| *n < self.n)
    }
}

/// Sizes with tails, ignored targets, narrow floats.
pub(super) fn examples() -> Vec<Sample> {
    let sample = |dtypes: [DType; 2], k: usize, n: usize, targets: &[i64]| Sample {
        attrs: Attrs::none(),
        args: vec![
            Some(spread(dtypes[0], &[targets.len(), k], -1.0, 1.5)),
            Some(spread(dtypes[1], &[n, k], 1.0, -1.0)),
            Some(Tensor::from_i64s(DType::I32, &[targets.len()], targets.iter().copied())),
        ],
    };
    let f32s = [DType::F32; 2];
    vec![
        sample(f32s, 19, 37, &[3, 36, -100, 0, 37, 12, 3]),
        sample(f32s, 1, 130, &[129, 64]),
        sample(f32s, 16, 1, &[0, -1]),
        sample([DType::F32, DType::Bf16], 19, 37, &[3, -100, 36, 12]),
    ]
}
