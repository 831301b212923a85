//! Quantised weights as the lanes of a GPU's warp read them.
//!
//! A panel is a row of groups of two blocks. A group is its scales, `[8][2 blocks][2 columns]` in
//! f16, so that lane `4g + t` finds those of columns `2g` and `2g + 1` in eight bytes; then the
//! integers of those columns at `8t..8t + 8` of each block, sixteen bytes a lane and load. Columns
//! `2g` and `2g + 1` are rows `g` and `g + 8` of the left operand of `mma.m16n8k16`, whose four
//! words hold pairs of k: word `i` of product `s` has of column `2g + i % 2` the integers at
//! `8t + 4s + i / 2 · 2` and the next. K is filled up with zeros.
//!
//! - 4 bits: `[32 lanes][2 blocks][2 products]` of a word in which half-byte `i` is the first
//!   integer of word `i`, `q + 8`, and half-byte `4 + i` the second.
//! - 8 bits: `[2 blocks][32 lanes][2 products][2]` of a word in which bytes 0 and 2 are word `2j`,
//!   bytes 1 and 3 word `2j + 1`.

use half::f16;

use super::{Dim, PANEL, QUANT_BLOCK, Quantized};

/// k of a group.
pub const QUANT_GROUP: usize = 2 * QUANT_BLOCK;

/// Bytes of scales of a group.
const SCALES: usize = 4 * PANEL;

/// Bytes of a group of a panel in lanes.
pub const fn quant_lane_bytes(bits: usize) -> usize {
    2 * super::quant_weight_bytes(bits)
}

/// Bits of a quantised weight in lanes, from the bytes of its groups.
pub fn quant_lane_bits(bytes: &Dim) -> Option<usize> {
    [4, 8].into_iter().find(|bits| *bytes == Dim::from(quant_lane_bytes(*bits)))
}

/// Where a group's scale of a column of a block is.
const fn scale_at(block: usize, c: usize) -> usize {
    2 * (c / 2 * 4 + block * 2 + c % 2)
}

/// Where a group's integer of k and column is: byte, and shift within it.
const fn integer_at(bits: usize, k: usize, c: usize) -> (usize, u32) {
    let (block, k) = (k / QUANT_BLOCK, k % QUANT_BLOCK);
    let lane = c / 2 * 4 + k / 8;
    let (product, word, second) = (k / 4 % 2, k / 2 % 2 * 2 + c % 2, k % 2);
    if bits == 8 {
        let at = ((block * 32 + lane) * 4 + product * 2 + word / 2) * 4;
        (SCALES + at + word % 2 + 2 * second, 0)
    } else {
        let at = ((lane * 2 + block) * 2 + product) * 4;
        let half = second * 4 + word;
        (SCALES + at + half / 2, if half % 2 == 0 { 0 } else { 4 })
    }
}

/// Panels of blocks in steps, `panel_bytes` each, as panels of groups.
pub(super) fn arrange(steps: &[u8], panel_bytes: usize, bits: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for panel in steps.chunks_exact(panel_bytes.max(1)) {
        for pair in super::blocks(panel, bits).chunks(2) {
            let start = out.len();
            out.resize(start + quant_lane_bytes(bits), 0);
            write_group(pair, bits, &mut out[start..]);
        }
    }
    out
}

fn write_group(blocks: &[Quantized], bits: usize, out: &mut [u8]) {
    let zero = ([f16::ZERO; PANEL], [[0i8; PANEL]; QUANT_BLOCK]);
    for block in 0..2 {
        let (scales, q) = blocks.get(block).unwrap_or(&zero);
        for (c, scale) in scales.iter().enumerate() {
            out[scale_at(block, c)..][..2].copy_from_slice(&scale.to_le_bytes());
        }
        for (k, row) in q.iter().enumerate() {
            for (c, q) in row.iter().enumerate() {
                let (at, shift) = integer_at(bits, block * QUANT_BLOCK + k, c);
                let stored = if bits == 8 { *q } else { *q + 8 };
                out[at] |= stored.cast_unsigned() << shift;
            }
        }
    }
}

/// As [`super::blocks`], of a weight in lanes: two blocks for each group.
pub(in crate::ops) fn blocks(bytes: &[u8], bits: usize) -> Vec<Quantized> {
    let groups = bytes.chunks_exact(quant_lane_bytes(bits));
    let read = |group: &[u8], block: usize| {
        let scale = |c: usize| {
            let at = scale_at(block, c);
            f16::from_le_bytes([group[at], group[at + 1]])
        };
        let value = |k: usize, c: usize| {
            let (at, shift) = integer_at(bits, block * QUANT_BLOCK + k, c);
            let stored = group[at] >> shift;
            if bits == 8 { stored.cast_signed() } else { (stored & 15).cast_signed() - 8 }
        };
        let integers = |k: usize| std::array::from_fn(|c| value(k, c));
        (std::array::from_fn(scale), std::array::from_fn(integers))
    };
    groups.flat_map(|group| [read(group, 0), read(group, 1)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_its_place_and_reads_back() {
        for bits in [4, 8] {
            let steps: Vec<u8> = (0..3 * super::super::quant_weight_bytes(bits))
                .map(|i| if i % 7 == 0 { 0x35 } else { u8::try_from(i * 37 % 251).unwrap() })
                .collect();
            let lanes = arrange(&steps, steps.len(), bits);
            assert_eq!(lanes.len(), 2 * quant_lane_bytes(bits));
            let (want, got) = (super::super::blocks(&steps, bits), blocks(&lanes, bits));
            let bits_of = |blocks: &[Quantized]| {
                let one = |(scales, q): &Quantized| (scales.map(f16::to_bits), *q);
                blocks.iter().map(one).collect::<Vec<_>>()
            };
            assert_eq!(bits_of(&got[..3]), bits_of(&want));
            assert_eq!(bits_of(&got[3..]), [([0; PANEL], [[0; PANEL]; QUANT_BLOCK])]);
        }
    }
}
