//! `matmul`.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OnnxName, OpDef, OpError, Sample, Signature, Tensor,
    TensorType,
    op::{one, onnx, same_dtype},
};

/// Matrix product over the last two axes: `[.., M, K] · [.., K, N] -> [.., M, N]`.
///
/// Leading axes broadcast. Operands have one element type, which is the result's; products and sums
/// are taken at that precision or better.
pub(super) struct Matmul;

static SIGNATURE: Signature = Signature { operands: &[one("a"), one("b")], attrs: &[] };

impl OpDef for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn onnx(&self) -> &'static [OnnxName] {
        const { &[onnx("MatMul")] }
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (a, b) = (cx.ty(0), cx.ty(1));
        let dtype = same_dtype(a.dtype, b.dtype)?;
        let ([la @ .., m, k], [lb @ .., k2, n]) = (a.shape.as_slice(), b.shape.as_slice()) else {
            return Err(OpError::new(format!("takes matrices, got {a} and {b}")));
        };
        cx.same("inner dimension", k, k2)?;
        let mut shape = cx.broadcast(la, lb)?;
        shape.extend([m.clone(), n.clone()]);
        Ok(vec![Fact::of(TensorType::new(dtype, shape))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let [a, b] = [0, 1].map(|i| args[i].as_ref().expect("operand"));
            let shape = cx.shape(0);
            let [lead @ .., m, n] = shape.as_slice() else { unreachable!("inferred") };
            let k = a.shape()[a.rank() - 1];
            let full = |t: &Tensor, r: usize, c: usize| {
                let shape: Vec<usize> = lead.iter().copied().chain([r, c]).collect();
                t.broadcast_to(&shape).to_f64s()
            };
            let (x, y) = (full(a, *m, k), full(b, k, *n));
            let batch: usize = lead.iter().product();
            let mut out = Vec::with_capacity(batch * m * n);
            for i in 0..batch {
                for r in 0..*m {
                    for c in 0..*n {
                        let term = |j| x[(i * m + r) * k + j] * y[(i * k + j) * n + c];
                        out.push((0..k).map(term).sum::<f64>());
                    }
                }
            }
            vec![Tensor::from_f64s(cx.results[0].dtype, &shape, out)]
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], results: &[TensorType]) -> Dim {
        let k = args[0].as_ref().and_then(|a| a.shape.last().cloned()).unwrap_or_default();
        results[0].elements() * k * Dim::from(2i64)
    }
    fn samples(&self) -> Vec<Sample> {
        let make = |a: &[usize], b: &[usize]| Sample {
            attrs: Attrs::none(),
            args: vec![
                Some(spread(DType::F32, a, -1.0, 1.0)),
                Some(spread(DType::F32, b, 1.0, -1.0)),
            ],
        };
        vec![make(&[5, 7], &[7, 18]), make(&[2, 1, 3, 4], &[3, 4, 5]), make(&[1, 9], &[9, 33])]
    }
}
