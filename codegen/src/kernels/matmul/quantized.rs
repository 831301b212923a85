//! Quantised rows times quantised weights, any number of rows.
//!
//! A step is four k of sixteen columns: 32-bit lanes of four bytes, so that one broadcast of four
//! bytes of x meets eight columns at once.
//!
//! - 4 bits: W is 0..15, unsigned, and `pmaddubsw` multiplies it by the signed x. Eight steps of a
//!   block sum to at most 8 · 2 · 15 · 127 = 30480, which a 16-bit lane holds; what the shift of W
//!   by 8 adds is taken off by the sum of x that a row's block carries.
//! - 8 bits: `pmaddubsw` takes |W| and x with W's sign; 2 · 127 · 127 fits 16 bits, but not twice,
//!   so that every step is widened.
//!
//! Several panels at once, each prefetched ahead, are as many streams from memory, as in `direct`;
//! further tiles of rows find the panel in cache.

use super::epilogue::Output;
use super::{Chunk, Elem, Gen, LANES, Matmul, PANEL, Plan, SUMS, Ty, Val, size};

/// Values that share a scale.
pub(super) const BLOCK: u64 = ir::QUANT_BLOCK as u64;

/// Bytes of a block of a row of x: scale, sum, integers.
pub(super) const ROW_BYTES: u64 = ir::QUANT_ROW_BYTES as u64;

/// Bytes of a block of a panel of W: scales, integers.
pub(super) const fn weight_bytes(bits: u32) -> u64 {
    ir::quant_weight_bytes(bits as usize) as u64
}

/// k of a step, and steps of a block.
const STEP: i64 = 4;
const STEPS: i64 = BLOCK as i64 / STEP;

/// Bytes of W in flight over all streams.
const PREFETCH_BYTES: u64 = 4 << 10;

/// Rows of a tile: their 16-bit or 32-bit sums, the step of W and x fill the registers.
const TILE_ROWS: u64 = 4;

/// Half a panel's step: bytes, pairs, columns.
const BYTES: Ty = Ty::Vector(Elem::I8, 32);
const PAIRS: Ty = Ty::Vector(Elem::I16, 16);
const COLUMNS: Ty = Ty::Vector(Elem::I32, 8);

pub(super) fn plan(spec: &Matmul, panel_registers: u64) -> Plan {
    let row_block = spec.max_rows.clamp(1, 384).next_multiple_of(TILE_ROWS);
    Plan {
        tile_rows: TILE_ROWS,
        tile_panels: 0,
        accumulators: 0,
        panel_registers,
        k_block: 0,
        row_block,
        panel_chunk: spec.halves(),
        unroll: 1,
        prefetch_bytes: spec.schedule.prefetch_bytes.unwrap_or(PREFETCH_BYTES),
    }
}

/// A block of a panel of W.
#[derive(Clone, Copy)]
struct Panel {
    at: Val,
    /// Bytes from here to the block that is prefetched meanwhile.
    ahead: i64,
    bits: u32,
}

impl Gen<'_> {
    /// A chunk of any number of rows.
    pub(super) fn quantized(&self, output: &Output, chunk: Chunk, bits: u32) {
        let e = self.e;
        let cases: Vec<i64> = (1..=size(TILE_ROWS)).collect();
        self.row_tiles(chunk, |_, row, rows| {
            e.switch(rows, &cases, |rows| {
                let at_once = (size(TILE_ROWS) / rows).max(1);
                let rest = e.rem_unsigned(chunk.panels, e.i64(at_once));
                let grouped = e.sub(chunk.panels, rest);
                e.for_each(e.i64(0), grouped, at_once, |panel| {
                    self.quantized_panels(chunk, panel, row, rows, at_once, bits);
                });
                if at_once > 1 {
                    e.for_each(grouped, chunk.panels, 1, |panel| {
                        self.quantized_panels(chunk, panel, row, rows, 1, bits);
                    });
                }
            });
        });
        let zero = e.i64(0);
        self.epilogue(output, chunk, zero..chunk.panels, zero..chunk.rows);
    }

    fn quantized_panels(
        &self,
        chunk: Chunk,
        panel: Val,
        row: Val,
        rows: i64,
        panels: i64,
        bits: u32,
    ) {
        let e = self.e;
        let first = e.add(chunk.first_row, row);
        let x: Vec<Val> = (0..rows).map(|r| self.x_row(e.add_const(first, r))).collect();
        let first = e.add(chunk.first_panel, panel);
        let w: Vec<Val> = (0..panels).map(|panel| self.panel(e.add_const(first, panel))).collect();

        let (blocks, block_bytes) = (self.spec.blocks(), weight_bytes(bits));
        let ahead = self.plan.prefetch_bytes / panels.cast_unsigned() / block_bytes;
        let own = blocks.saturating_sub(ahead);
        let next = size(ahead * block_bytes);
        let beyond = next + size(self.spec.panel_bytes()) * (panels - 1);
        let mut sums = vec![e.zero(SUMS); x.len() * w.len()];
        for (from, to, ahead) in [(0, own, next), (own, blocks, beyond)] {
            if from == to {
                continue;
            }
            let (from, to) = (e.i64(size(from)), e.i64(size(to)));
            sums = e.for_loop(from, to, 1, &sums, |block, sums| {
                let at =
                    |base: Val, bytes: u64| e.at(base, Elem::I8, e.mul_const(block, size(bytes)));
                let x: Vec<Val> = x.iter().map(|&x| at(x, ROW_BYTES)).collect();
                let mut next = Vec::with_capacity(sums.len());
                for (&w, sums) in w.iter().zip(sums.chunks(x.len())) {
                    let w = Panel { at: at(w, block_bytes), ahead, bits };
                    next.extend(self.block(&x, w, sums));
                }
                next
            });
        }
        let mut sums = sums.into_iter();
        for p in 0..panels {
            for (r, sum) in (0..rows).zip(&mut sums) {
                e.store(sum, self.sum_row(chunk, e.add_const(panel, p), e.add_const(row, r)));
            }
        }
    }

    /// Adds one block of one panel to the sums of every row.
    fn block(&self, x: &[Val], w: Panel, sums: &[Val]) -> Vec<Val> {
        let e = self.e;
        let dots = if w.bits == 4 { self.dots_4(x, w) } else { self.dots_8(x, w) };
        let scales = e.cast(e.load(Ty::Vector(Elem::F16, LANES), w.at), Elem::F32);
        let add = |((x, sum), dot): ((&Val, &Val), Val)| {
            let scale = e.splat(e.load(Ty::Scalar(Elem::F32), *x), LANES);
            e.fma(e.cast(dot, Elem::F32), e.mul(scales, scale), *sum)
        };
        x.iter().zip(sums).zip(dots).map(add).collect()
    }

    /// Where a step's integers are; prefetches its share of the lines of a later block, since all
    /// at once they would fill the queue of misses.
    fn integers(&self, w: Panel, step: i64) -> Val {
        let e = self.e;
        let lines = size(weight_bytes(w.bits).div_ceil(64));
        for line in step * lines / STEPS..(step + 1) * lines / STEPS {
            e.prefetch(e.at_const(w.at, Elem::I8, w.ahead + line * 64));
        }
        let bytes = size(PANEL) * STEP * i64::from(w.bits) / 8;
        e.at_const(w.at, Elem::I8, size(2 * PANEL) + step * bytes)
    }

    /// Four k of a row, in every lane.
    fn broadcast_step(&self, x: Val, step: i64) -> Val {
        let e = self.e;
        let at = e.at_const(x, Elem::I8, 8 + STEP * step);
        e.bitcast(e.splat(e.load(Ty::Scalar(Elem::I32), at), 8), BYTES)
    }

    /// Sixteen columns from their halves.
    fn columns(&self, halves: [Val; 2]) -> Val {
        let all: Vec<u32> = (0..LANES).collect();
        self.e.shuffle(halves[0], halves[1], &all)
    }

    fn dots_4(&self, x: &[Val], w: Panel) -> Vec<Val> {
        let e = self.e;
        let mut sums = vec![[e.zero(PAIRS); 2]; x.len()];
        for step in 0..STEPS {
            let both = e.load(BYTES, self.integers(w, step));
            let low = e.and(both, e.int(BYTES, 15));
            let high = e.bitcast(e.shr(e.bitcast(both, PAIRS), 4), BYTES);
            let halves = [low, e.and(high, e.int(BYTES, 15))];
            for (x, sums) in x.iter().zip(&mut sums) {
                let x = self.broadcast_step(*x, step);
                for (sum, w) in sums.iter_mut().zip(halves) {
                    *sum = e.add(*sum, self.multiply_bytes(w, x));
                }
            }
        }
        let finish = |(x, sums): (&Val, [Val; 2])| {
            let all = self.columns(sums.map(|sum| self.add_pairs(sum)));
            let sum = e.load(Ty::Scalar(Elem::I32), e.at_const(*x, Elem::I8, 4));
            e.sub(all, e.shl(e.splat(sum, LANES), 3))
        };
        x.iter().zip(sums).map(finish).collect()
    }

    fn dots_8(&self, x: &[Val], w: Panel) -> Vec<Val> {
        let e = self.e;
        let mut sums = vec![[e.zero(COLUMNS); 2]; x.len()];
        for step in 0..STEPS {
            let at = self.integers(w, step);
            let w = [0, 32].map(|byte| e.load(BYTES, e.at_const(at, Elem::I8, byte)));
            let sizes = w.map(|w| self.with_sign(w, w));
            for (x, sums) in x.iter().zip(&mut sums) {
                let x = self.broadcast_step(*x, step);
                for half in 0..2 {
                    let products = self.multiply_bytes(sizes[half], self.with_sign(x, w[half]));
                    sums[half] = e.add(sums[half], self.add_pairs(products));
                }
            }
        }
        sums.into_iter().map(|halves| self.columns(halves)).collect()
    }

    /// Unsigned times signed bytes, neighbours added, in 16 bits.
    fn multiply_bytes(&self, unsigned: Val, signed: Val) -> Val {
        self.e.call_intrinsic("llvm.x86.avx2.pmadd.ub.sw", &[unsigned, signed], PAIRS)
    }

    /// Neighbouring 16-bit sums added, in 32 bits.
    fn add_pairs(&self, pairs: Val) -> Val {
        let ones = self.e.int(PAIRS, 1);
        self.e.call_intrinsic("llvm.x86.avx2.pmadd.wd", &[pairs, ones], COLUMNS)
    }

    /// Bytes of `a`, negated where `sign` is negative, zero where it is zero.
    fn with_sign(&self, a: Val, sign: Val) -> Val {
        self.e.call_intrinsic("llvm.x86.avx2.psign.b", &[a, sign], BYTES)
    }
}
