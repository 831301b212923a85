//! `quantize_weight`: a packed weight as blocks of 8- or 4-bit integers, or of e4m3.

#![allow(unsafe_code, reason = "calls code for a processor that was asked")]

mod lanes;

use std::borrow::Cow;

use half::{bf16, f16};

use super::{
    E4M3_BLOCK, E4M3_PANEL_BYTES, QUANT_BLOCK, e4m3, elementwise::spread, pack::PANEL,
    quantize_rows::is_e4m3,
};
use crate::{
    Attr, Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType, Vjp,
    op::{AttrKind, defaulted, one, required},
};

pub(super) use lanes::blocks as lane_blocks;
pub use lanes::{QUANT_GROUP, quant_lane_bits, quant_lane_bytes};

/// Each column in blocks of 32 along K, every block with one f16 scale.
///
/// A block of a panel is 16 scales in f16, then the integers of 16 columns: at 8 bits in the order
/// `[16 steps][16 columns][2 k]`; at 4 bits in the order `[8 steps][16 columns][4 k]`, where the
/// low half of a byte is columns 0..8 and the high half columns 8..16 of the step, `q + 8` each. K
/// is filled up with zeros.
///
/// With `layout = "lanes"` the same numbers lie in groups of two blocks, in the order in which the
/// lanes of a GPU's warp read them (see `lanes`).
///
/// - 8 bits: `scale = max|w| / 127`, integers -127..127: 8.5 bits a weight.
/// - 4 bits: integers -8..7; of scales near `-max / 8` the one, refitted by least squares, that
///   loses least: 4.5 bits a weight.
///
/// With `format = "e4m3"` and `bits = 8` a block of a panel is `[16 columns][128 k]` of
/// `e4m3(w · (448 / max|w|))`, to nearest even, then `scale = max|w| / 448` in f32 for each column:
/// 8.25 bits a weight.
/// # Shapes
/// `w: [P, K, 16]` → `u8 [P, ceil(K / 32), 32 + 64 · bits]`, or in lanes
/// `u8 [P, ceil(K / 64), 64 + 128 · bits]`, or in e4m3 `u8 [P, ceil(K / 128), 2112]`.
pub(super) struct QuantizeWeight;

static SIGNATURE: Signature = Signature {
    operands: &[one("w")],
    attrs: &[
        required("bits", AttrKind::Int),
        defaulted("layout", AttrKind::Str, || Attr::from("steps")),
        defaulted("format", AttrKind::Str, || Attr::from("integers")),
    ],
};

/// k of a step: as many as meet activations in a 32-bit lane, of 16 or of 8 bits.
const STEP_8: usize = 2;
const STEP_4: usize = 4;

/// Bytes of a panel's block.
pub const fn quant_weight_bytes(bits: usize) -> usize {
    2 * PANEL + PANEL * QUANT_BLOCK * bits / 8
}

impl OpDef for QuantizeWeight {
    fn name(&self) -> &'static str {
        "quantize_weight"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let w = cx.ty(0);
        let bits = cx.attrs.int("bits");
        if !matches!(bits, 4 | 8) {
            return Err(OpError::attr("bits", "must be 4 or 8"));
        }
        let [panels, k, width] = &*w.shape else {
            return Err(OpError::new(format!("takes a packed weight, got {w}")));
        };
        cx.same("panel width", width, &Dim::from(PANEL))?;
        if !matches!(w.dtype, DType::F32 | DType::Bf16 | DType::F16) {
            return Err(OpError::new(format!("takes f32, bf16 or f16, got {w}")));
        }
        let bits = if bits == 8 { 8 } else { 4 };
        let (span, bytes) = match cx.attrs.str("layout") {
            layout if is_e4m3(cx.attrs)? => match (bits, layout) {
                (8, "steps") => (E4M3_BLOCK, E4M3_PANEL_BYTES),
                (8, _) => return Err(OpError::attr("layout", "is of integers, not of e4m3")),
                _ => return Err(OpError::attr("bits", "must be 8 in e4m3")),
            },
            "steps" => (QUANT_BLOCK, quant_weight_bytes(bits)),
            "lanes" => (QUANT_GROUP, quant_lane_bytes(bits)),
            _ => return Err(OpError::attr("layout", "must be `steps` or `lanes`")),
        };
        let shape = [panels.clone(), k.ceil_div(span as i64), Dim::from(bytes)];
        Ok(vec![Fact::of(TensorType::new(DType::U8, shape))])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let w = args[0].as_ref().expect("operand");
            let bits = if cx.attrs.int("bits") == 8 { 8 } else { 4 };
            let [_, k, _] = *w.shape() else { unreachable!("inferred") };
            if cx.attrs.str("format") == "e4m3" {
                let bytes = w.as_bytes().map_or_else(|| w.to_bytes().into(), Cow::Borrowed);
                let mut out = Vec::new();
                for panel in bytes.chunks((k * PANEL * w.dtype().size()).max(1)) {
                    let panel = Tensor::from_bytes(w.dtype(), &[k, PANEL], panel.to_vec());
                    let panel = panel.to_f64s().into_iter();
                    #[allow(clippy::cast_possible_truncation, reason = "at most f32 by its type")]
                    let panel: Vec<f32> = panel.map(|v| v as f32).collect();
                    out.extend(e4m3::panels(&panel, k));
                }
                return vec![Tensor::from_bytes(DType::U8, &cx.shape(0), out)];
            }
            let bytes = w.as_bytes().map_or_else(|| w.to_bytes().into(), Cow::Borrowed);
            let blocks = k.div_ceil(QUANT_BLOCK);
            let panel_bytes = blocks * quant_weight_bytes(bits);
            let mut out = vec![0; w.shape()[0] * panel_bytes];
            match w.dtype() {
                DType::Bf16 => quantize::<2>(
                    &bytes,
                    k,
                    bits,
                    |raw| bf16::from_le_bytes(raw).to_f32(),
                    &mut out,
                ),
                DType::F16 => {
                    quantize::<2>(&bytes, k, bits, |raw| f16::from_le_bytes(raw).to_f32(), &mut out)
                }
                #[allow(clippy::cast_possible_truncation, reason = "f32 that is evaluated in f64")]
                DType::F64 => {
                    quantize::<8>(&bytes, k, bits, |raw| f64::from_le_bytes(raw) as f32, &mut out)
                }
                _ => quantize::<4>(&bytes, k, bits, f32::from_le_bytes, &mut out),
            }
            if cx.attrs.str("layout") == "lanes" {
                out = lanes::arrange(&out, panel_bytes, bits);
            }
            vec![Tensor::from_bytes(DType::U8, &cx.shape(0), out)]
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused(
            "rounds weights to 8 or 4 bits, which has no derivative; train the weights before that",
        )
    }
    fn samples(&self) -> Vec<Sample> {
        let sample = |dtype, k: usize, bits: i64, layout: &str| Sample {
            attrs: Attrs::none().with("bits", bits).with("layout", layout),
            args: vec![Some(spread(dtype, &[2, k, PANEL], -0.7, 0.5))],
        };
        let e4m3 = |dtype, k: usize| Sample {
            attrs: Attrs::none().with("bits", 8i64).with("format", "e4m3"),
            args: vec![Some(spread(dtype, &[2, k, PANEL], -0.7, 0.5))],
        };
        vec![
            sample(DType::F32, 64, 8, "steps"),
            sample(DType::Bf16, 37, 4, "steps"),
            sample(DType::F16, 5, 8, "steps"),
            sample(DType::Bf16, 70, 4, "lanes"),
            sample(DType::F32, 96, 8, "lanes"),
            e4m3(DType::Bf16, 300),
            e4m3(DType::F32, 5),
        ]
    }
}

/// Quantises panels of `k` rows of values of `S` bytes.
fn quantize<const S: usize>(
    bytes: &[u8],
    k: usize,
    bits: usize,
    read: impl Fn([u8; S]) -> f32,
    out: &mut [u8],
) {
    let mut out = out.chunks_exact_mut(quant_weight_bytes(bits));
    for panel in bytes.chunks_exact((k * PANEL * S).max(1)) {
        for rows in panel.chunks(QUANT_BLOCK * PANEL * S) {
            let mut block = [[0.0f32; PANEL]; QUANT_BLOCK];
            for (v, raw) in block.as_flattened_mut().iter_mut().zip(rows.as_chunks::<S>().0) {
                *v = read(*raw);
            }
            let (scales, q) = quantize_block(&block, bits);
            write_block(&scales, &q, bits, out.next().expect("a block each"));
        }
    }
}

/// The same instructions for the widest vectors that the processor has: the same results.
fn quantize_block(block: &Block, bits: usize) -> Quantized {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { quantize_block_avx2(block, bits) };
    }
    quantize_block_any(block, bits)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn quantize_block_avx2(block: &Block, bits: usize) -> Quantized {
    quantize_block_any(block, bits)
}

#[inline(always)]
fn quantize_block_any(block: &Block, bits: usize) -> Quantized {
    if bits == 8 { quantize_8(block) } else { quantize_4(block) }
}

type Block = [[f32; PANEL]; QUANT_BLOCK];
type Quantized = ([f16; PANEL], [[i8; PANEL]; QUANT_BLOCK]);

/// Rounds to nearest even without a call, for |v| < 2^22.
#[inline(always)]
fn nearest(v: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (v + MAGIC) - MAGIC
}

/// The integers for given scales, by multiplication with their inverses.
#[allow(clippy::cast_possible_truncation, reason = "clamped")]
#[inline(always)]
fn integers(block: &Block, scales: &[f16; PANEL], lo: f32, hi: f32) -> [[i8; PANEL]; QUANT_BLOCK] {
    let inverse = scales.map(|s| if s.to_f32() == 0.0 { 0.0 } else { 1.0 / s.to_f32() });
    let mut q = [[0i8; PANEL]; QUANT_BLOCK];
    for (q, row) in q.iter_mut().zip(block) {
        for c in 0..PANEL {
            q[c] = nearest((row[c] * inverse[c]).clamp(lo, hi)) as i8;
        }
    }
    q
}

#[inline(always)]
fn quantize_8(block: &Block) -> Quantized {
    let mut most = [0.0f32; PANEL];
    for row in block {
        for c in 0..PANEL {
            most[c] = most[c].max(row[c].abs());
        }
    }
    let scales = most.map(|m| f16::from_f32(m / 127.0));
    let q = integers(block, &scales, -127.0, 127.0);
    (scales, q)
}

/// Candidate scales about `-max / 8`: in tenths of an integer step.
const TENTHS: std::ops::RangeInclusive<i32> = -9..=9;

#[inline(always)]
fn quantize_4(block: &Block) -> Quantized {
    let mut most = [0.0f32; PANEL];
    for row in block {
        for c in 0..PANEL {
            most[c] = if row[c].abs() > most[c].abs() { row[c] } else { most[c] };
        }
    }
    // Of `Σ(w - s q)²`, what the best s of given q removes: `(Σ w q)² / Σ q²`.
    let (mut best, mut scales) = ([-1.0f32; PANEL], [0.0f32; PANEL]);
    for tenths in TENTHS {
        let step = -(8.0 + 0.1 * tenths as f32);
        let inverse = most.map(|m| if m == 0.0 { 0.0 } else { step / m });
        let (mut wq, mut qq) = ([0.0f32; PANEL], [0.0f32; PANEL]);
        for row in block {
            for c in 0..PANEL {
                let q = nearest((row[c] * inverse[c]).clamp(-8.0, 7.0));
                wq[c] += row[c] * q;
                qq[c] += q * q;
            }
        }
        for c in 0..PANEL {
            let gain = if qq[c] > 0.0 { wq[c] * wq[c] / qq[c] } else { 0.0 };
            if gain > best[c] {
                best[c] = gain;
                scales[c] = if qq[c] > 0.0 { wq[c] / qq[c] } else { 0.0 };
            }
        }
    }
    let scales = scales.map(f16::from_f32);
    let q = integers(block, &scales, -8.0, 7.0);
    (scales, q)
}

/// Writes a block's bytes.
fn write_block(scales: &[f16; PANEL], q: &[[i8; PANEL]; QUANT_BLOCK], bits: usize, out: &mut [u8]) {
    let (head, out) = out.split_at_mut(2 * PANEL);
    for (out, scale) in head.as_chunks_mut().0.iter_mut().zip(scales) {
        *out = scale.to_le_bytes();
    }
    if bits == 8 {
        let steps = q.as_chunks::<STEP_8>().0;
        for (q, out) in steps.iter().zip(out.chunks_exact_mut(STEP_8 * PANEL)) {
            for (c, out) in out.as_chunks_mut::<STEP_8>().0.iter_mut().enumerate() {
                *out = std::array::from_fn(|i| q[i][c].cast_unsigned());
            }
        }
        return;
    }
    let half = PANEL / 2;
    let steps = q.as_chunks::<STEP_4>().0;
    for (q, out) in steps.iter().zip(out.chunks_exact_mut(STEP_4 * half)) {
        for (c, out) in out.as_chunks_mut::<STEP_4>().0.iter_mut().enumerate() {
            let nibble = |i: usize, c: usize| (q[i][c] + 8).cast_unsigned();
            *out = std::array::from_fn(|i| nibble(i, c) | nibble(i, c + half) << 4);
        }
    }
}

/// A quantised weight's columns: for each panel and block, 16 scales and `[k][column]` integers.
pub(super) fn blocks(bytes: &[u8], bits: usize) -> Vec<Quantized> {
    let block = |raw: &[u8]| {
        let scales = std::array::from_fn(|c| f16::from_le_bytes([raw[2 * c], raw[2 * c + 1]]));
        let raw = &raw[2 * PANEL..];
        let value = |k: usize, c: usize| {
            if bits == 8 {
                return raw[(k / STEP_8 * PANEL + c) * STEP_8 + k % STEP_8].cast_signed();
            }
            let byte = raw[(k / STEP_4 * PANEL / 2 + c % 8) * STEP_4 + k % STEP_4];
            (if c < 8 { byte & 15 } else { byte >> 4 }).cast_signed() - 8
        };
        (scales, std::array::from_fn(|k| std::array::from_fn(|c| value(k, c))))
    };
    bytes.chunks_exact(quant_weight_bytes(bits)).map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> Block {
        let v = |i: usize| ((i as f32 + 1.0) * 0.618_034).fract() * 2.0 - 1.0;
        std::array::from_fn(|k| std::array::from_fn(|c| v(k * PANEL + c) * (c as f32 + 0.1)))
    }

    fn error(block: &Block, (scales, q): &Quantized, c: usize) -> f32 {
        let scale = scales[c].to_f32();
        (0..QUANT_BLOCK).map(|k| (block[k][c] - scale * f32::from(q[k][c])).powi(2)).sum()
    }

    #[test]
    fn the_processors_own_vectors_change_nothing() {
        for bits in [4, 8] {
            assert_eq!(quantize_block(&block(), bits), quantize_block_any(&block(), bits));
        }
    }

    #[test]
    fn bytes_read_back() {
        for (bits, quantized) in [(8, quantize_8(&block())), (4, quantize_4(&block()))] {
            let mut bytes = vec![0; quant_weight_bytes(bits)];
            write_block(&quantized.0, &quantized.1, bits, &mut bytes);
            assert_eq!(blocks(&bytes, bits), vec![quantized]);
        }
    }

    #[test]
    fn four_bits_lose_less_than_rounding_by_the_largest_value() {
        let block = block();
        let ours = quantize_4(&block);
        let mut most = [0.0f32; PANEL];
        for row in &block {
            for c in 0..PANEL {
                most[c] = if row[c].abs() > most[c].abs() { row[c] } else { most[c] };
            }
        }
        let scales = most.map(|m| f16::from_f32(-m / 8.0));
        let plain = (scales, integers(&block, &scales, -8.0, 7.0));
        let (mut sum, mut plain_sum) = (0.0, 0.0);
        for c in 0..PANEL {
            sum += error(&block, &ours, c) / (c as f32 + 0.1).powi(2);
            plain_sum += error(&block, &plain, c) / (c as f32 + 0.1).powi(2);
        }
        assert!(sum < 0.9 * plain_sum, "{sum} and {plain_sum}");
    }

    #[test]
    fn eight_bits_are_within_half_a_step() {
        let block = block();
        let (scales, q) = quantize_8(&block);
        for c in 0..PANEL {
            let scale = scales[c].to_f32();
            for k in 0..QUANT_BLOCK {
                let error = (block[k][c] - scale * f32::from(q[k][c])).abs();
                assert!(error <= 0.501 * scale + 127.0 * scale / 2048.0, "{error} of {scale}");
            }
        }
    }
}
