//! Both sides of a product, a block of k at a time, in the order in which register tiles read them.

use ir::Dim;

use super::{K_BLOCK, Lhs, PANEL, Part, Product, Steps, TILE_ROWS};
use crate::{
    emit::{Elem, Val},
    lower::{
        cx::LANES,
        pack::{Rows, pack_rows},
        view::{View, memory_elem},
    },
};

/// How many steps of k ahead memory is asked for, where each is one short piece of it: they may be
/// pages apart, and the processor does not look ahead by itself.
const STEPS_AHEAD: i64 = 12;
/// The same for rows, whose pieces are of a block of k.
const ROWS_AHEAD: i64 = 2;

impl Product<'_> {
    /// A block of k of all panels, packed.
    pub(super) fn pack_panels(&self, part: &Part, steps: Steps, panels: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let each = |first: Val| {
            e.for_each(first, panels, 1, |panel| self.pack_panel(part, steps, panel));
        };
        if !part.b_axes[1].is(1) {
            each(e.i64(0));
            return;
        }
        // Lines of a row are next to each other in memory, and those of a panel a row apart.
        let whole = e.div_unsigned(part.columns, e.i64(PANEL));
        e.for_each(e.i64(0), steps.count, 1, |k| {
            let row = cx.scale(e.add(steps.first, k), &part.b_axes[0]);
            let row = part.b.at(cx, row);
            self.ask(&row, part.columns, &part.b_axes[0], STEPS_AHEAD);
            e.for_each(e.i64(0), whole, 1, |panel| {
                let from = e.mul_const(panel, PANEL);
                let line = row.load_strip(cx, from, &part.b_axes[1], LANES);
                e.store_at(line, self.panel(panel), e.mul_const(k, PANEL));
            });
        });
        each(whole);
    }

    /// That of one panel.
    pub(super) fn pack_panel(&self, part: &Part, steps: Steps, panel: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let from = cx.scale(e.mul_const(panel, PANEL), &part.b_axes[1]);
        let from = part.b.at(cx, cx.offset(from, steps.first, &part.b_axes[0]));
        // Columns of b are the rows that are packed.
        let rows = Rows {
            base: from.base,
            elem: memory_elem(part.b.dtype),
            row: &part.b_axes[1],
            column: &part.b_axes[0],
        };
        pack_rows(cx, &rows, self.columns(part, panel), steps.count, self.panel(panel));
    }

    /// A block of k of `rows`, the first of them and their number, in one piece for each register
    /// tile.
    pub(super) fn pack_lhs(&self, part: &Part, rows: (Val, Val), steps: Steps) -> Lhs<'static> {
        let (cx, e) = (self.cx, &self.cx.e);
        let first = cx.scale(rows.0, &part.a_axes[0]);
        let a = part.a.at(cx, cx.offset(first, steps.first, &part.a_axes[1]));
        let rows = rows.1;
        let [row_step, k_step] = &part.a_axes;
        if row_step.is(1) && !k_step.is(1) {
            // A step of k is one piece of memory, and its neighbour may be in the same cache set.
            let left = e.rem_unsigned(rows, e.i64(TILE_ROWS));
            let whole = e.sub(rows, left);
            let lanes = u32::try_from(TILE_ROWS).expect("few rows");
            e.for_each(e.i64(0), steps.count, 1, |k| {
                let column = a.at(cx, cx.scale(k, k_step));
                self.ask(&column, rows, k_step, STEPS_AHEAD);
                let put = |row: Val, lanes: u32| {
                    let value = column.load_strip(cx, row, row_step, lanes);
                    let lane = e.rem_unsigned(row, e.i64(TILE_ROWS));
                    e.store_at(value, self.lhs_tile(row), e.add(e.mul_const(k, TILE_ROWS), lane));
                };
                e.for_each(e.i64(0), whole, TILE_ROWS, |row| put(row, lanes));
                e.for_each(whole, rows, 1, |row| put(row, 1));
            });
            return Lhs::Packed { base: self.lhs, steps: [1, TILE_ROWS] };
        }
        e.for_each(e.i64(0), rows, 1, |row| {
            let from = cx.scale(row, row_step);
            if k_step.is(1) {
                self.ask(&a.at(cx, from), steps.count, row_step, ROWS_AHEAD);
            }
            let to = e.at(self.lhs, Elem::F32, e.mul_const(row, K_BLOCK));
            cx.strips(e.i64(0), steps.count, |k, lanes| {
                let value = a.load_strip(cx, cx.offset(from, k, k_step), k_step, lanes);
                e.store_at(value, to, k);
            });
        });
        Lhs::Packed { base: self.lhs, steps: [K_BLOCK, 1] }
    }

    /// Asks for the `count` dense elements that are so many steps behind these.
    fn ask(&self, line: &View, count: Val, step: &Dim, steps: i64) {
        let (cx, e) = (self.cx, &self.cx.e);
        let ahead = line.at(cx, cx.scale(e.i64(steps), step));
        let bytes = i64::try_from(memory_elem(line.dtype).bytes()).expect("few bytes");
        e.for_each(e.i64(0), count, 64 / bytes, |i| e.prefetch(ahead.at(cx, i).base));
    }

    /// Where the packed rows of a register tile begin.
    fn lhs_tile(&self, row: Val) -> Val {
        let e = &self.cx.e;
        let tile = e.div_unsigned(row, e.i64(TILE_ROWS));
        e.at(self.lhs, Elem::F32, e.mul_const(tile, TILE_ROWS * K_BLOCK))
    }
}
