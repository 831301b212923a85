//! Register tiles over a block of k, for every kernel that multiplies with panels.

use ir::Dim;

use super::{K_BLOCK, PANEL, TILE_ROWS, VECTOR};
use crate::{
    emit::{Elem, Ty, Val},
    lower::{cx::Cx, view::View},
};

/// Steps of k in an iteration: half of the instructions of a step are multiply-adds, and each one
/// saved counts where two hardware threads share a core's front end.
const UNROLL: i64 = 4;

/// Rows of a block of k.
pub(in crate::lower) enum Lhs<'a> {
    /// A matrix in any layout, with its strides.
    InPlace(&'a View, &'a [Dim; 2]),
    /// f32 in one piece for each register tile, all of `TILE_ROWS · K_BLOCK` elements.
    Packed {
        /// Address of the first.
        base: Val,
        /// Elements between rows of a register tile, and between steps of k.
        steps: [i64; 2],
    },
}

impl Lhs<'_> {
    /// Where row `r` of the register tile at `row` begins.
    fn start(&self, cx: &Cx<'_>, row: Val, r: i64) -> Val {
        let e = &cx.e;
        match self {
            Lhs::InPlace(a, axes) => a.at(cx, cx.scale(e.add_const(row, r), &axes[0])).base,
            Lhs::Packed { base, steps } => {
                let at = e.add_const(e.mul_const(row, K_BLOCK), r * steps[0]);
                e.at(*base, Elem::F32, at)
            }
        }
    }

    fn load(&self, cx: &Cx<'_>, start: Val, k: Val) -> Val {
        let e = &cx.e;
        match self {
            Lhs::InPlace(a, axes) => {
                let row = View { base: start, ..(*a).clone() };
                row.load(cx, cx.scale(k, &axes[1]))
            }
            Lhs::Packed { steps, .. } => {
                e.load_at(Ty::Scalar(Elem::F32), start, e.mul_const(k, steps[1]))
            }
        }
    }
}

/// A block of k: `rows` rows of a matrix, times a panel of sixteen columns.
pub(in crate::lower) struct Block<'a> {
    pub(in crate::lower) lhs: &'a Lhs<'a>,
    pub(in crate::lower) rows: Val,
    pub(in crate::lower) steps: Val,
    /// f32 lines of sixteen, `step` elements apart.
    pub(in crate::lower) panel: Val,
    pub(in crate::lower) step: &'a Dim,
}

impl Block<'_> {
    /// Adds its products to f32 `[rows][16]`, each in order of k.
    pub(in crate::lower) fn add(&self, cx: &Cx<'_>, sums: Val) {
        let e = &cx.e;
        let whole = e.sub(self.rows, e.rem_unsigned(self.rows, e.i64(TILE_ROWS)));
        e.for_each(e.i64(0), whole, TILE_ROWS, |row| self.tile(cx, sums, row, TILE_ROWS));
        let left = e.sub(self.rows, whole);
        let cases: Vec<i64> = (1..TILE_ROWS).collect();
        e.switch(left, &cases, |height| self.tile(cx, sums, whole, height));
    }

    /// A register tile.
    fn tile(&self, cx: &Cx<'_>, sums: Val, row: Val, height: i64) {
        let e = &cx.e;
        let line = |r: i64| e.at(sums, Elem::F32, e.mul_const(e.add_const(row, r), PANEL));
        let lines: Vec<Val> = (0..height).map(line).collect();
        let starts: Vec<Val> = (0..height).map(|r| self.lhs.start(cx, row, r)).collect();
        let step = |k: Val, sums: &[Val]| -> Vec<Val> {
            let b = e.load_at(VECTOR, self.panel, cx.scale(k, self.step));
            let value = |start: &Val| e.splat(self.lhs.load(cx, *start, k), 16);
            let a: Vec<Val> = starts.iter().map(value).collect();
            a.iter().zip(sums).map(|(a, sum)| e.fma(*a, b, *sum)).collect()
        };
        let mut sums: Vec<Val> = lines.iter().map(|line| e.load(VECTOR, *line)).collect();
        let mut first = e.i64(0);
        if height == TILE_ROWS {
            let whole = e.sub(self.steps, e.rem_unsigned(self.steps, e.i64(UNROLL)));
            sums = e.for_loop(first, whole, UNROLL, &sums, |k, sums| {
                (0..UNROLL).fold(sums.to_vec(), |sums, i| step(e.add_const(k, i), &sums))
            });
            first = whole;
        }
        let sums = e.for_loop(first, self.steps, 1, &sums, step);
        for (sum, line) in sums.into_iter().zip(lines) {
            e.store(sum, line);
        }
    }
}
