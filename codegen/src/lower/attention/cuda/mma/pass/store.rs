//! Sums to results.

use super::{
    super::super::{
        WARPS,
        chunk::padded,
        softmax::{log_sum, reciprocal},
    },
    Columns, Form, Pass, column,
};
use crate::{
    emit::{Cmp, Emitter, Val},
    lower::{cx::Cx, view::View},
};

impl Pass<'_> {
    /// The warp's sums: `body(half, pair of sums, column)` for each of both rows and each pair of
    /// columns that there is.
    pub(in super::super) fn each_pair(&self, sums: &[Val], body: impl Fn(usize, [Val; 2], Val)) {
        if self.direct() {
            self.each_direct_pair(sums, body);
            return;
        }
        let e = &self.cx.e;
        let size = self.tiles.sizes.value;
        let pair = e.shl(e.and(self.lane, e.i32(3)), 1);
        for j in 0..self.blocks() {
            let Columns { block, exists } = self.columns(j);
            let block = block.number(e);
            for half in 0..2 {
                let first = e.add_const(e.shl(block, 4), 8 * half);
                let mut exists = exists;
                if padded(size) != size {
                    let inside = e.cmp(Cmp::Lt, first, e.i32(size));
                    exists = Some(exists.map_or(inside, |exists| e.and(exists, inside)));
                }
                let at = usize::try_from(8 * j + 4 * half).expect("small");
                let all = || {
                    let column = e.add(first, pair);
                    body(0, [sums[at], sums[at + 1]], column);
                    body(1, [sums[at + 2], sums[at + 3]], column);
                };
                match exists {
                    Some(exists) => e.if_then(exists, all),
                    None => all(),
                }
            }
        }
    }

    /// Sums of weights of both rows.
    pub(in super::super) fn totals(sums: &[Val]) -> [Val; 2] {
        let at = sums.len() - 4;
        [sums[at], sums[at + 2]]
    }

    pub(in super::super) fn store(&self, maxima: &[Val], sums: &[Val]) {
        let (cx, e) = (self.cx, &self.cx.e);
        let y = cx.result(0);
        let totals = Pass::totals(sums);
        let scales = totals.map(|total| reciprocal(e, total));
        let places = self.rows.map(|row| self.tiles.place(&y, self.tile, row));
        for half in 0..2 {
            let row = self.rows[half];
            e.if_then(row.exists, || {
                self.each_pair(sums, |which, values, at| {
                    if which == half {
                        store_pair(cx, &places[half], values, scales[half], at);
                    }
                });
            });
        }
        if cx.spec.results.len() > 1 {
            let lse = cx.result(1);
            let leads = e.cmp(Cmp::Eq, e.and(self.lane, e.i32(3)), e.i32(0));
            let first = match self.form {
                Form::Large => e.cmp(Cmp::Lt, self.warp, e.i32(WARPS)),
                Form::Wide => e.int(leads.ty(), 1),
                Form::Small => e.cmp(Cmp::Eq, self.warp, e.i32(0)),
            };
            let leads = e.and(leads, first);
            for half in 0..2 {
                let row = self.rows[half];
                e.if_then(e.and(leads, row.exists), || {
                    let value = log_sum(e, maxima[half], totals[half]);
                    self.tiles.place(&lse, self.tile, row).store(cx, value, e.i64(0));
                });
            }
        }
    }

    pub(in super::super) fn lane_row(&self) -> Val {
        self.cx.e.shr(self.lane, 2)
    }

    pub(in super::super) fn leads(&self) -> Val {
        let e = &self.cx.e;
        let lane = e.cmp(Cmp::Eq, e.and(self.lane, e.i32(3)), e.i32(0));
        e.and(lane, e.cmp(Cmp::Eq, self.warp, e.i32(0)))
    }
}

/// Stores a pair of a row's elements from column `at` on.
pub(in super::super) fn store_pair(cx: &Cx<'_>, row: &View, values: [Val; 2], scale: Val, at: Val) {
    let e = &cx.e;
    let zero = e.zero(Emitter::f32s(2));
    let value = e.insert(values[0], zero, 0);
    let value = e.insert(values[1], value, 1);
    let value = e.mul(value, e.splat(scale, 2));
    // Adding zero turns -0 to +0, as chunks of unseen keys may.
    let value = e.add(value, zero);
    row.store_strip(cx, value, column(e, at), &ir::Dim::from(1));
}
