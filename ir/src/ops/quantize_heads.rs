//! `quantize_heads`: keys or values in eight bits, one scale for each head of each token.

use super::{
    e4m3::{self, LARGEST},
    elementwise::spread,
};
use crate::{
    Attr, Attrs, Body, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    Vjp,
    op::{AttrKind, defaulted, one},
    ops::quantize_rows::inverse,
};

/// Numbers of eight bits along the last axis, and their scale.
///
/// `scale = max|x| / limit` and `q = round(x · limit / max|x|)`, to nearest even, all in f32. The
/// format `integers` is symmetric, of the limit 127; `e4m3` has the limit 448 (Micikevicius et al.
/// 2022, arXiv:2209.05433), so nothing saturates. Zeros have the scale zero, and what is too small
/// for `limit / max|x|` to be finite becomes zeros. The scale stays f32: 4 bytes beside the 64 or
/// 128 of a head, and no value is too small or too large for it, as it might be for f16. A row that
/// holds a NaN or an infinity has a scale that is not finite, and zeros in the place of those: no
/// code is a NaN.
///
/// One scale for each token and head, as in Sheng et al. 2023, arXiv:2303.06865, but symmetric: so
/// attention multiplies scores and weights by scales and nothing else.
/// # Shapes
/// `x: [.., D]` in f32 → `q: [.., D]` in i8 or f8e4m3, `scale: f32 [..]`.
pub(super) struct QuantizeHeads;

static SIGNATURE: Signature = Signature {
    operands: &[one("x")],
    attrs: &[defaulted("format", AttrKind::Str, || Attr::from("integers"))],
};

/// The format's element type.
fn dtype(attrs: &Attrs) -> Result<DType, OpError> {
    match attrs.str("format") {
        "integers" => Ok(DType::I8),
        "e4m3" => Ok(DType::F8E4M3),
        _ => Err(OpError::attr("format", "must be `integers` or `e4m3`")),
    }
}

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
        let q = TensorType { dtype: dtype(cx.attrs)?, ..x.clone() };
        Ok(vec![Fact::of(q), Fact::of(scale)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let x = args[0].as_ref().expect("operand");
            let width = x.shape().last().copied().unwrap_or(1).max(1);
            #[allow(clippy::cast_possible_truncation, reason = "operands are f32")]
            let x: Vec<f32> = x.to_f64s().into_iter().map(|v| v as f32).collect();
            let floats = cx.attrs.str("format") == "e4m3";
            let limit = if floats { LARGEST } else { 127.0 };
            let (mut q, mut scales) = (Vec::new(), Vec::new());
            for row in x.chunks(width) {
                let larger = |m: f32, v: &f32| if m.is_nan() || v.abs() <= m { m } else { v.abs() };
                let most = row.iter().fold(0.0f32, larger);
                let inverse = inverse(limit, most);
                #[allow(clippy::cast_possible_truncation, reason = "at most 127; NaN becomes 0")]
                let code = |v: f32| match v {
                    _ if !floats => (v.round_ties_even() as i8).cast_unsigned(),
                    _ if v.is_nan() => 0,
                    _ => e4m3::round(v),
                };
                q.extend(row.iter().map(|v| code(v * inverse)));
                scales.push(most / limit);
            }
            vec![
                Tensor::from_bytes(cx.results[0].dtype, &cx.shape(0), q),
                Tensor::from_f64s(
                    cx.results[1].dtype,
                    &cx.shape(1),
                    scales.iter().map(|s| (*s).into()),
                ),
            ]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused("rounds keys and values to eight bits, which has no derivative")
    }
    fn samples(&self) -> Vec<Sample> {
        let zeros = Tensor::from_f32s(&[2, 1, 2], &[0.0, 0.0, 0.0, -1.0]);
        let rows = [&[3, 2, 64][..], &[2, 3, 37], &[1, 1, 5]];
        let rows = rows.map(|shape| spread(DType::F32, shape, -3.0, 2.0));
        let all = || rows.iter().chain([&zeros]).cloned();
        let sample = |format: &'static str| {
            move |x| Sample { attrs: Attrs::none().with("format", format), args: vec![Some(x)] }
        };
        all().map(sample("integers")).chain(all().map(sample("e4m3"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Env, Interpreter, Module, Precision};

    fn quantized(rows: &Tensor, format: &str) -> Vec<Tensor> {
        let module = Module::new("m");
        let mut b = module.builder("f");
        let x = TensorType::new(DType::F32, rows.shape().iter().copied());
        let x = b.param("x", x).unwrap();
        let attrs = Attrs::none().with("format", format);
        for (i, v) in b.op("quantize_heads", attrs, &[Some(x)]).unwrap().iter().enumerate() {
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
        let [q, scale] = &quantized(&x, "integers")[..] else { panic!("two results") };
        let (q, scale) = (q.to_f64s(), scale.to_f64s());
        assert!(q.contains(&127.0));
        for (i, x) in x.to_f64s().into_iter().enumerate() {
            let (scale, q) = (scale[i / 48], q[i]);
            assert!((q * scale - x).abs() <= scale * 0.500_01, "{x} is {q} x {scale}");
        }
    }

    /// Every number of e4m3, positive ones first, by what the format says of exponents and
    /// fractions.
    fn numbers() -> Vec<f64> {
        let of = |code: i32| match (code >> 3, f64::from(code & 7)) {
            (0, fraction) => fraction / 8.0 * 2f64.powi(-6),
            (exponent, fraction) => (1.0 + fraction / 8.0) * 2f64.powi(exponent - 7),
        };
        let positive = (0..0x7f).map(of);
        positive.clone().chain(positive.map(|v| -v)).collect()
    }

    /// The largest element of each row is one that makes the scale a power of two.
    #[test]
    fn codes_of_e4m3_are_the_nearest_of_all_numbers_even_ones_first() {
        let numbers = numbers();
        assert_eq!(numbers[0x7e], 448.0);
        let mut wanted = vec![448.0];
        for (code, pair) in numbers[..0x7f].windows(2).enumerate() {
            let middle = f64::midpoint(pair[0], pair[1]);
            // A little beside the middle, the nearer one; in the middle, the even one.
            let beside = middle * 1e-5;
            wanted.extend([pair[0], middle - beside, middle, middle + beside]);
            wanted.extend([-pair[1], beside - middle, -middle, -beside - middle]);
            assert!(middle - beside > pair[0] && code < 0x7e);
        }
        for factor in [1.0, 1.0 / 1024.0, 2f64.powi(40)] {
            let x = Tensor::from_f64s(
                DType::F32,
                &[1, wanted.len()],
                wanted.iter().map(|v| v * factor),
            );
            let [q, scale] = &quantized(&x, "e4m3")[..] else { panic!("two results") };
            assert_eq!(scale.to_f64s(), [factor]);
            for (v, code) in wanted.iter().zip(q.to_bytes()) {
                let far = |c: usize| (numbers[c] - v).abs();
                let first = if *v < 0.0 { 0x7f } else { 0 };
                let nearest = (0..0x7f).min_by(|a, b| {
                    let (a, b) = (a + first, b + first);
                    far(a).total_cmp(&far(b)).then((a % 0x7f % 2).cmp(&(b % 0x7f % 2)))
                });
                let sign = if *v < 0.0 { 0x80 } else { 0 };
                assert_eq!(usize::from(code), nearest.unwrap() | sign, "{v}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for format in ["integers", "e4m3"] {
            let mut rows = vec![1.0f32; 12];
            (rows[1], rows[6]) = (f32::NAN, f32::NEG_INFINITY);
            let results = quantized(&Tensor::from_f32s(&[3, 4], &rows), format);
            let scales = results[1].to_f64s();
            assert!(scales[0].is_nan() && scales[1].is_infinite() && scales[2].is_finite());
            assert_eq!(results[0].to_bytes()[..8], [0; 8], "{format}");
            assert_eq!(results[0].to_bytes()[8] & 0x7e, 0x7e, "{format}");
        }
    }

    /// An outlier costs integers what is small beside it; a float's error follows each number.
    #[test]
    fn e4m3_keeps_what_is_small_beside_an_outlier() {
        let mut rows = spread(DType::F32, &[1, 128], -0.1, 0.1).to_f64s();
        rows[77] = 60.0;
        let x = Tensor::from_f64s(DType::F32, &[1, 128], rows.iter().copied());
        let error = |format: &str| {
            let results = quantized(&x, format);
            let scale = results[1].to_f64s()[0];
            let pairs = results[0].to_f64s().into_iter().zip(&rows);
            pairs.map(|(q, x)| (q * scale - x).powi(2)).sum::<f64>().sqrt()
        };
        assert!(error("e4m3") < error("integers") / 8.0);
    }
}
