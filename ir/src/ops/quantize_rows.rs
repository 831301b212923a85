//! `quantize_rows`: activations as blocks of integers, or of e4m3.

use super::{E4M3_BLOCK, e4m3, e4m3_row_bytes, elementwise::spread};
use crate::{
    Attr, Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType, Vjp,
    op::{AttrKind, defaulted, one},
};

/// Each row in blocks of 32: a scale, and integers that fit the bits of the weight they meet.
///
/// `scale = max|x| / Q` and `q = round(x · Q / max|x|)`, to nearest even, all in f32. The last
/// block of a row is filled with zeros. A block that holds a NaN or an infinity has a scale that
/// is not finite; what is too small for `Q / max|x|` to be finite becomes zeros.
///
/// - `weight_bits = 4`: Q = 127. A block is `scale: f32`, `sum: i32` of its integers, `q: i8 × 32`.
/// - `weight_bits = 8`: Q = 4095, the largest with which a block's sum of products is below 2²⁴, so
///   that f32 holds it exactly. A block is `scale: f32`, `q: i16 × 32`.
///
/// With `format = "e4m3"` a block is 128 values, `scale = max|x| / 448`, and what is rounded is
/// `x · (448 / max|x|)`, to nearest even, with NaN for NaN. A row is the values of all its blocks,
/// then their scales in f32, with zeros behind them up to a multiple of sixteen bytes: as tensor
/// cores and their copy engine take it.
/// # Shapes
/// `x: [.., K]` in f32 → `u8 [.., ceil(K / 32), 40 or 68]`, or in e4m3 `u8 [.., B]` with
/// `B = 128 · ceil(K / 128) + 16 · ceil(K / 512)`.
pub(super) struct QuantizeRows;

static SIGNATURE: Signature = Signature {
    operands: &[one("x")],
    attrs: &[
        defaulted("weight_bits", AttrKind::Int, || Attr::Int(8)),
        defaulted("format", AttrKind::Str, || Attr::from("integers")),
    ],
};

/// Values of a block that share a scale.
pub const QUANT_BLOCK: usize = 32;

/// Bytes of a block of activations that meets a weight of so many bits.
pub const fn quant_row_bytes(weight_bits: usize) -> usize {
    if weight_bits == 8 { 4 + 2 * QUANT_BLOCK } else { 8 + QUANT_BLOCK }
}

/// The largest integer of activations that meet a weight of so many bits.
pub const fn quant_row_limit(weight_bits: usize) -> i16 {
    if weight_bits == 8 { 4095 } else { 127 }
}

impl OpDef for QuantizeRows {
    fn name(&self) -> &'static str {
        "quantize_rows"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let x = cx.ty(0);
        let [lead @ .., k] = &*x.shape else {
            return Err(OpError::new(format!("takes [.., K], got {x}")));
        };
        if x.dtype != DType::F32 {
            return Err(OpError::new(format!("takes f32, got {x}")));
        }
        let bits = cx.attrs.int("weight_bits");
        if is_e4m3(cx.attrs)? {
            if bits != 8 {
                return Err(OpError::attr("weight_bits", "must be 8 where weights are e4m3"));
            }
            let bytes = e4m3_row_bytes(&k.ceil_div(E4M3_BLOCK as i64));
            let shape = lead.iter().cloned().chain([bytes]);
            return Ok(vec![Fact::of(TensorType::new(DType::U8, shape))]);
        }
        if !matches!(bits, 4 | 8) {
            return Err(OpError::attr("weight_bits", "must be 4 or 8"));
        }
        let bytes = quant_row_bytes(if bits == 8 { 8 } else { 4 });
        let tail = [k.ceil_div(QUANT_BLOCK as i64), Dim::from(bytes)];
        let shape = lead.iter().cloned().chain(tail);
        Ok(vec![Fact::of(TensorType::new(DType::U8, shape))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let x = args[0].as_ref().expect("operand");
            let k = x.shape().last().copied().unwrap_or(1).max(1);
            #[allow(clippy::cast_possible_truncation, reason = "operands are f32")]
            let x: Vec<f32> = x.to_f64s().into_iter().map(|v| v as f32).collect();
            if cx.attrs.str("format") == "e4m3" {
                return vec![Tensor::from_bytes(DType::U8, &cx.shape(0), e4m3::rows(&x, k))];
            }
            let mut out = Vec::new();
            let bits = if cx.attrs.int("weight_bits") == 8 { 8 } else { 4 };
            for block in x.chunks(k).flat_map(|row| row.chunks(QUANT_BLOCK)) {
                push_block(block, bits, &mut out);
            }
            vec![Tensor::from_bytes(DType::U8, &cx.shape(0), out)]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused("rounds activations to blocks of 8 bits, which has no derivative")
    }
    fn samples(&self) -> Vec<Sample> {
        let sample = |shape: &[usize], bits: i64| Sample {
            attrs: Attrs::none().with("weight_bits", bits),
            args: vec![Some(spread(DType::F32, shape, -3.0, 2.0))],
        };
        let e4m3 = |shape: &[usize]| Sample {
            attrs: Attrs::none().with("format", "e4m3"),
            args: vec![Some(spread(DType::F32, shape, -3.0, 2.0))],
        };
        vec![
            sample(&[3, 64], 8),
            sample(&[2, 37], 4),
            sample(&[1, 5], 8),
            sample(&[1, 3], 4),
            e4m3(&[3, 256]),
            e4m3(&[2, 2, 77]),
        ]
    }
}

/// Whether values are e4m3 instead of integers, by the attribute `format`.
pub(super) fn is_e4m3(attrs: &Attrs) -> Result<bool, OpError> {
    match attrs.str("format") {
        "integers" => Ok(false),
        "e4m3" => Ok(true),
        _ => Err(OpError::attr("format", "must be `integers` or `e4m3`")),
    }
}

/// `limit / most`; zero where that is not finite: of zeros, NaN, and numbers that are too small for
/// their scale.
pub(super) fn inverse(limit: f32, most: f32) -> f32 {
    let inverse = limit / most;
    if inverse < f32::INFINITY { inverse } else { 0.0 }
}

fn push_block(block: &[f32], bits: usize, out: &mut Vec<u8>) {
    let limit = f32::from(quant_row_limit(bits));
    let larger = |m: f32, v: &f32| if m.is_nan() || v.abs() <= m { m } else { v.abs() };
    let most = block.iter().fold(0.0f32, larger);
    let inverse = inverse(limit, most);
    #[allow(clippy::cast_possible_truncation, reason = "within the limit; NaN becomes 0")]
    let quantized = |v: f32| (v * inverse).round_ties_even() as i16;
    let mut values = [0i16; QUANT_BLOCK];
    for (q, v) in values.iter_mut().zip(block) {
        *q = quantized(*v);
    }
    out.extend((most / limit).to_le_bytes());
    if bits == 8 {
        values.iter().for_each(|q| out.extend(q.to_le_bytes()));
    } else {
        let sum: i32 = values.iter().map(|q| i32::from(*q)).sum();
        out.extend(sum.to_le_bytes());
        out.extend(values.map(|q| q.to_le_bytes()[0]));
    }
}

/// Scale and integers of each block.
pub(super) fn blocks(bytes: &[u8], bits: usize) -> impl Iterator<Item = (f32, [i16; QUANT_BLOCK])> {
    bytes.chunks_exact(quant_row_bytes(bits)).map(move |block| {
        let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
        let wide = |i: usize| i16::from_le_bytes([block[4 + 2 * i], block[5 + 2 * i]]);
        let narrow = |i: usize| i16::from(block[8 + i].cast_signed());
        (scale, std::array::from_fn(|i| if bits == 8 { wide(i) } else { narrow(i) }))
    })
}
