//! From products to weights and gradients of scores, a register tile at a time.

use crate::{
    emit::{Cmp, Elem, Ty, Val},
    lower::{
        block::{Block, CHUNK, Chunk, GROUP, SCALAR, TILE, VECTOR, lanes_within},
        cx::LANES,
        view::View,
    },
    math,
};

/// What the rows of a block are; the chunks are the other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Queries,
    Keys,
}

/// Emission state. Of the block, the first pair is q and k, the second dy and v.
pub(super) struct Scores<'c> {
    pub(super) block: Block<'c>,
    /// f32 `[6][CHUNK]` of a register tile: weights, slopes of the cap, and gradients of scores.
    weights: Val,
    slopes: Val,
    gradients: Val,
    /// f32 `[rows]` and `[CHUNK]`: logarithms of sums and `dy·y`, of queries.
    own_stats: [Val; 2],
    other_stats: [Val; 2],
}

impl<'c> Scores<'c> {
    pub(super) fn new(mut block: Block<'c>, rows: i64) -> Scores<'c> {
        let [weights, slopes, gradients] = [(); 3].map(|()| block.take(TILE * CHUNK));
        let own_stats = [block.take(rows), block.take(rows)];
        let other_stats = [block.take(CHUNK), block.take(CHUNK)];
        Scores { block, weights, slopes, gradients, own_stats, other_stats }
    }

    /// Takes logarithms of sums, and `dy·y`, of the block's own queries, given where the former and
    /// y are.
    pub(super) fn own_stats(&self, count: Val, row: impl FnOnce(Val) -> (View, View)) {
        self.stats(self.own_stats, count, |i| self.block.own_row(1, i), row);
    }

    /// The same of the queries of a chunk.
    pub(super) fn other_stats(&self, count: Val, row: impl FnOnce(Val) -> (View, View)) {
        self.stats(self.other_stats, count, |i| self.block.other_row(1, i), row);
    }

    fn stats(
        &self,
        to: [Val; 2],
        count: Val,
        dy: impl FnOnce(Val) -> Val,
        row: impl FnOnce(Val) -> (View, View),
    ) {
        let (cx, e) = (self.block.cx, &self.block.cx.e);
        let zero = e.i64(0);
        e.for_each(zero, count, 1, |i| {
            let ((lse, y), dy) = (row(i), dy(i));
            let (step, width) = (&y.strides[2], cx.size(&y.shape[2]));
            let add = |column: Val, lanes: u32, sum: Val| {
                let y = y.load_strip(cx, cx.scale(column, step), step, lanes);
                e.fma(e.load_at(Ty::of(Elem::F32, lanes), dy, column), y, sum)
            };
            let whole = cx.strip_end(zero, width);
            let sums = e.for_loop(zero, whole, LANES.into(), &[e.zero(VECTOR)], |column, sums| {
                vec![add(column, LANES, sums[0])]
            });
            let sum = e.reduce_add(sums[0]);
            let sum = e.for_loop(whole, width, 1, &[sum], |column, s| vec![add(column, 1, s[0])]);
            e.store_at(lse.load(cx, zero), to[0], i);
            e.store_at(sum[0], to[1], i);
        });
    }

    /// Adds what the chunk gives to the sums of all rows. `limits` says which of the other side a
    /// row sees: from the first up to, not including, the second; both grow with the row.
    pub(super) fn multiply(
        &self,
        role: Role,
        rows: Val,
        chunk: Chunk,
        limits: &dyn Fn(Val) -> (Val, Val),
    ) {
        let (block, e) = (&self.block, &self.block.cx.e);
        let lines = |base: Val| -> Vec<Val> {
            (0..TILE).map(|r| e.at_const(base, Elem::F32, r * CHUNK)).collect()
        };
        block.tiles(rows, |tile| {
            let seen = tile.iter().map(|row| {
                let (first, end) = limits(*row);
                (e.sub(first, chunk.first), e.sub(end, chunk.first))
            });
            let seen: Vec<(Val, Val)> = seen.collect();
            let from = e.max(seen[0].0, e.i64(0));
            let to = e.min(seen[seen.len() - 1].1, chunk.count);
            e.if_then(e.cmp(Cmp::Lt, from, to), || {
                let begin = e.div_unsigned(from, e.i64(GROUP));
                e.for_each(begin, e.div_ceil_const(to, GROUP), 1, |group| {
                    self.weigh(role, tile, &seen, group);
                });
                // Where every row sees the other side, all at once; before and behind, each row the
                // part that it sees: zero times what it does not see might be no number.
                let first = seen.iter().fold(from, |first, seen| e.max(first, seen.0));
                let end = seen.iter().fold(to, |end, seen| e.min(end, seen.1));
                let all = (first, e.max(first, end));
                let own = |row: Val| {
                    let (first, end) = limits(row);
                    let first = e.max(e.sub(first, chunk.first), from);
                    (first, e.min(e.sub(end, chunk.first), to))
                };
                let before = |row: Val| {
                    let (first, end) = own(row);
                    (first, e.min(end, all.0))
                };
                let behind = |row: Val| {
                    let (first, end) = own(row);
                    (e.max(first, all.1), end)
                };
                let add = |pair: usize, base: Val| {
                    let factors = lines(base);
                    self.rows(pair, base, tile, &before);
                    block.columns(pair, |column| block.add(pair, &factors, tile, all, column));
                    self.rows(pair, base, tile, &behind);
                };
                add(0, self.gradients);
                if role == Role::Keys {
                    add(1, self.weights);
                }
            });
        });
    }

    /// Adds a range of the other side to each row of a register tile.
    fn rows(&self, pair: usize, factors: Val, tile: &[Val], range: &dyn Fn(Val) -> (Val, Val)) {
        let (block, e) = (&self.block, &self.block.cx.e);
        // A short tile repeats its last row, which is to be added once.
        let count = e.add_const(e.sub(tile[tile.len() - 1], tile[0]), 1);
        e.for_each(e.i64(0), count, 1, |r| {
            let row = e.add(tile[0], r);
            let factors = e.at(factors, Elem::F32, e.mul_const(r, CHUNK));
            let range = range(row);
            e.if_then(e.cmp(Cmp::Lt, range.0, range.1), || {
                block.columns(pair, |column| block.add(pair, &[factors], &[row], range, column));
            });
        });
    }

    /// Weights and gradients of the scores of a register tile and sixteen of the other side.
    fn weigh(&self, role: Role, tile: &[Val], seen: &[(Val, Val)], group: Val) {
        let (block, cx) = (&self.block, self.block.cx);
        let (e, attrs) = (&cx.e, &cx.spec.attrs);
        let cap = attrs.float("softcap");
        let slot = e.mul_const(group, GROUP);
        let places: Vec<Val> = (0..TILE).map(|r| e.add_const(slot, r * CHUNK)).collect();
        let visible =
            |r: usize, value: Val| e.select(lanes_within(cx, slot, seen[r]), value, e.zero(VECTOR));
        let stat = |which: usize, row: Val| match role {
            Role::Queries => e.splat(e.load_at(SCALAR, self.own_stats[which], row), LANES),
            Role::Keys => e.load_at(VECTOR, self.other_stats[which], slot),
        };
        for (r, dot) in block.dots(0, tile, group).into_iter().enumerate() {
            let mut score = e.mul(dot, e.float(VECTOR, attrs.float("scale")));
            if cap > 0.0 {
                let inner = math::tanh(e, e.mul(score, e.float(VECTOR, 1.0 / cap)));
                let slope = e.sub(e.float(VECTOR, 1.0), e.mul(inner, inner));
                e.store_at(slope, self.slopes, places[r]);
                score = e.mul(inner, e.float(VECTOR, cap));
            }
            let weight = math::exp(e, e.sub(score, stat(0, tile[r])));
            e.store_at(visible(r, weight), self.weights, places[r]);
        }
        for (r, dot) in block.dots(1, tile, group).into_iter().enumerate() {
            let weight = e.load_at(VECTOR, self.weights, places[r]);
            let mut gradient = e.mul(weight, e.sub(dot, stat(1, tile[r])));
            if cap > 0.0 {
                gradient = e.mul(gradient, e.load_at(VECTOR, self.slopes, places[r]));
            }
            // Statistics beyond the chunk's end are undefined, and may be no numbers.
            e.store_at(visible(r, gradient), self.gradients, places[r]);
        }
    }
}
