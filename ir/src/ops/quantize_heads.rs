//! `quantize_heads`: keys or values as 8-bit integers, one scale for each head of each token.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType, Vjp,
    op::one, ops::quantize_rows::inverse,
};

/// Symmetric integers along the last axis, and their scale.
///
/// `scale = max|x| / 127` and `q = round(x · 127 / max|x|)`, to nearest even, all in f32; zeros
/// have the scale zero, and what is too small for `127 / max|x|` to be finite becomes zeros. The
/// scale stays f32: 4 bytes beside the 64 or 128 of a head, and no value
/// is too small or too large for it, as it might be for f16. A row that holds a NaN or an infinity
/// has a scale that is not finite.
///
/// One scale for each token and head, as in Sheng et al. 2023, arXiv:2303.06865, but symmetric: so
/// attention multiplies scores and weights by scales and nothing else.
/// # Shapes
/// `x: [.., D]` in f32 → `q: i8 [.., D]`, `scale: f32 [..]`.
pub(super) struct QuantizeHeads;

static SIGNATURE: Signature = Signature { operands: &[one("x")], attrs: &[] };

impl OpDef for QuantizeHeads {
    fn name(&self) -> &'static str {
        "quantize_heads"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn is_rowwise(&self) -> bool {
        true
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let x = cx.ty(0);
        let [lead @ .., _] = &*x.shape else {
            return Err(OpError::new(format!("takes [.., D], got {x}")));
        };
        if x.dtype != DType::F32 {
            return Err(OpError::new(format!("takes f32, got {x}")));
        }
        let scale = TensorType::new(DType::F32, lead.iter().cloned());
        let q = TensorType { dtype: DType::I8, ..x.clone() };
        Ok(vec![Fact::of(q), Fact::of(scale)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let x = args[0].as_ref().expect("operand");
            let width = x.shape().last().copied().unwrap_or(1).max(1);
            #[allow(clippy::cast_possible_truncation, reason = "operands are f32")]
            let x: Vec<f32> = x.to_f64s().into_iter().map(|v| v as f32).collect();
            let (mut q, mut scales) = (Vec::new(), Vec::new());
            for row in x.chunks(width) {
                let larger = |m: f32, v: &f32| if m.is_nan() || v.abs() <= m { m } else { v.abs() };
                let most = row.iter().fold(0.0f32, larger);
                let inverse = inverse(127.0, most);
                #[allow(clippy::cast_possible_truncation, reason = "at most 127; NaN becomes 0")]
                let quantized = |v: &f32| (v * inverse).round_ties_even() as i8;
                q.extend(row.iter().map(quantized).map(i64::from));
                scales.push(most / 127.0);
            }
            vec![
                Tensor::from_i64s(DType::I8, &cx.shape(0), q),
                Tensor::from_f64s(
                    cx.results[1].dtype,
                    &cx.shape(1),
                    scales.iter().map(|s| (*s).into()),
                ),
            ]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused("rounds keys and values to integers, which has no derivative")
    }
    fn samples(&self) -> Vec<Sample> {
        let sample = |shape: &[usize]| Sample {
            attrs: Attrs::none(),
            args: vec![Some(spread(DType::F32, shape, -3.0, 2.0))],
        };
        let zeros = Tensor::from_f32s(&[2, 1, 2], &[0.0, 0.0, 0.0, -1.0]);
        let zeros = Sample { attrs: Attrs::none(), args: vec![Some(zeros)] };
        vec![sample(&[3, 2, 64]), sample(&[2, 3, 37]), sample(&[1, 1, 5]), zeros]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Env, Interpreter, Module, Precision};

    fn quantized(rows: &Tensor) -> Vec<Tensor> {
        let module = Module::new("m");
        let mut b = module.builder("f");
        let x = TensorType::new(DType::F32, rows.shape().iter().copied());
        let x = b.param("x", x).unwrap();
        for (i, v) in b.op("quantize_heads", Attrs::none(), &[Some(x)]).unwrap().iter().enumerate()
        {
            b.output(&i.to_string(), *v);
        }
        let graph = b.finish();
        let weights = indexmap::IndexMap::new();
        let interpreter = Interpreter::new(&module, &weights, Precision::F32);
        interpreter.eval(&graph, std::slice::from_ref(rows), &Env::new()).unwrap()
    }

    #[test]
    fn values_are_within_half_a_step() {
        let x = spread(DType::F32, &[5, 3, 48], -4.0, 7.0);
        let [q, scale] = &quantized(&x)[..] else { panic!("two results") };
        let (q, scale) = (q.to_f64s(), scale.to_f64s());
        assert!(q.contains(&127.0));
        for (i, x) in x.to_f64s().into_iter().enumerate() {
            let (scale, q) = (scale[i / 48], q[i]);
            assert!((q * scale - x).abs() <= scale * 0.500_01, "{x} is {q} x {scale}");
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let mut rows = vec![1.0f32; 12];
        (rows[1], rows[6]) = (f32::NAN, f32::NEG_INFINITY);
        let scales = quantized(&Tensor::from_f32s(&[3, 4], &rows)).remove(1).to_f64s();
        assert!(scales[0].is_nan() && scales[1].is_infinite() && scales[2].is_finite());
    }
}
