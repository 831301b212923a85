//! Sixteen rows into a panel `[k][16]`, sixteen rows side by side: how keys and the columns of a
//! transposed matrix become vectors.

use ir::Dim;

use super::cx::Cx;
use crate::emit::{Cmp, Elem, Ty, Val};

/// Rows of a panel.
pub(super) const ROWS: i64 = 16;

/// Sixteen rows of floats in memory.
pub(super) struct Rows<'a> {
    /// Address of the first.
    pub(super) base: Val,
    pub(super) elem: Elem,
    /// Elements between rows.
    pub(super) row: &'a Dim,
    /// Elements between the columns.
    pub(super) column: &'a Dim,
}

/// Writes `panel[c][r] = rows[r][c]` as f32 for `c` below `columns` and `r` below `count` (at most
/// sixteen); what a panel holds for further rows is undefined but finite.
pub(super) fn pack_rows(cx: &Cx<'_>, rows: &Rows<'_>, count: Val, columns: Val, panel: Val) {
    let e = &cx.e;
    // Rows beyond the count repeat the last, so that nothing outside is read.
    let last = e.add_const(count, -1);
    let starts: Vec<Val> = (0..ROWS)
        .map(|r| {
            let row = e.min(e.i64(r), last);
            e.at(rows.base, rows.elem, cx.scale(row, rows.row))
        })
        .collect();
    let scalar = |column: Val| {
        for (r, start) in (0..).zip(&starts) {
            let offset = cx.scale(column, rows.column);
            let value = e.load_at(Ty::Scalar(rows.elem), *start, offset);
            let to = e.add_const(e.mul_const(column, ROWS), r);
            e.store_at(e.cast(value, Elem::F32), panel, to);
        }
    };
    if rows.row.is(1) {
        let whole = e.cmp(Cmp::Eq, count, e.i64(ROWS));
        let lines = || {
            e.for_each(e.i64(0), columns, 1, |column| {
                let from = cx.scale(column, rows.column);
                let line = e.load_at(Ty::Vector(rows.elem, 16), starts[0], from);
                e.store_at(e.cast(line, Elem::F32), panel, e.mul_const(column, ROWS));
            });
        };
        e.either(whole, lines, || e.for_each(e.i64(0), columns, 1, scalar));
        return;
    }
    if !rows.column.is(1) {
        e.for_each(e.i64(0), columns, 1, scalar);
        return;
    }
    let whole = e.sub(columns, e.rem_unsigned(columns, e.i64(8)));
    e.for_each(e.i64(0), whole, 8, |column| {
        for half in 0..2 {
            let block: Vec<Val> = starts[half * 8..][..8]
                .iter()
                .map(|s| e.cast(e.load_at(Ty::Vector(rows.elem, 8), *s, column), Elem::F32))
                .collect();
            for (c, line) in (0..).zip(transpose(cx, &block)) {
                let to = e.mul_const(e.add_const(column, c), ROWS);
                e.store_at(line, panel, e.add_const(to, half as i64 * 8));
            }
        }
    });
    e.for_each(whole, columns, 1, scalar);
}

/// An 8x8 transposition: pairs, then quadruples, then halves.
fn transpose(cx: &Cx<'_>, x: &[Val]) -> Vec<Val> {
    let e = &cx.e;
    let low = [0, 8, 1, 9, 4, 12, 5, 13];
    let high = [2, 10, 3, 11, 6, 14, 7, 15];
    let pairs: Vec<[Val; 2]> =
        (0..4).map(|i| [&low, &high].map(|l| e.shuffle(x[2 * i], x[2 * i + 1], l))).collect();
    let first = [0, 1, 8, 9, 4, 5, 12, 13];
    let second = [2, 3, 10, 11, 6, 7, 14, 15];
    // Columns 0, 1, 2, 3 of rows 0..4 (and 4..8), the upper four columns in the upper half.
    let quads = |i: usize| {
        [0, 1].map(|h| [&first, &second].map(|l| e.shuffle(pairs[i][h], pairs[i + 1][h], l)))
    };
    let (top, bottom) = (quads(0), quads(2));
    let lower = [0, 1, 2, 3, 8, 9, 10, 11];
    let upper = [4, 5, 6, 7, 12, 13, 14, 15];
    let mut out = Vec::with_capacity(8);
    for half in [lower, upper] {
        for (t, b) in top.iter().flatten().zip(bottom.iter().flatten()) {
            out.push(e.shuffle(*t, *b, &half));
        }
    }
    out
}
