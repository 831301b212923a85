//! `dropout`: a share of the elements becomes zero, by chance.

use super::elementwise::spread;
use crate::{
    Attrs, Body, Builder, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType, Value, Vjp,
    op::{AttrKind, one, required},
};

/// Zero for a share `p` of the elements of `x`, and `x / (1 - p)` for the others, so that means
/// stay.
///
/// Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting". The
/// element of number `i`, in row-major order, goes where number `i` of
/// `splitmix64` from `seed` on, as a signed integer, is below the `p`-quantile
/// of these. Nothing is stored: who has the seed has the mask (counter-based numbers, Salmon et al.
/// 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"). An element's number depends on no extent
/// but those of the axes behind the first.
/// # Shapes
/// `x: [..]` of floats, `seed: i64[]` → as `x`. 0 ≤ `p` < 1.
pub(super) struct Dropout;

static SIGNATURE: Signature =
    Signature { operands: &[one("x"), one("seed")], attrs: &[required("p", AttrKind::Float)] };

impl OpDef for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let (x, seed) = (cx.ty(0), cx.ty(1));
        if !x.dtype.is_float() {
            return Err(OpError::new(format!("takes floats, got {}", x.dtype)));
        }
        if seed.dtype != DType::I64 || seed.rank() > 0 {
            return Err(OpError::new(format!("the seed is {seed}, not i64[]")));
        }
        let p = cx.attrs.float("p");
        if !(0.0..1.0).contains(&p) {
            return Err(OpError::attr("p", format!("is {p}, not at least 0 and below 1")));
        }
        Ok(vec![Fact::of(x.clone())])
    }
    fn body(&self) -> Body {
        Body::Composite(|b, attrs, args| {
            let [x, seed] = [0, 1].map(|i| args[i].expect("operand"));
            let p = attrs.float("p");
            let ty = b.ty(x).clone();
            let numbers = numbers(b, &ty.shape)?;
            let bits = b.op1("splitmix64", Attrs::none(), &[seed, numbers])?;
            let quantile = b.constant(Tensor::from_i64s(DType::I64, &[], [quantile(p)]))?;
            let is_dropped = b.op1("less", Attrs::none(), &[bits, quantile])?;
            let wide = if ty.dtype == DType::F64 { DType::F64 } else { DType::F32 };
            let x = b.cast(x, wide)?;
            let scale = b.scalar(wide, 1.0 / (1.0 - p))?;
            let kept = b.mul(x, scale)?;
            let zero = b.scalar(wide, 0.0)?;
            let y = b.select(is_dropped, zero, kept)?;
            Ok(vec![b.cast(y, ty.dtype)?])
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Rule(|cx| {
            let (seed, dy) = (cx.arg(1), cx.cotangent(0)?);
            let dx = cx.when(0, |cx| cx.b.op1("dropout", cx.attrs.clone(), &[dy, seed]))?;
            Ok(vec![dx, None])
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let seed = |seed: i64| Some(Tensor::from_i64s(DType::I64, &[], [seed]));
        let sample = |dtype: DType, shape: &[usize], p: f64, of: i64| Sample {
            attrs: Attrs::none().with("p", p),
            args: vec![Some(spread(dtype, shape, -3.0, 3.0)), seed(of)],
        };
        vec![
            sample(DType::F32, &[3, 37], 0.25, 1),
            sample(DType::F32, &[2, 5, 7], 0.5, -9_000_000_000_000_000_000),
            sample(DType::F32, &[], 0.0, 3),
            sample(DType::F32, &[40], 0.9, 1 << 40),
            sample(DType::Bf16, &[4, 21], 0.1, 7),
        ]
    }
}

/// The number of each element in row-major order.
fn numbers(b: &mut Builder<'_>, shape: &[Dim]) -> Result<Value, OpError> {
    let coordinate = |b: &mut Builder<'_>, axis: usize| {
        let attrs = Attrs::none().with("shape", shape.to_vec());
        b.op1("iota", attrs.with("axis", i64::try_from(axis).unwrap_or(0)), &[])
    };
    if shape.is_empty() {
        return b.constant(Tensor::from_i64s(DType::I64, &[], [0]));
    }
    let mut number = coordinate(b, 0)?;
    for (axis, extent) in shape.iter().enumerate().skip(1) {
        let attrs = Attrs::none().with("sizes", vec![extent.clone()]).with("scalar", true);
        let extent = b.op1("size_vector", attrs, &[])?;
        let step = coordinate(b, axis)?;
        number = b.mul(number, extent)?;
        number = b.add(number, step)?;
    }
    Ok(number)
}

/// What a share `p` of all signed integers of 64 bits is below.
#[allow(clippy::cast_possible_truncation, reason = "p is below one")]
fn quantile(p: f64) -> i64 {
    let below = (p * 2f64.powi(64)) as i128;
    i64::try_from(below + i128::from(i64::MIN)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use indexmap::IndexMap;

    use super::*;
    use crate::{Env, Interpreter, Module, Precision};

    /// What becomes of `x` under symbolic extents.
    fn drop(x: &Tensor, p: f64, seed: i64) -> Vec<f64> {
        let mut m = Module::new("m");
        let n = x.shape()[0] as i64;
        m.symbol("N", 1, 2 * n);
        let mut b = m.builder("main");
        let mut shape: Vec<Dim> = x.shape().iter().map(|n| Dim::from(*n)).collect();
        shape[0] = Dim::symbol("N");
        let args = [
            b.param("x", TensorType::new(x.dtype(), shape)).unwrap(),
            b.param("seed", TensorType::new(DType::I64, Vec::<i64>::new())).unwrap(),
        ];
        let y = b.op1("dropout", Attrs::none().with("p", p), &args).unwrap();
        b.output("y", y);
        let main = b.finish();
        m.add(main);
        let none = IndexMap::<Arc<str>, Tensor>::new();
        let run = Interpreter::new(&m, &none, Precision::F64);
        let seed = Tensor::from_i64s(DType::I64, &[], [seed]);
        let env = Env::from([("N".into(), n)]);
        run.run("main", &[x.clone(), seed], &env).unwrap()[0].to_f64s()
    }

    fn ones(shape: &[usize]) -> Tensor {
        Tensor::from_f64s(DType::F64, shape, vec![1.0; shape.iter().product()])
    }

    #[test]
    fn the_share_is_dropped_and_the_mean_stays() {
        let n = 200_000.0f64;
        for (seed, p) in [(0, 0.1), (-1, 0.5), (1 << 50, 0.9), (77, 0.0)] {
            let y = drop(&ones(&[500, 400]), p, seed);
            let dropped = y.iter().filter(|y| **y == 0.0).count() as f64;
            let sigma = (n * p * (1.0 - p)).sqrt();
            assert!((dropped - n * p).abs() <= 5.0 * sigma, "{dropped} of {n} at {p}");
            let mean = y.iter().sum::<f64>() / n;
            assert!((mean - 1.0).abs() <= 5.0 * sigma / n / (1.0 - p), "{mean} at {p}");
            assert!(y.iter().all(|y| *y == 0.0 || *y == 1.0 / (1.0 - p)));
        }
    }

    /// Whether an element is dropped says nothing of its neighbours, in its row, in the next one,
    /// and under the next seeds: correlations of a hundred thousand pairs are within five sigma.
    #[test]
    fn elements_and_seeds_are_independent() {
        let (rows, width) = (250, 400);
        let masks: Vec<Vec<f64>> = [5i64, 6, 5 ^ i64::MIN]
            .map(|seed| drop(&ones(&[rows, width]), 0.5, seed).iter().map(|y| y - 1.0).collect())
            .into();
        let bound = 5.0 / ((rows * width) as f64).sqrt();
        let check = |a: &[f64], b: &[f64]| {
            let n = a.len().min(b.len()) as f64;
            let correlation = a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / n;
            assert!(correlation.abs() < bound, "{correlation}");
        };
        for lag in [1, 2, width, width + 1] {
            check(&masks[0], &masks[0][lag..]);
        }
        check(&masks[0], &masks[1]);
        check(&masks[0], &masks[2]);
    }

    #[test]
    fn further_rows_change_no_row_before() {
        let (short, long) = (drop(&ones(&[3, 37]), 0.3, 9), drop(&ones(&[8, 37]), 0.3, 9));
        assert_eq!(short, long[..short.len()]);
    }

    #[test]
    fn shares_are_below_one() {
        assert_eq!([quantile(0.0), quantile(0.5)], [i64::MIN, 0]);
        let m = Module::new("m");
        let mut b = m.builder("main");
        let x = b.scalar(DType::F32, 1.0).unwrap();
        let seed = b.constant(Tensor::from_i64s(DType::I64, &[], [0])).unwrap();
        let e = b.op1("dropout", Attrs::none().with("p", 1.0), &[x, seed]).unwrap_err();
        assert!(e.to_string().contains("`p` is 1, not at least 0 and below 1"), "{e}");
        let e = b.op1("dropout", Attrs::none().with("p", 0.5), &[x, x]).unwrap_err();
        assert!(e.to_string().contains("the seed is f32[], not i64[]"), "{e}");
    }
}
