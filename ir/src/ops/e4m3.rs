//! Blocks of e4m3: values that `quantize_rows` and `quantize_weight` round, each 128 with an f32
//! scale, and their sums.
//!
//! Micikevicius et al. 2022, "FP8 Formats for Deep Learning", arXiv:2209.05433, for the type;
//! DeepSeek-AI 2024, arXiv:2412.19437, section 3.3, for scales along k on both sides, by which the
//! sums of 128 that tensor cores make are added up in f32. Weights have a scale for each column and
//! 128 k, of which checkpoints with one for 128 x 128, or for a column, are special cases.

use super::{pack::PANEL, quantize_rows::inverse};
use crate::Dim;

/// Values along k that share a scale.
pub const E4M3_BLOCK: usize = 128;

/// Bytes of a panel's block: the values of sixteen columns, then their scales.
pub const E4M3_PANEL_BYTES: usize = PANEL * (E4M3_BLOCK + 4);

/// The largest value.
pub(super) const LARGEST: f32 = 448.0;

/// Scales are padded to a multiple of so many, by which rows begin at a multiple of 16 bytes.
const SCALES: usize = 4;

/// Bytes of a row of so many blocks: all values, then the scales.
#[must_use]
pub fn e4m3_row_bytes(blocks: &Dim) -> Dim {
    let scales = blocks.ceil_div(SCALES as i64) * Dim::from(4 * SCALES as i64);
    blocks.clone() * Dim::from(E4M3_BLOCK as i64) + scales
}

/// To nearest even; what is too large becomes 448, and any NaN the positive one.
pub(super) fn round(v: f32) -> u8 {
    let a = v.abs().min(LARGEST);
    let bits = a.to_bits();
    let normal = ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20).wrapping_sub(120 << 3);
    // The last bit of 2^14 in f32 is that of subnormal values, 2^-9.
    let subnormal = (a + 16384.0).to_bits() - 16384.0f32.to_bits();
    let code = if a < 0.015_625 { subnormal } else { normal };
    let sign = v.to_bits() >> 24 & 0x80;
    let code = if v.is_nan() { 0x7f } else { code | sign };
    code.to_le_bytes()[0]
}

/// The value of a code.
pub(super) fn value(code: u8) -> f32 {
    let magnitude = match u32::from(code & 0x7f) {
        0x7f => f32::NAN,
        low @ 0..8 => low as f32 / 512.0,
        normal => f32::from_bits((normal << 20) + (120 << 23)),
    };
    if code < 0x80 { magnitude } else { -magnitude }
}

/// Rows of `k` values: [`e4m3_row_bytes`] each.
pub(super) fn rows(x: &[f32], k: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for row in x.chunks(k.max(1)) {
        let mut scales = Vec::new();
        for block in row.chunks(E4M3_BLOCK) {
            let larger = |m: f32, v: &f32| if m.is_nan() || v.abs() <= m { m } else { v.abs() };
            let most = block.iter().fold(0.0f32, larger);
            let inverse = inverse(LARGEST, most);
            let end = out.len() + E4M3_BLOCK;
            out.extend(block.iter().map(|v| round(v * inverse)));
            out.resize(end, 0);
            scales.push(most / LARGEST);
        }
        scales.resize(scales.len().next_multiple_of(SCALES), 0.0);
        out.extend(scales.iter().flat_map(|scale| scale.to_le_bytes()));
    }
    out
}

/// Panels of `k` rows of sixteen values: a block of [`E4M3_PANEL_BYTES`] for each 128 k.
pub(super) fn panels(w: &[f32], k: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for panel in w.chunks(k.max(1) * PANEL) {
        for rows in panel.chunks(E4M3_BLOCK * PANEL) {
            let rows = rows.as_chunks::<PANEL>().0;
            let mut most = [0.0f32; PANEL];
            for row in rows {
                for (most, v) in most.iter_mut().zip(row) {
                    *most = if most.is_nan() || v.abs() <= *most { *most } else { v.abs() };
                }
            }
            let inverse = most.map(|most| inverse(LARGEST, most));
            let start = out.len();
            out.resize(start + E4M3_BLOCK * PANEL, 0);
            for (i, row) in rows.iter().enumerate() {
                for c in 0..PANEL {
                    out[start + c * E4M3_BLOCK + i] = round(row[c] * inverse[c]);
                }
            }
            out.extend(most.iter().flat_map(|most| (most / LARGEST).to_le_bytes()));
        }
    }
    out
}

/// A scale of four bytes.
fn scale(bytes: &[u8]) -> f64 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).into()
}

/// Every column of every panel, `[rows, P · 16]`: for each block its sum of products, times both
/// scales, added in the order of k.
pub(super) fn product(x: &[u8], w: &[u8], blocks: usize) -> Vec<f64> {
    let values = blocks * E4M3_BLOCK;
    let row_bytes = values + 4 * blocks.next_multiple_of(SCALES);
    let table: Vec<f64> = (0..=u8::MAX).map(|code| value(code).into()).collect();
    let mut out = Vec::new();
    for row in x.chunks_exact(row_bytes.max(1)) {
        let (x, x_scales) = row.split_at(values);
        for panel in w.chunks_exact(E4M3_PANEL_BYTES * blocks.max(1)) {
            for c in 0..PANEL {
                let block = |(i, block): (usize, &[u8])| {
                    let (x, w) = (&x[i * E4M3_BLOCK..], &block[c * E4M3_BLOCK..]);
                    let pairs = x.iter().zip(w).take(E4M3_BLOCK);
                    let dot: f64 =
                        pairs.map(|(x, w)| table[usize::from(*x)] * table[usize::from(*w)]).sum();
                    let w_scale = scale(&block[PANEL * E4M3_BLOCK + 4 * c..]);
                    dot * (scale(&x_scales[4 * i..]) * w_scale)
                };
                out.push(panel.chunks_exact(E4M3_PANEL_BYTES).enumerate().map(block).sum());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Tensor};

    fn code(v: f32) -> u8 {
        Tensor::from_f64s(DType::F8E4M3, &[1], [f64::from(v)]).to_bytes()[0]
    }

    #[test]
    fn every_code_is_its_value() {
        let codes = Tensor::from_bytes(DType::F8E4M3, &[256], (0..=u8::MAX).collect::<Vec<_>>());
        for (c, want) in (0..=u8::MAX).zip(codes.to_f64s()) {
            let got = f64::from(value(c));
            assert!(got == want || got.is_nan() && want.is_nan(), "{c:#x} is {got}, not {want}");
            assert!(c & 0x7f == 0x7f || round(value(c)) == c, "{c:#x}");
        }
        assert_eq!([f32::NAN, -f32::NAN].map(round), [0x7f; 2]);
        assert_eq!([f32::INFINITY, -449.0, 1e30].map(round), [0x7e, 0xfe, 0x7e]);
    }

    /// Between any two neighbours, at the middle, and beside it.
    #[test]
    fn rounding_is_to_the_nearest_and_even() {
        for c in 0..0x7eu8 {
            let middle = f32::midpoint(value(c), value(c + 1));
            for v in [middle, middle.next_up(), middle.next_down()] {
                assert_eq!(round(v), code(v), "{v}");
                assert_eq!(round(-v), code(-v), "-{v}");
            }
        }
    }

    #[test]
    fn rows_and_columns_come_back_within_a_sixteenth() {
        let (k, count) = (300, 3);
        let v = |i: usize| ((i as f32 + 1.0) * 0.618_034).fract() * 2.0 - 1.0;
        let x: Vec<f32> = (0..count * k).map(|i| v(i) * (1.0 + (i / 128 % 5) as f32)).collect();
        let bytes = rows(&x, k);
        assert_eq!(Dim::from(bytes.len() / count), e4m3_row_bytes(&Dim::from(3usize)));
        let ones = panels(&vec![1.0; k * PANEL], k);
        assert_eq!(ones.len(), 3 * E4M3_PANEL_BYTES);
        for (row, got) in x.chunks(k).zip(product(&bytes, &ones, 3).chunks(PANEL)) {
            let want: f64 = row.iter().map(|v| f64::from(*v)).sum();
            let most: f64 = row.iter().map(|v| f64::from(v.abs())).sum();
            assert!(got.iter().all(|y| (y - want).abs() <= most / 16.0), "{got:?}, not {want}");
        }
        for (i, v) in x.iter().take(k).enumerate() {
            let scale = scale(&bytes[3 * E4M3_BLOCK + i / E4M3_BLOCK * 4..]);
            let got = f64::from(value(bytes[i])) * scale;
            let error = (got - f64::from(*v)).abs();
            assert!(error <= f64::from(v.abs()) / 16.0 + scale / 1024.0, "{v} is {got}");
        }
    }

    #[test]
    fn what_is_not_finite_stays_so_and_zeros_are_zeros() {
        let mut x = vec![0.0f32; 4 * E4M3_BLOCK];
        (x[5], x[E4M3_BLOCK + 5], x[2 * E4M3_BLOCK]) = (f32::NAN, f32::INFINITY, 1e-45);
        let w = panels(&vec![1.0; E4M3_BLOCK * PANEL], E4M3_BLOCK);
        let sums: Vec<f64> = product(&rows(&x, E4M3_BLOCK), &w, 1);
        assert!(sums[0].is_nan() && !sums[PANEL].is_finite());
        assert!(sums[2 * PANEL..].iter().all(|y| *y == 0.0), "{:?}", &sums[2 * PANEL..]);
    }
}
