//! Many rows: blocks of K, of x (in L2) and of W (widened to f32, in L1), and register tiles of
//! `tile_rows` x `tile_panels`.

use super::epilogue::Output;
use super::{Chunk, Cmp, Elem, Gen, PANEL, SUMS, Ty, Val, size};

/// Steps of k in an iteration: half of the instructions of a step are multiply-adds, and each one
/// saved counts where two hardware threads share a core's front end.
pub(super) const UNROLL: u64 = 4;

/// A block of K.
#[derive(Clone, Copy)]
struct Block {
    first_k: Val,
    steps: Val,
}

/// What a register tile works on.
struct Tile<'a> {
    /// f32 `[k][16]` of each panel.
    w: &'a [Val],
    /// First panel and row, counted in the chunk.
    panel: Val,
    row: Val,
    /// Where each step of k prefetches, and how far it moves on.
    ahead: &'a [Val],
    ahead_step: Val,
}

impl Gen<'_> {
    /// A chunk of more than `DIRECT_ROWS` rows.
    pub(super) fn blocked(&self, output: &Output, chunk: Chunk) {
        let (e, plan) = (self.e, self.plan);
        let k = e.i64(size(self.spec.k));
        let single = plan.k_block >= self.spec.k;
        e.for_each(e.i64(0), k, size(plan.k_block), |first_k| {
            let steps =
                if single { k } else { e.min(e.i64(size(plan.k_block)), e.sub(k, first_k)) };
            let block = Block { first_k, steps };
            self.copy_x(chunk, block, single);
            let at_once = size(plan.tile_panels);
            let grouped = e.sub(chunk.panels, e.rem_unsigned(chunk.panels, e.i64(at_once)));
            e.for_each(e.i64(0), grouped, at_once, |panel| {
                self.block_panels(output, chunk, block, panel, at_once);
            });
            if at_once > 1 {
                e.for_each(grouped, chunk.panels, 1, |panel| {
                    self.block_panels(output, chunk, block, panel, 1);
                });
            }
        });
    }

    /// Copies the block of x to scratch, unless an earlier chunk of the call did.
    fn copy_x(&self, chunk: Chunk, block: Block, single: bool) {
        let e = self.e;
        let copy = || {
            let vectors = e.mul_const(e.div_unsigned(block.steps, e.i64(16)), 16);
            e.for_each(e.i64(0), chunk.rows, 1, |row| {
                let from = e.at(self.x_row(e.add(chunk.first_row, row)), Elem::F32, block.first_k);
                let to = self.copied_row(row);
                e.for_each(e.i64(0), vectors, 16, |k| {
                    e.store_at(e.load_at(SUMS, from, k), to, k);
                });
                e.for_each(vectors, block.steps, 1, |k| {
                    e.store_at(e.load_at(Ty::Scalar(Elem::F32), from, k), to, k);
                });
            });
        };
        if single {
            e.if_then(chunk.is_first, copy);
        } else {
            copy();
        }
    }

    fn copied_row(&self, row: Val) -> Val {
        self.e.at(self.copied, Elem::F32, self.e.mul_const(row, size(self.plan.copy_stride())))
    }

    /// Adds the block's products for `count` panels to all rows of the chunk; after the last block,
    /// writes y.
    fn block_panels(&self, output: &Output, chunk: Chunk, block: Block, panel: Val, count: i64) {
        let (e, plan) = (self.e, self.plan);
        let first = e.add(chunk.first_panel, panel);
        let widen = |index: i64| self.widen(self.panel(e.add_const(first, index)), block, index);
        let w: Vec<Val> = (0..count).map(widen).collect();
        let next: Vec<Val> =
            (0..count).map(|index| self.panel(e.add_const(first, count + index))).collect();
        let finished = self.finished(block, panel, count);
        let tiles = e.div_ceil_const(chunk.rows, size(plan.tile_rows));
        // Bytes of the next panels' block that each step of k prefetches.
        let line = e.i64(size(PANEL * self.spec.weight.bytes()));
        let ahead_step = e.div_unsigned(e.add_const(e.add(line, tiles), -1), tiles);
        self.row_tiles(chunk, |tile, row, rows| {
            let offset = e.mul(e.mul(tile, block.steps), ahead_step);
            let ahead: Vec<Val> = next
                .iter()
                .map(|&panel| e.at(self.block_start(panel, block), Elem::I8, offset))
                .collect();
            let tile = Tile { w: &w, panel, row, ahead: &ahead, ahead_step };
            let cases: Vec<i64> = (size(plan.least_tile_rows())..=size(plan.tile_rows)).collect();
            e.switch(rows, &cases, |rows| self.tile(chunk, block, &tile, rows));
            let write = || {
                let shift = size(self.spec.halves()) - count;
                let from = if shift > 0 { e.add_const(panel, -shift) } else { panel };
                let panels = from..e.add_const(panel, count);
                self.epilogue(output, chunk, panels, row..e.add(row, rows));
            };
            match finished {
                Some(finished) => e.if_then(finished, write),
                None => write(),
            }
        });
    }

    /// Whether the sums of these panels are complete; `None` where they always are.
    fn finished(&self, block: Block, panel: Val, count: i64) -> Option<Val> {
        let e = self.e;
        let last = (self.plan.k_block < self.spec.k).then(|| {
            let next = e.add(block.first_k, block.steps);
            e.cmp(Cmp::Eq, next, e.i64(size(self.spec.k)))
        });
        let up = (count < size(self.spec.halves()))
            .then(|| e.cmp(Cmp::Ne, e.and(panel, e.i64(1)), e.i64(0)));
        match (last, up) {
            (Some(last), Some(up)) => Some(e.and(last, up)),
            (last, up) => last.or(up),
        }
    }

    /// The block of one panel as f32 `[k][16]`: W itself, or its widened copy.
    fn widen(&self, panel: Val, block: Block, index: i64) -> Val {
        let e = self.e;
        if self.spec.weight == Elem::F32 {
            return self.block_start(panel, block);
        }
        let start = index * size(self.plan.k_block * PANEL);
        let widened = e.at_const(self.widened, Elem::F32, start);
        e.for_each(e.i64(0), block.steps, 1, |k| {
            let w = self.weights(panel, e.add(block.first_k, k));
            e.store_at(w, widened, e.mul_const(k, size(PANEL)));
        });
        widened
    }

    /// Where a panel's block begins in packed W.
    fn block_start(&self, panel: Val, block: Block) -> Val {
        let e = self.e;
        e.at(panel, self.spec.weight, e.mul_const(block.first_k, size(PANEL)))
    }

    /// The register tile: `rows` rows times the panels, over the block.
    fn tile(&self, chunk: Chunk, block: Block, tile: &Tile<'_>, rows: i64) {
        let e = self.e;
        let first = self.copied_row(tile.row);
        let stride = size(self.plan.copy_stride());
        let x: Vec<Val> = (0..rows).map(|r| e.at_const(first, Elem::F32, r * stride)).collect();
        let places: Vec<Val> = (0..)
            .zip(tile.w)
            .flat_map(|(p, _)| (0..rows).map(move |r| (p, r)))
            .map(|(p, r)| self.sum_row(chunk, e.add_const(tile.panel, p), e.add_const(tile.row, r)))
            .collect();
        let zero = e.zero(SUMS);
        let begin = e.cmp(Cmp::Eq, block.first_k, e.i64(0));
        let init: Vec<Val> = places
            .iter()
            .map(|&place| {
                if self.plan.k_block >= self.spec.k {
                    zero
                } else {
                    e.select(begin, zero, e.load(SUMS, place))
                }
            })
            .collect();
        let step = |k: Val, sums: &[Val]| {
            let w: Vec<Val> =
                tile.w.iter().map(|&w| e.load_at(SUMS, w, e.mul_const(k, size(PANEL)))).collect();
            self.step(&x, k, &w, sums)
        };
        // Blocks are multiples of 16 but for what is left of K.
        let unroll = self.plan.unroll;
        let whole = if self.spec.k.is_multiple_of(unroll) {
            block.steps
        } else {
            e.sub(block.steps, e.rem_unsigned(block.steps, e.i64(size(unroll))))
        };
        let mut sums = e.for_loop(e.i64(0), whole, size(unroll), &init, |k, sums| {
            for &ahead in tile.ahead {
                e.prefetch_l2(e.at(ahead, Elem::I8, e.mul(k, tile.ahead_step)));
            }
            let steps = 0..size(unroll);
            steps.fold(sums.to_vec(), |sums, i| step(e.add_const(k, i), &sums))
        });
        if !self.spec.k.is_multiple_of(unroll) {
            sums = e.for_loop(whole, block.steps, 1, &sums, step);
        }
        for (sum, place) in sums.into_iter().zip(places) {
            e.store(sum, place);
        }
    }
}
