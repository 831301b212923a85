//! A block of rows times chunks of the other side of a product, for gradients that need the product
//! first and then sum one side by what became of it.
//!
//! Rows and chunk are copied to scratch as f32, the chunk also transposed into panels of sixteen,
//! so that whatever the layout, register tiles of six rows by sixteen columns do all the work.
//! Every product and every sum is one chain of fused multiply-adds.

use ir::Dim;

use super::{
    cx::{Cx, LANES},
    pack::{Rows, pack_rows},
    view::{View, memory_elem},
};
use crate::emit::{Cmp, Elem, Ty, Val};

/// Rows of the other side that are taken at a time.
pub(super) const CHUNK: i64 = 64;

/// Rows of the other side in a panel.
pub(super) const GROUP: i64 = 16;

/// Rows of a register tile; a short one repeats its last row.
pub(super) const TILE: i64 = 6;

/// Steps of a sum in an iteration: loop control costs as much as a multiply-add.
const UNROLL: i64 = 4;

pub(super) const VECTOR: Ty = Ty::Vector(Elem::F32, LANES);

pub(super) const SCALAR: Ty = Ty::Scalar(Elem::F32);

/// Rows of the other side.
#[derive(Clone, Copy)]
pub(super) struct Chunk {
    pub(super) first: Val,
    pub(super) count: Val,
}

/// Emission state: per pair of sides, which have rows of one width.
pub(super) struct Block<'c> {
    pub(super) cx: &'c Cx<'c>,
    pairs: Vec<Pair>,
    bytes: u64,
}

struct Pair {
    width: i64,
    /// f32 `[rows][pitch]`: the block's own rows, and sums.
    own: Val,
    sums: Val,
    /// f32 `[CHUNK][pitch]`: the other side's rows.
    other: Val,
    /// f32 `[CHUNK / 16][width][16]`: the same, transposed.
    panels: Val,
}

/// Floats between rows of scratch: whole vectors, and a cache line more for long rows, against
/// aliasing.
fn pitch(width: i64) -> i64 {
    vectors(width) + if width >= 256 { GROUP } else { 0 }
}

fn vectors(width: i64) -> i64 {
    (width + GROUP - 1) / GROUP * GROUP
}

impl<'c> Block<'c> {
    /// For blocks of at most `rows` rows.
    pub(super) fn new(cx: &'c Cx<'c>, widths: &[i64], rows: i64) -> Block<'c> {
        let mut block = Block { cx, pairs: Vec::new(), bytes: 0 };
        for &width in widths {
            let pair = Pair {
                width,
                own: block.take(rows * pitch(width)),
                sums: block.take(rows * pitch(width)),
                other: block.take(CHUNK * pitch(width)),
                panels: block.take(CHUNK * width),
            };
            block.pairs.push(pair);
        }
        block
    }

    /// Further scratch of so many floats.
    pub(super) fn take(&mut self, floats: i64) -> Val {
        let at = self.cx.scratch(self.bytes);
        self.bytes += (4 * floats).cast_unsigned().next_multiple_of(64);
        at
    }

    pub(super) fn scratch_bytes(&self) -> u64 {
        self.bytes
    }

    fn line(&self, base: Val, width: i64, row: Val) -> Val {
        let e = &self.cx.e;
        e.at(base, Elem::F32, e.mul_const(row, pitch(width)))
    }

    /// The block's own row, as it was taken.
    pub(super) fn own_row(&self, pair: usize, row: Val) -> Val {
        self.line(self.pairs[pair].own, self.pairs[pair].width, row)
    }

    /// A row of the chunk, as it was taken.
    pub(super) fn other_row(&self, pair: usize, row: Val) -> Val {
        self.line(self.pairs[pair].other, self.pairs[pair].width, row)
    }

    fn copy(&self, width: i64, to: Val, count: Val, row: impl FnOnce(Val) -> View) {
        let (cx, e) = (self.cx, &self.cx.e);
        e.for_each(e.i64(0), count, 1, |i| {
            let (from, to) = (row(i), self.line(to, width, i));
            let step = from.strides.last().expect("rows have an axis");
            cx.strips(e.i64(0), e.i64(width), |column, lanes| {
                let value = from.load_strip(cx, cx.scale(column, step), step, lanes);
                e.store_at(value, to, column);
            });
        });
    }

    /// Takes the block's own rows.
    pub(super) fn own(&self, pair: usize, count: Val, row: impl FnOnce(Val) -> View) {
        let Pair { width, own, .. } = self.pairs[pair];
        self.copy(width, own, count, row);
    }

    /// Takes a chunk of the other side.
    pub(super) fn other(&self, pair: usize, count: Val, row: impl FnOnce(Val) -> View) {
        let Pair { width, other, .. } = self.pairs[pair];
        self.copy(width, other, count, row);
        let rows = Rows {
            base: other,
            elem: Elem::F32,
            row: &Dim::from(pitch(width)),
            column: &Dim::from(1),
        };
        self.panels(pair, count, &rows);
    }

    /// Takes the rows of `view` as a chunk of the other side, for [`Block::products`] alone.
    pub(super) fn other_panels(&self, pair: usize, count: Val, view: &View) {
        let [row, column] = view.strides.as_slice() else { unreachable!("rows and columns") };
        let rows = Rows { base: view.base, elem: memory_elem(view.dtype), row, column };
        self.panels(pair, count, &rows);
    }

    fn panels(&self, pair: usize, count: Val, rows: &Rows<'_>) {
        let (cx, e) = (self.cx, &self.cx.e);
        let Pair { width, panels, .. } = self.pairs[pair];
        e.for_each(e.i64(0), e.div_ceil_const(count, GROUP), 1, |group| {
            let done = e.mul_const(group, GROUP);
            let base = e.at(rows.base, rows.elem, cx.scale(done, rows.row));
            let count = e.min(e.i64(GROUP), e.sub(count, done));
            let panel = e.at(panels, Elem::F32, e.mul_const(done, width));
            pack_rows(cx, &Rows { base, ..*rows }, count, e.i64(width), panel);
        });
    }

    /// Clears a row of the chunk, as [`Block::add`] takes it.
    pub(super) fn clear_other(&self, pair: usize, row: Val) {
        let e = &self.cx.e;
        let (to, width) = (self.other_row(pair, row), self.pairs[pair].width);
        e.for_each(e.i64(0), e.i64(vectors(width)), GROUP, |i| e.store_at(e.zero(VECTOR), to, i));
    }

    /// Clears the sums of so many rows.
    pub(super) fn clear(&self, pair: usize, rows: Val) {
        let e = &self.cx.e;
        let Pair { width, sums, .. } = self.pairs[pair];
        let count = e.mul_const(rows, pitch(width));
        e.for_each(e.i64(0), count, GROUP, |i| e.store_at(e.zero(VECTOR), sums, i));
    }

    /// Writes the sums, times `scale`.
    pub(super) fn finish(
        &self,
        pair: usize,
        rows: Val,
        scale: f64,
        result: impl FnOnce(Val) -> View,
    ) {
        let (cx, e) = (self.cx, &self.cx.e);
        let Pair { width, sums, .. } = self.pairs[pair];
        e.for_each(e.i64(0), rows, 1, |row| {
            let (to, from) = (result(row), self.line(sums, width, row));
            let step = to.strides.last().expect("rows have an axis");
            cx.strips(e.i64(0), e.i64(width), |column, lanes| {
                let sum = e.load_at(Ty::of(Elem::F32, lanes), from, column);
                // Factors of zero may turn -0 to +0; adding zero does it always.
                let value = e.add(e.mul(sum, e.like(sum, scale)), e.zero(sum.ty()));
                to.store_strip(cx, value, cx.scale(column, step), step);
            });
        });
    }

    /// Walks rows in register tiles.
    pub(super) fn tiles(&self, rows: Val, body: impl FnOnce(&[Val])) {
        let e = &self.cx.e;
        let last = e.add_const(rows, -1);
        e.for_each(e.i64(0), rows, TILE, |first| {
            let tile: Vec<Val> = (0..TILE).map(|r| e.min(e.add_const(first, r), last)).collect();
            body(&tile);
        });
    }

    /// Carries `sums` through the steps of a range, in order, several an iteration.
    fn steps(
        &self,
        (from, to): (Val, Val),
        sums: &[Val],
        step: impl Fn(Val, &[Val]) -> Vec<Val>,
    ) -> Vec<Val> {
        let e = &self.cx.e;
        let whole = e.sub(to, e.rem_unsigned(e.sub(to, from), e.i64(UNROLL)));
        let sums = e.for_loop(from, whole, UNROLL, sums, |i, sums| {
            (0..UNROLL).fold(sums.to_vec(), |sums, s| step(e.add_const(i, s), &sums))
        });
        e.for_loop(whole, to, 1, &sums, step)
    }

    /// Adds to `sums` the products of a register tile's rows with a panel of the chunk, from column
    /// `columns.0` up to, not including, `columns.1`.
    pub(super) fn products(
        &self,
        pair: usize,
        tile: &[Val],
        group: Val,
        columns: (Val, Val),
        sums: &[Val],
    ) -> Vec<Val> {
        let e = &self.cx.e;
        let Pair { width, panels, .. } = self.pairs[pair];
        let panel = e.at(panels, Elem::F32, e.mul_const(group, GROUP * width));
        let rows: Vec<Val> = tile.iter().map(|row| self.own_row(pair, *row)).collect();
        self.steps(columns, sums, |i, sums| {
            let other = e.load_at(VECTOR, panel, e.mul_const(i, GROUP));
            let own = rows.iter().map(|row| e.splat(e.load_at(SCALAR, *row, i), LANES));
            own.zip(sums).map(|(own, sum)| e.fma(own, other, *sum)).collect()
        })
    }

    /// The whole products.
    pub(super) fn dots(&self, pair: usize, tile: &[Val], group: Val) -> Vec<Val> {
        let e = &self.cx.e;
        let columns = (e.i64(0), e.i64(self.pairs[pair].width));
        self.products(pair, tile, group, columns, &vec![e.zero(VECTOR); tile.len()])
    }

    /// `body(column)` for every sixteen columns of sums.
    pub(super) fn columns(&self, pair: usize, body: impl FnOnce(Val)) {
        let e = &self.cx.e;
        e.for_each(e.i64(0), e.i64(vectors(self.pairs[pair].width)), GROUP, body);
    }

    /// Adds sixteen columns of the chunk's rows `range`, each by its own factor, to the sums of a
    /// register tile; `factors` are f32 `[CHUNK]` for every row of the tile.
    pub(super) fn add(
        &self,
        pair: usize,
        factors: &[Val],
        tile: &[Val],
        range: (Val, Val),
        column: Val,
    ) {
        let e = &self.cx.e;
        let Pair { width, sums, .. } = self.pairs[pair];
        let lines: Vec<Val> = tile.iter().map(|row| self.line(sums, width, *row)).collect();
        let init: Vec<Val> = lines.iter().map(|l| e.load_at(VECTOR, *l, column)).collect();
        let sums = self.steps(range, &init, |i, sums| {
            let other = e.load_at(VECTOR, self.other_row(pair, i), column);
            let factors = factors.iter().map(|f| e.splat(e.load_at(SCALAR, *f, i), LANES));
            factors.zip(sums).map(|(factor, sum)| e.fma(factor, other, *sum)).collect()
        });
        for (sum, line) in sums.into_iter().zip(&lines) {
            e.store_at(sum, *line, column);
        }
    }
}

/// Which lanes have a number, from `slot` on, of at least the first and less than the second of
/// `seen`.
pub(super) fn lanes_within(cx: &Cx<'_>, slot: Val, seen: (Val, Val)) -> Val {
    let e = &cx.e;
    let int = |v: Val| e.splat(e.cast(v, Elem::I32), LANES);
    let number = e.add(e.iota(Ty::Vector(Elem::I32, LANES)), int(slot));
    e.and(e.cmp(Cmp::Ge, number, int(seen.0)), e.cmp(Cmp::Lt, number, int(seen.1)))
}
