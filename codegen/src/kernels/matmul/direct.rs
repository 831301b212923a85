//! Few rows: sums of several panels at once, straight from packed W.
//!
//! Each panel is one sequential stream from memory. Several streams at once, each prefetched a
//! fixed distance ahead, keep enough cache lines in flight to saturate the memory bus; the end of a
//! panel prefetches the beginning of the one that its stream goes on with. Further tiles of rows
//! find the panel in cache.

use super::epilogue::Output;
use super::{Chunk, Elem, Gen, LANES, PANEL, SUMS, Ty, Val, size};

/// Bytes of W in flight over all streams: about the latency of memory times its bandwidth.
pub(super) const PREFETCH_BYTES: u64 = 10 << 10;

/// Steps of k in a loop iteration.
const UNROLL: u64 = 4;

impl Gen<'_> {
    /// A chunk of at most `DIRECT_ROWS` rows.
    pub(super) fn direct(&self, output: &Output, chunk: Chunk) {
        let e = self.e;
        let cases: Vec<i64> = (1..=size(self.plan.tile_rows)).collect();
        self.row_tiles(chunk, |_, row, rows| {
            e.switch(rows, &cases, |rows| {
                let at_once = size(self.panels_at_once(rows.cast_unsigned()));
                let rest = e.rem_unsigned(chunk.panels, e.i64(at_once));
                let grouped = e.sub(chunk.panels, rest);
                e.for_each(e.i64(0), grouped, at_once, |panel| {
                    self.direct_panels(chunk, panel, row, rows, at_once);
                });
                if at_once > 1 {
                    e.for_each(grouped, chunk.panels, 1, |panel| {
                        self.direct_panels(chunk, panel, row, rows, 1);
                    });
                }
            });
        });
        let zero = e.i64(0);
        self.epilogue(output, chunk, zero..chunk.panels, zero..chunk.rows);
    }

    /// Panels whose sums fit the registers together, with room for widening W.
    fn panels_at_once(&self, rows: u64) -> u64 {
        let sums = self.plan.accumulators * 2 / 3;
        (sums / (rows * self.plan.panel_registers)).clamp(1, 4)
    }

    fn direct_panels(&self, chunk: Chunk, panel: Val, row: Val, rows: i64, panels: i64) {
        let e = self.e;
        let first = e.add(chunk.first_row, row);
        let x: Vec<Val> = (0..rows).map(|r| self.x_row(e.add_const(first, r))).collect();
        let first = e.add(chunk.first_panel, panel);
        let w: Vec<Val> = (0..panels).map(|panel| self.panel(e.add_const(first, panel))).collect();

        let (k, elem) = (self.spec.k, self.spec.weight);
        let line = PANEL * elem.bytes();
        let ahead = self.plan.prefetch_bytes / panels.cast_unsigned() / line;
        let unrolled = k / UNROLL * UNROLL;
        let own = k.saturating_sub(ahead) / UNROLL * UNROLL;
        let next = size(ahead) + size(k) * (panels - 1);
        let one = |k: Val, sums: &[Val]| {
            let w: Vec<Val> = w.iter().map(|&w| self.widened_lanes(w, k)).collect();
            self.step(&x, k, &w, sums)
        };
        let several = |k: Val, sums: &[Val], ahead: i64| {
            let mut sums = sums.to_vec();
            for step in 0..UNROLL {
                if (step * line).is_multiple_of(64) {
                    for &w in &w {
                        let k = e.add_const(k, size(step) + ahead);
                        e.prefetch(e.at(w, elem, e.mul_const(k, size(PANEL))));
                    }
                }
                sums = one(e.add_const(k, size(step)), &sums);
            }
            sums
        };
        let mut sums = vec![e.zero(SUMS); x.len() * w.len()];
        for (from, to, ahead) in [(0, own, size(ahead)), (own, unrolled, next)] {
            if from < to {
                let (from, to) = (e.i64(size(from)), e.i64(size(to)));
                sums = e.for_loop(from, to, size(UNROLL), &sums, |k, sums| several(k, sums, ahead));
            }
        }
        for k in unrolled..k {
            sums = one(e.i64(size(k)), &sums);
        }
        let mut sums = sums.into_iter();
        for p in 0..panels {
            for (r, sum) in (0..rows).zip(&mut sums) {
                let start = self.sum_row(chunk, e.add_const(panel, p), e.add_const(row, r));
                e.store(self.lanes_in_order(sum), start);
            }
        }
    }

    /// Whether sums are kept with even columns first.
    const fn splits_pairs(&self) -> bool {
        matches!(self.spec.weight, Elem::Bf16) && self.plan.panel_registers == 2
    }

    /// Row `k` of a panel, widened to f32 with its lanes in whatever order is cheapest.
    ///
    /// Two bf16 in a 32-bit lane widen by one shift (the lower) and one mask (the upper), where
    /// widening in order takes a shuffle and a shift for each half.
    fn widened_lanes(&self, panel: Val, k: Val) -> Val {
        if !self.splits_pairs() {
            return self.weights(panel, k);
        }
        let e = self.e;
        let at = e.at(panel, Elem::Bf16, e.mul_const(k, size(PANEL)));
        let pairs = e.load(Ty::Vector(Elem::I32, LANES / 2), at);
        let halves = Ty::Vector(Elem::F32, LANES / 2);
        let even = e.bitcast(e.shl(pairs, 16), halves);
        let odd = e.bitcast(e.and(pairs, e.int(pairs.ty(), -0x1_0000)), halves);
        let all: Vec<u32> = (0..LANES).collect();
        e.shuffle(even, odd, &all)
    }

    /// Sums over [`Self::widened_lanes`] in the order of columns.
    fn lanes_in_order(&self, sums: Val) -> Val {
        if !self.splits_pairs() {
            return sums;
        }
        let order: Vec<u32> = (0..LANES).map(|lane| lane / 2 + lane % 2 * (LANES / 2)).collect();
        self.e.shuffle(sums, sums, &order)
    }

    /// Row `k` of a panel, widened to f32.
    pub(super) fn weights(&self, panel: Val, k: Val) -> Val {
        let e = self.e;
        let packed = Ty::Vector(self.spec.weight, LANES);
        e.cast(e.load_at(packed, panel, e.mul_const(k, size(PANEL))), Elem::F32)
    }
}
