//! `matmul`.

use super::adjoint::exchange;
use super::elementwise::spread;
use crate::{
    Attrs, Body, Builder, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType, Value, Vjp,
    op::{one, same_dtype},
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
                t.broadcast_to(&shape)
            };
            let (x, y) = (full(a, *m, k), full(b, k, *n));
            let batch: usize = lead.iter().product();
            let sizes = [batch, *m, k, *n];
            let dtype = cx.results[0].dtype;
            vec![if dtype.is_float() {
                let sums = products(sizes, &x.to_f64s(), &y.to_f64s(), 0.0, |s, a, b| s + a * b);
                Tensor::from_f64s(dtype, &shape, sums)
            } else {
                let fold = |s: i64, a: i64, b| s.wrapping_add(a.wrapping_mul(b));
                let sums = products(sizes, &x.to_i64s(), &y.to_i64s(), 0, fold);
                Tensor::from_i64s(dtype, &shape, sums)
            }]
        })
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], results: &[TensorType]) -> Dim {
        let k = args[0].as_ref().and_then(|a| a.shape.last().cloned()).unwrap_or_default();
        results[0].elements() * k * Dim::from(2i64)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (dy, [a, b]) = (cx.cotangent(0)?, [cx.arg(0), cx.arg(1)]);
            let by_a = cx.when(0, |cx| {
                let b = exchange(cx.b, b, 2, 1)?;
                cx.b.matmul(dy, b)
            })?;
            let by_b = cx.when(1, |cx| {
                let (mut a, mut dy) = (a, dy);
                // Rows of all batches meet one matrix in one sum.
                if cx.ty(1).rank() == 2 {
                    [a, dy] = [rows(cx.b, a)?, rows(cx.b, dy)?];
                }
                let a = exchange(cx.b, a, 2, 1)?;
                cx.b.matmul(a, dy)
            })?;
            Ok(vec![by_a, by_b])
        })
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
/// `[.., N]` as `[R, N]`.
pub(super) fn rows(b: &mut Builder<'_>, x: Value) -> Result<Value, OpError> {
    let ty = b.ty(x);
    let Some((width, lead)) = ty.shape.split_last().filter(|(_, lead)| lead.len() != 1) else {
        return Ok(x);
    };
    let count = lead.iter().fold(Dim::from(1), |n, d| n * d.clone());
    let shape = vec![count, width.clone()];
    b.reshape(x, shape)
}

/// `[batch, M, K] · [batch, K, N]` in row-major order, each sum from `k = 0` on.
fn products<T: Copy>(
    [batch, m, k, n]: [usize; 4],
    x: &[T],
    y: &[T],
    zero: T,
    fold: fn(T, T, T) -> T,
) -> Vec<T> {
    let mut out = Vec::with_capacity(batch * m * n);
    for i in 0..batch {
        for r in 0..m {
            for c in 0..n {
                let add = |s, j| fold(s, x[(i * m + r) * k + j], y[(i * k + j) * n + c]);
                out.push((0..k).fold(zero, add));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use crate::{DType, Env, Interpreter, Module, Precision, Tensor, TensorType};

    #[test]
    fn integers_are_multiplied_as_integers() {
        let module = Module::new("m");
        let mut b = module.builder("f");
        let [x, y] =
            ["x", "y"].map(|n| b.param(n, TensorType::new(DType::I64, [1i64, 1])).unwrap());
        let z = b.matmul(x, y).unwrap();
        b.output("z", z);
        let graph = b.finish();
        let none = indexmap::IndexMap::new();
        let odd = (1i64 << 53) + 1;
        let args = [odd, 3].map(|v| Tensor::from_i64s(DType::I64, &[1, 1], [v]));
        let run = Interpreter::new(&module, &none, Precision::F32);
        assert_eq!(run.eval(&graph, &args, &Env::new()).unwrap()[0].to_i64s(), [3 * odd]);
    }
}
