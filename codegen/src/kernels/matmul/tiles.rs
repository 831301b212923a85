//! What is computed together: the call's tiles as chunks, and rows of a chunk as register tiles.
//!
//! Tiles are groups of column panels, of all rows or of a block of them. With many rows and few
//! columns, blocks have a thread copy its rows of x once, and not for each group.

use super::{Chunk, Cmp, Elem, Gen, Plan, Val, size};

impl Gen<'_> {
    /// Rows evenly in blocks, and in each block the call's panels in chunks.
    pub(super) fn chunks(&self, body: impl FnOnce(Chunk)) {
        let (e, plan) = (self.e, self.plan);
        let m = self.m;
        let blocks = e.max(e.div_ceil_const(m, size(plan.row_block)), e.i64(1));
        let (rows, longer) = (e.div_unsigned(m, blocks), e.rem_unsigned(m, blocks));
        let tiles = e.i64(size(self.spec.tiles()));
        let (first, last) = if self.spec.split_rows {
            let end = e.div_unsigned(e.add_const(e.add(e.tile_end(), tiles), -1), tiles);
            (e.div_unsigned(e.tile_begin(), tiles), e.min(end, blocks))
        } else {
            (e.i64(0), blocks)
        };
        e.for_each(first, last, 1, |block| {
            let first_row = e.add(e.mul(block, rows), e.min(block, longer));
            let extra = e.cast(e.cmp(Cmp::Lt, block, longer), Elem::I64);
            let rows = e.add(rows, extra);
            let (begin, end) = self.panels_of(block, tiles);
            let at_most = |limit: u64| e.cmp(Cmp::Le, rows, e.i64(size(limit)));
            // With several tiles of rows, each panel meets all of them while it is in cache.
            let (single, several) = (Plan::DIRECT_CHUNK, self.spec.halves());
            let blocked = e.i64(size(plan.panel_chunk));
            let direct = at_most(Plan::DIRECT_ROWS);
            let step = match self.spec.bits {
                Some(_) => blocked,
                None => e.select(direct, e.i64(size(several)), blocked),
            };
            let step = e.select(at_most(plan.tile_rows), e.i64(size(single)), step);
            let count = e.div_unsigned(e.add_const(e.add(e.sub(end, begin), step), -1), step);
            e.for_each(e.i64(0), count, 1, |index| {
                let first_panel = e.add(begin, e.mul(index, step));
                let panels = e.min(step, e.sub(end, first_panel));
                let is_first = e.cmp(Cmp::Eq, index, e.i64(0));
                body(Chunk { is_first, first_panel, panels, first_row, rows });
            });
        });
    }

    /// The first panel of a block of rows in this call, and the one behind the last.
    fn panels_of(&self, block: Val, tiles: Val) -> (Val, Val) {
        let e = self.e;
        let (mut first, mut last) = (e.tile_begin(), e.tile_end());
        if self.spec.split_rows {
            let before = e.mul(block, tiles);
            first = e.max(e.sub(first, before), e.i64(0));
            last = e.min(e.sub(last, before), tiles);
        }
        let per_tile = size(self.spec.panels_per_tile);
        let begin = e.mul_const(first, per_tile);
        let end = e.min(e.mul_const(last, per_tile), e.i64(size(self.spec.panels())));
        (begin, e.max(begin, end))
    }

    /// Splits the chunk's rows evenly in register tiles: `body(tile, first row, rows)`.
    pub(super) fn row_tiles(&self, chunk: Chunk, body: impl FnOnce(Val, Val, Val)) {
        let e = self.e;
        let tiles = e.div_ceil_const(chunk.rows, size(self.plan.tile_rows));
        let parts = e.max(tiles, e.i64(1));
        let (short, longer) =
            (e.div_unsigned(chunk.rows, parts), e.rem_unsigned(chunk.rows, parts));
        e.for_each(e.i64(0), tiles, 1, |tile| {
            let row = e.add(e.mul(tile, short), e.min(tile, longer));
            let rows = e.add(short, e.cast(e.cmp(Cmp::Lt, tile, longer), Elem::I64));
            body(tile, row, rows);
        });
    }
}
