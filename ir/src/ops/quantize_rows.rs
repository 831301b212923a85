//! `quantize_rows`: activations as blocks of 8-bit integers.

use super::elementwise::spread;
use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    op::one,
};

/// Each row in blocks of 32: a scale, the sum of the block's integers, and the integers.
///
/// `scale = max|x| / 127` and `q = round(x · 127 / max|x|)`, to nearest even, all in f32. A block
/// is 40 bytes: `scale: f32`, `sum: i32`, `q: i8 × 32`; the last block of a row is filled with
/// zeros. A block that holds a NaN or an infinity has a scale that is not finite.
/// # Shapes
/// `x: [.., K]` in f32 → `u8 [.., ceil(K / 32), 40]`.
pub(super) struct QuantizeRows;

static SIGNATURE: Signature = Signature { operands: &[one("x")], attrs: &[] };

/// Values of a block that share a scale.
pub const QUANT_BLOCK: usize = 32;

/// Bytes of a block of activations.
pub const QUANT_ROW_BYTES: usize = 8 + QUANT_BLOCK;

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
        let tail = [k.ceil_div(QUANT_BLOCK as i64), Dim::from(QUANT_ROW_BYTES)];
        let shape = lead.iter().cloned().chain(tail);
        Ok(vec![Fact::of(TensorType::new(DType::U8, shape))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let x = args[0].as_ref().expect("operand");
            let k = x.shape().last().copied().unwrap_or(1).max(1);
            #[allow(clippy::cast_possible_truncation, reason = "operands are f32")]
            let x: Vec<f32> = x.to_f64s().into_iter().map(|v| v as f32).collect();
            let mut out = Vec::new();
            for block in x.chunks(k).flat_map(|row| row.chunks(QUANT_BLOCK)) {
                push_block(block, &mut out);
            }
            vec![Tensor::from_bytes(DType::U8, &cx.shape(0), out)]
        })
    }
    fn samples(&self) -> Vec<Sample> {
        let sample = |shape: &[usize]| Sample {
            attrs: Attrs::none(),
            args: vec![Some(spread(DType::F32, shape, -3.0, 2.0))],
        };
        vec![sample(&[3, 64]), sample(&[2, 37]), sample(&[1, 5])]
    }
}

fn push_block(block: &[f32], out: &mut Vec<u8>) {
    let larger = |m: f32, v: &f32| if m.is_nan() || v.abs() <= m { m } else { v.abs() };
    let most = block.iter().fold(0.0f32, larger);
    let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
    #[allow(clippy::cast_possible_truncation, reason = "at most 127; NaN becomes 0")]
    let quantized = |v: f32| (v * inverse).round_ties_even() as i8;
    let mut values = [0i8; QUANT_BLOCK];
    for (q, v) in values.iter_mut().zip(block) {
        *q = quantized(*v);
    }
    let sum: i32 = values.iter().map(|q| i32::from(*q)).sum();
    out.extend((most / 127.0).to_le_bytes());
    out.extend(sum.to_le_bytes());
    out.extend(values.map(i8::cast_unsigned));
}

/// Scale and integers of each block.
pub(super) fn blocks(bytes: &[u8]) -> impl Iterator<Item = (f32, [i8; QUANT_BLOCK])> {
    bytes.chunks_exact(QUANT_ROW_BYTES).map(|block| {
        let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
        (scale, std::array::from_fn(|i| block[8 + i].cast_signed()))
    })
}
