//! Several weights, each for its own rows: the experts of a mixture.
//!
//! Group after group is a product of its own, by the code of a plain one, so that a row's sums do
//! not depend on what else is in the launch.

use super::epilogue::Output;
use super::{Cmp, Elem, Gen, Groups, PANEL, Ty, Val, size};

impl Gen<'_> {
    /// The products of all groups, and zero for the rows outside them.
    pub(super) fn groups(&self, output: &Output, groups: Groups) {
        let (e, spec) = (self.e, self.spec);
        let offsets = e.arg(groups.offsets);
        let bound = |group: Val| {
            let offset = e.load_at(Ty::Scalar(Elem::I32), offsets, group);
            e.max(e.i64(0), e.min(e.cast(offset, Elem::I64), self.m))
        };
        let elements = size(spec.weight_bytes() / spec.weight.bytes());
        let biases = size(spec.halves() * spec.n);
        let count = e.i64(size(groups.count));
        e.for_each(e.i64(0), count, 1, |group| {
            let (first, end) = (bound(group), bound(e.add_const(group, 1)));
            e.if_then(e.cmp(Cmp::Lt, first, end), || {
                let own = Gen {
                    x: self.x_row(first),
                    w: e.at(self.w, spec.weight, e.mul_const(group, elements)),
                    m: e.sub(end, first),
                    ..*self
                };
                own.product(&output.from(self, first, e.mul_const(group, biases)));
            });
        });
        self.clear(output, e.i64(0), bound(e.i64(0)));
        self.clear(output, bound(count), self.m);
    }

    /// Zero in the call's columns of these rows.
    fn clear(&self, output: &Output, first: Val, end: Val) {
        let (e, spec) = (self.e, self.spec);
        let columns = size(PANEL * spec.panels_per_tile / spec.halves());
        let from = e.mul_const(e.tile_begin(), columns);
        let to = e.min(e.mul_const(e.tile_end(), columns), e.i64(size(spec.n)));
        e.for_each(first, end, 1, |row| {
            let row = output.row(self, row);
            let zero = e.zero(Ty::Scalar(spec.output));
            e.for_each(from, to, 1, |column| e.store_at(zero, row, column));
        });
    }
}
