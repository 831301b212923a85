//! Quantised rows times quantised weights, any number of rows.
//!
//! A step is as many k of sixteen columns as fill 32-bit lanes, so that one broadcast of x meets
//! eight columns at once.
//!
//! - 4 bits, four k: W is 0..15, unsigned, and `pmaddubsw` multiplies it by x in 8 bits. Eight
//!   steps of a block sum to at most 8 · 2 · 15 · 127 = 30480, which a 16-bit lane holds; what the
//!   shift of W by 8 adds is taken off by the sum of x that a row's block carries.
//! - 8 bits, two k: W is widened to 16 bits, once for all rows, and `pmaddwd` multiplies it by x in
//!   16 bits. (`pmaddubsw` of |W| and x with W's sign takes as many instructions, needs both W and
//!   |W| at hand, and rounds x to 8 bits.)
//!
//! Several panels at once, each prefetched ahead, are as many streams from memory, as in `direct`;
//! further tiles of rows find the panels in cache.

use super::epilogue::Output;
use super::{Chunk, Elem, Gen, LANES, Matmul, PANEL, Plan, SUMS, Ty, Val, size};

/// Values that share a scale.
pub(super) const BLOCK: u64 = ir::QUANT_BLOCK as u64;

/// Bytes of a block of a row of x.
pub(super) const fn row_bytes(bits: u32) -> u64 {
    ir::quant_row_bytes(bits as usize) as u64
}

/// Bytes of a block of a panel of W: scales, integers.
pub(super) const fn weight_bytes(bits: u32) -> u64 {
    ir::quant_weight_bytes(bits as usize) as u64
}

/// k of a step.
const fn step_k(bits: u32) -> i64 {
    16 / bits as i64
}

/// Steps of a block.
const fn steps(bits: u32) -> i64 {
    BLOCK as i64 / step_k(bits)
}

/// Bytes of W in flight over all streams.
const PREFETCH_BYTES: u64 = 4 << 10;

/// Panels at once for a single row.
const PANELS: i64 = 4;

/// Rows of a tile: their integer sums, the step of W and x fill the registers.
const fn tile_rows(bits: u32) -> u64 {
    if bits == 8 { 6 } else { 4 }
}

/// Panels whose blocks stay in L2 while rows pass by.
const CHUNK_BYTES: u64 = 256 << 10;

/// Steps of an iteration where there are many rows: LLVM reorders what it sees at once.
const UNROLL: i64 = 2;

/// Half a panel's step: bytes, pairs, columns.
const BYTES: Ty = Ty::Vector(Elem::I8, 32);
const PAIRS: Ty = Ty::Vector(Elem::I16, 16);
const COLUMNS: Ty = Ty::Vector(Elem::I32, 8);

pub(super) fn plan(spec: &Matmul, panel_registers: u64) -> Plan {
    let tile_rows = tile_rows(spec.bits.unwrap_or(8));
    let row_block = spec.max_rows.clamp(1, 384).next_multiple_of(tile_rows);
    let panels = (CHUNK_BYTES / spec.panel_bytes()).clamp(1, 8);
    Plan {
        tile_rows,
        tile_panels: 0,
        accumulators: 0,
        panel_registers,
        k_block: 0,
        row_block,
        panel_chunk: panels.next_multiple_of(spec.halves()),
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
        let rows_at_once = size(tile_rows(bits));
        let cases: Vec<i64> = (1..=rows_at_once).collect();
        self.row_tiles(chunk, |_, row, rows| {
            e.switch(rows, &cases, |rows| {
                let at_once = (PANELS / rows).max(1);
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
                let x: Vec<Val> = x.iter().map(|&x| at(x, row_bytes(bits))).collect();
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

    /// Where the integers of W are.
    fn integers(&self, w: Panel) -> Val {
        self.e.at_const(w.at, Elem::I8, size(2 * PANEL))
    }

    /// Prefetches a step's share of the lines of a later block, since all at once they would fill
    /// the queue of misses.
    fn prefetch_share(&self, w: Panel, step: i64) {
        let e = self.e;
        let (lines, steps) = (size(weight_bytes(w.bits).div_ceil(64)), steps(w.bits));
        for line in step * lines / steps..(step + 1) * lines / steps {
            e.prefetch(e.at_const(w.at, Elem::I8, w.ahead + line * 64));
        }
    }

    /// 32 bits of a row, in every lane.
    fn broadcast(&self, at: Val, to: Ty) -> Val {
        let e = self.e;
        e.bitcast(e.splat(e.load(Ty::Scalar(Elem::I32), at), 8), to)
    }

    /// Sixteen columns from their halves.
    fn columns(&self, halves: [Val; 2]) -> Val {
        let all: Vec<u32> = (0..LANES).collect();
        self.e.shuffle(halves[0], halves[1], &all)
    }

    fn dots_4(&self, x: &[Val], w: Panel) -> Vec<Val> {
        let e = self.e;
        let mut sums = vec![[e.zero(PAIRS); 2]; x.len()];
        for step in 0..steps(4) {
            self.prefetch_share(w, step);
            let both = e.load(BYTES, e.at_const(self.integers(w), Elem::I8, step * 32));
            let low = e.and(both, e.int(BYTES, 15));
            let high = e.bitcast(e.shr(e.bitcast(both, PAIRS), 4), BYTES);
            let halves = [low, e.and(high, e.int(BYTES, 15))];
            for (x, sums) in x.iter().zip(&mut sums) {
                let x = self.broadcast(e.at_const(*x, Elem::I8, 8 + 4 * step), BYTES);
                for (sum, w) in sums.iter_mut().zip(halves) {
                    *sum = e.add(*sum, self.multiply_bytes(w, x));
                }
            }
        }
        let finish = |(x, sums): (&Val, [Val; 2])| {
            let all = self.columns(sums.map(|sum| self.multiply_words(sum, e.int(PAIRS, 1))));
            let sum = e.load(Ty::Scalar(Elem::I32), e.at_const(*x, Elem::I8, 4));
            e.sub(all, e.shl(e.splat(sum, LANES), 3))
        };
        x.iter().zip(sums).map(finish).collect()
    }

    fn dots_8(&self, x: &[Val], w: Panel) -> Vec<Val> {
        let e = self.e;
        let unroll = if x.len() < 3 { steps(8) } else { UNROLL };
        let (lines, bytes) = (steps(8) / unroll, size(PANEL) * 2);
        let zeros = vec![e.zero(COLUMNS); 2 * x.len()];
        let sums = e.for_loop(e.i64(0), e.i64(steps(8)), unroll, &zeros, |first, sums| {
            let mut sums = sums.to_vec();
            let integers = e.at(self.integers(w), Elem::I8, e.mul_const(first, bytes));
            let x = x.iter().map(|x| e.at(*x, Elem::I8, e.mul_const(first, 4)));
            let x: Vec<Val> = x.map(|x| e.at_const(x, Elem::I8, 4)).collect();
            if lines > 1 {
                let ahead = e.at_const(w.at, Elem::I8, w.ahead);
                e.prefetch(e.at(ahead, Elem::I8, e.mul_const(first, 64 / unroll)));
            }
            for step in 0..unroll {
                if lines == 1 {
                    self.prefetch_share(w, step);
                }
                let half = |half: i64| {
                    let at = e.at_const(integers, Elem::I8, step * bytes + half * bytes / 2);
                    e.cast(e.load(Ty::Vector(Elem::I8, 16), at), Elem::I16)
                };
                let w = [half(0), half(1)];
                for (x, sums) in x.iter().zip(sums.chunks_mut(2)) {
                    let x = self.broadcast(e.at_const(*x, Elem::I8, 4 * step), PAIRS);
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = e.add(*sum, self.multiply_words(w, x));
                    }
                }
            }
            sums
        });
        if lines > 1 {
            e.prefetch(e.at_const(w.at, Elem::I8, w.ahead + lines * 64));
        }
        sums.chunks(2).map(|halves| self.columns([halves[0], halves[1]])).collect()
    }

    /// Unsigned times signed bytes, neighbours added, in 16 bits.
    fn multiply_bytes(&self, unsigned: Val, signed: Val) -> Val {
        self.e.call_intrinsic("llvm.x86.avx2.pmadd.ub.sw", &[unsigned, signed], PAIRS)
    }

    /// Signed 16-bit products, neighbours added, in 32 bits.
    fn multiply_words(&self, a: Val, b: Val) -> Val {
        self.e.call_intrinsic("llvm.x86.avx2.pmadd.wd", &[a, b], COLUMNS)
    }
}
