//! Operands from a counter: value `i` of a seed is a function of both.
//!
//! Values are in -1..1 and look normal, with a standard deviation of 0.29; all are exact in bf16,
//! so that rounding rows to a weight's type changes nothing.

use half::{bf16, f16};
use ir::DType;

use crate::{Operand, Source};

/// Elements that a thread makes at a time.
const PART: usize = 1 << 16;

/// 64 bits that look random (Steele et al. 2014, SplitMix).
fn bits(seed: u64, index: u64) -> u64 {
    let mut z =
        seed.wrapping_mul(0xd1b5_4a32_d192_ed03) ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Value `index`.
#[must_use]
pub fn value(seed: u64, index: u64) -> bf16 {
    let bits = bits(seed, index);
    let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
    #[allow(clippy::cast_precision_loss, reason = "18 bits")]
    bf16::from_f32(sum as f32 / 131_072.0 - 1.0)
}

/// A byte of a quantised weight in lanes, of which `group` are a group's: the first 64 are scales.
fn lane_byte(seed: u64, index: u64, group: u64) -> u8 {
    let at = index % group;
    let random = bits(seed, index / 2);
    if at >= 64 {
        return bits(seed, index).to_le_bytes()[4];
    }
    // Scales in 1..2 hundredths.
    #[allow(clippy::cast_precision_loss, reason = "16 bits")]
    let scale = f16::from_f32(0.01 + (random & 0xffff) as f32 / 6_553_600.0);
    scale.to_le_bytes()[usize::from(index % 2 == 1)]
}

/// A byte of e4m3, of which every `unit` are `values` of the type and then scales.
fn e4m3_byte(seed: u64, index: u64, [unit, values]: [u64; 2]) -> u8 {
    let at = index % unit;
    if at < values {
        let code = bits(seed, index).to_le_bytes()[4];
        // No NaN.
        return if code & 0x7f == 0x7f { code ^ 1 } else { code };
    }
    let scale = (index - at + values) / 4 + (at - values) / 4;
    // In 1..2 thousandths.
    #[allow(clippy::cast_precision_loss, reason = "16 bits")]
    let scale = 0.001 + (bits(seed, scale) & 0xffff) as f32 / 65_536_000.0;
    scale.to_le_bytes()[usize::try_from((at - values) % 4).unwrap_or(0)]
}

/// The elements `first..` of an operand that is not in a file, as bytes.
pub fn fill(operand: &Operand, first: usize, out: &mut [u8]) {
    let size = operand.dtype.size();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = (out.len() / size).div_ceil(threads).max(PART);
    if out.len() <= share * size {
        return write(operand, first as u64, out);
    }
    std::thread::scope(|scope| {
        for (part, out) in out.chunks_mut(share * size).enumerate() {
            scope.spawn(move || write(operand, (first + part * share) as u64, out));
        }
    });
}

fn write(operand: &Operand, first: u64, out: &mut [u8]) {
    let elements = out.chunks_exact_mut(operand.dtype.size());
    match (&operand.source, operand.dtype) {
        (Source::Noise(seed), DType::Bf16) => {
            for (index, out) in (first..).zip(elements) {
                out.copy_from_slice(&value(*seed, index).to_le_bytes());
            }
        }
        (Source::Noise(seed), _) => {
            for (index, out) in (first..).zip(elements) {
                out.copy_from_slice(&value(*seed, index).to_f32().to_le_bytes());
            }
        }
        (Source::Lanes { bits, seed }, _) => {
            let group = ir::quant_lane_bytes(*bits) as u64;
            for (index, out) in (first..).zip(elements) {
                out[0] = lane_byte(*seed, index, group);
            }
        }
        (Source::E4m3 { values, seed }, _) => {
            let unit = operand.shape.last().map_or(1, |unit| *unit as u64);
            for (index, out) in (first..).zip(elements) {
                out[0] = e4m3_byte(*seed, index, [unit, *values as u64]);
            }
        }
        (Source::File(_), _) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_look_normal() {
        let values: Vec<f64> = (0..100_000).map(|i| value(7, i).to_f64()).collect();
        let mean = values.iter().sum::<f64>() / 1e5;
        let square = values.iter().map(|v| v * v).sum::<f64>() / 1e5;
        assert!(mean.abs() < 3e-3 && (square.sqrt() - 0.2887).abs() < 3e-3, "{mean} {square}");
        assert!(values.iter().all(|v| (-1.0..=1.0).contains(v)));
        assert_ne!(value(7, 0), value(8, 0));
    }

    #[test]
    fn parts_are_the_whole() {
        let noise = |dtype| Operand { dtype, shape: vec![300_000], source: Source::Noise(3) };
        let shape = vec![400, ir::quant_lane_bytes(4)];
        let lanes = Operand { dtype: DType::U8, shape, source: Source::Lanes { bits: 4, seed: 1 } };
        let shape = vec![400, ir::E4M3_PANEL_BYTES];
        let source = Source::E4m3 { values: 2048, seed: 1 };
        let e4m3 = Operand { dtype: DType::U8, shape, source };
        for operand in [noise(DType::Bf16), noise(DType::F32), lanes, e4m3] {
            let size = operand.dtype.size();
            let mut whole = vec![0; operand.bytes().unwrap()];
            fill(&operand, 0, &mut whole);
            let mut part = vec![0; 1000 * size];
            fill(&operand, 70_001, &mut part);
            assert_eq!(part, whole[70_001 * size..][..1000 * size]);
        }
    }
}
