//! A tile whose strands are with the blocks of a cluster: each writes its sums to its shared
//! memory, and all read those of all, in the strands' order, for their share of the results.

use super::{
    super::{
        STRANDS, Sizes,
        chunk::padded,
        softmax::{join, joining, log_sum, reciprocal},
    },
    SMALL,
    pass::{Pass, store_pair},
};
use crate::emit::{Cmp, Elem, Ty, Val};

const F32: Ty = Ty::Scalar(Elem::F32);

/// f32 of a row of sums: eight more than its elements, so that rows begin in different banks.
const fn stride(sizes: Sizes) -> i64 {
    padded(sizes.value) + 8
}

/// Bytes that a strand's sums take, then its rows' largest scores and sums of weights.
pub(super) const fn bytes(sizes: Sizes) -> i64 {
    4 * SMALL * (stride(sizes) + 2)
}

impl Pass<'_> {
    /// Combines the strands of a cluster's blocks, of which this is number `rank`.
    pub(super) fn combine(&self, rank: Val, maxima: &[Val], sums: &[Val]) {
        let (cx, e, sizes) = (self.cx, &self.cx.e, self.tiles.sizes);
        let base = self.chunks.shared;
        let heads = e.add_const(base, 4 * SMALL * stride(sizes));
        // Other warps may still read the last chunk.
        e.barrier(crate::emit::Barrier::Block);
        let row = self.lane_row();
        self.each_pair(sums, |half, values, column| {
            let row = e.add_const(row, 8 * i64::try_from(half).expect("two"));
            let at = e.add(e.mul_const(row, stride(sizes)), column);
            let at = e.add(base, e.shl(at, 2));
            e.ptx("st.shared.v2.f32 [$0], {$1, $2};", &[at, values[0], values[1]]);
        });
        e.if_then(self.leads(), || {
            for (half, total) in Pass::totals(sums).into_iter().enumerate() {
                let row = e.add_const(row, 8 * i64::try_from(half).expect("two"));
                let at = e.add(heads, e.shl(row, 3));
                e.ptx("st.shared.v2.f32 [$0], {$1, $2};", &[at, maxima[half], total]);
            }
        });
        e.ptx("barrier.cluster.arrive.release.aligned;", &[]);
        e.ptx("barrier.cluster.wait.acquire.aligned;", &[]);
        // Half a warp reads of one row, so that it meets no bank twice.
        let pairs = (sizes.value / 2 + 15) / 16 * 16;
        let threads = i64::from(e.threads());
        let first = e.add(e.mul_const(rank, threads), self.thread);
        let count = e.mul_const(e.min(self.tile.rows, e.i32(SMALL)), pairs);
        let load = |at: Val, strand: i64| {
            let at = e.ptx_values(
                "mapa.shared::cluster.u32 $0, $1, $2;",
                &[at.ty()],
                &[at, e.i32(strand)],
            );
            e.ptx_values("ld.shared::cluster.v2.f32 {$0, $1}, [$2];", &[F32, F32], &at)
        };
        let one = |row: Val, pair: Val| {
            let at = e.add(e.mul_const(row, stride(sizes)), e.shl(pair, 1));
            let at = e.add(base, e.shl(at, 2));
            let head = e.add(heads, e.shl(row, 3));
            let strands: Vec<(Vec<Val>, Vec<Val>)> =
                (0..STRANDS).map(|strand| (load(head, strand), load(at, strand))).collect();
            let mut max = e.f32(f32::NEG_INFINITY);
            let mut total = [e.f32(0.0); 3];
            for (head, values) in &strands {
                let (all, factors) = joining(e, max, head[0]);
                let strand = [values[0], values[1], head[1]];
                max = all;
                for (total, strand) in total.iter_mut().zip(strand) {
                    *total = join(e, *total, strand, factors);
                }
            }
            let row = self.tiles.row(self.tile, row);
            let y = self.tiles.place(&cx.result(0), self.tile, row);
            let scale = reciprocal(e, total[2]);
            store_pair(cx, &y, [total[0], total[1]], scale, e.shl(pair, 1));
            if cx.spec.results.len() > 1 {
                e.if_then(e.cmp(Cmp::Eq, pair, e.i32(0)), || {
                    let value = log_sum(e, max, total[2]);
                    let lse = self.tiles.place(&cx.result(1), self.tile, row);
                    lse.store(cx, value, e.i64(0));
                });
            }
        };
        e.for_each(first, count, threads * STRANDS, |index| {
            let (row, pair) =
                (e.div_unsigned(index, e.i32(pairs)), e.rem_unsigned(index, e.i32(pairs)));
            if pairs == sizes.value / 2 {
                one(row, pair);
            } else {
                e.if_then(e.cmp(Cmp::Lt, pair, e.i32(sizes.value / 2)), || one(row, pair));
            }
        });
        // No block may end while others read from it.
        e.ptx("barrier.cluster.arrive.release.aligned;", &[]);
        e.ptx("barrier.cluster.wait.acquire.aligned;", &[]);
    }
}
