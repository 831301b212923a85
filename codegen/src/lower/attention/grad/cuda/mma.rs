//! `attention_grad` by `mma.sync.m16n8k16`, where all that is multiplied is bf16 or f16.
//!
//! A warp has sixteen of the block's rows. Chunks of the other side come by `cp.async`, the next
//! one while this one is multiplied. Weights and gradients of scores go from sums to products in
//! registers, rounded to the type of the operands, as FlashAttention-2 rounds them.

mod gradients;
mod products;
mod shared;
mod stats;

use ir::{DType, Dim, KernelSpec};

pub(super) use self::shared::Plan;

use super::super::super::{
    Sizes,
    cuda::tile::{Row, Tile, Tiles, aligned},
    dense, required,
};
use crate::{
    emit::{Barrier, Cmp, Elem, Emitter, Ty, Val},
    lower::{
        cx::Cx,
        view::{View, memory_elem},
    },
};

/// Threads of a block.
pub(super) const THREADS: i64 = 128;
/// Rows of a block, sixteen a warp.
pub(super) const ROWS: i64 = 64;
const WORD: Ty = Ty::Scalar(Elem::I32);
const F32: Ty = Ty::Scalar(Elem::F32);

/// The operands that are multiplied: q, k, v, y, dy.
const FACTORS: [usize; 5] = [0, 1, 2, 3, 5];

/// Checks what these kernels need beyond what the family does.
pub(super) fn check(spec: &KernelSpec, sizes: Sizes) -> Result<(), String> {
    let dtype = required(spec, 0)?.ty.dtype;
    if !matches!(dtype, DType::Bf16 | DType::F16) {
        return Err(format!("tensor cores take bf16 and f16, not {dtype}"));
    }
    let head = |n: i64| n % 16 == 0 && (16..=128).contains(&n);
    if !head(sizes.key) || !head(sizes.value) {
        return Err(format!("heads of {} and {}", sizes.key, sizes.value));
    }
    let factors = FACTORS.map(|i| required(spec, i));
    for layout in factors.into_iter().chain(spec.results.iter().map(Ok)) {
        let layout = layout?;
        dense(layout, 2)?;
        if !aligned(layout, 8) {
            return Err(format!("{layout}: strides must be multiples of 8"));
        }
    }
    for i in FACTORS {
        let other = required(spec, i)?.ty.dtype;
        if other != dtype {
            return Err(format!("{dtype} and {other}"));
        }
    }
    Ok(())
}

/// Whether sixteen bytes of an argument are read or written at once.
pub(super) fn is_aligned(arg: u32) -> bool {
    FACTORS.contains(&(arg as usize)) || arg >= 7
}

/// Emission state of a block.
pub(super) struct Block<'a> {
    cx: &'a Cx<'a>,
    plan: Plan,
    thread: Val,
    lane: Val,
    /// The warp's first row.
    first: Val,
}

impl<'a> Block<'a> {
    pub(super) fn new(cx: &'a Cx<'a>, plan: Plan) -> Block<'a> {
        let e = &cx.e;
        let thread = e.thread();
        let first = e.shl(e.shr(thread, 5), 4);
        Block { cx, plan, thread, lane: e.and(thread, e.i32(31)), first }
    }

    fn elem(&self) -> Elem {
        memory_elem(self.cx.operand(0).dtype)
    }

    /// The two rows of a lane.
    fn rows(&self, tiles: &Tiles<'_>, tile: Tile) -> [Row; 2] {
        let e = &self.cx.e;
        let first = e.add(self.first, e.shr(self.lane, 2));
        [0, 8].map(|below| tiles.row(tile, e.add_const(first, below)))
    }

    /// Sums `dq` of a tile of queries over chunks of keys.
    pub(super) fn queries(&self, tiles: &Tiles<'_>, tile: Tile) {
        let (cx, e, plan) = (self.cx, &self.cx.e, self.plan);
        let own = |view: &View, row: Val| {
            let row = tiles.row(tile, row);
            (tiles.place(view, tile, row), row.exists)
        };
        let [first_own, second_own] = self.own();
        self.copy(first_own, ROWS, 0, &own);
        self.copy(second_own, ROWS, 5, &own);
        let seen = tiles.seen(tile);
        let [from, keys] = seen.any;
        let (first, end) =
            (e.div_unsigned(from, e.i32(plan.chunk)), e.div_ceil_const(keys, plan.chunk));
        let last = e.add_const(keys, -1);
        let fetch = |chunk: Val, stage: Val| {
            let begin = e.mul_const(chunk, plan.chunk);
            let line = |view: &View, row: Val| {
                let key = e.add(begin, row);
                let exists = e.cmp(Cmp::Lt, key, keys);
                (tiles.at(view, tile, e.min(key, last), tile.head), exists)
            };
            for (i, to) in [1, 2].into_iter().zip(self.stage(stage).others) {
                self.copy(to, plan.chunk, i, &line);
            }
        };
        e.if_then(e.cmp(Cmp::Lt, first, end), || fetch(first, e.i32(0)));
        self.commit();
        self.arrive();
        let rows = self.rows(tiles, tile);
        let stats = self.own_stats(tiles, tile, &rows);
        let sums = e.for_loop(first, end, 1, &self.zeros(plan.sizes.key), |chunk, sums| {
            self.arrive();
            let stage = e.and(e.sub(chunk, first), e.i32(1));
            let next = e.add_const(chunk, 1);
            e.if_then(e.cmp(Cmp::Lt, next, end), || fetch(next, e.xor(stage, e.i32(1))));
            self.commit();
            let others = self.stage(stage).others;
            let products = self.scores(first_own, others[0]);
            let slopes = self.scores(second_own, others[1]);
            let begin = e.mul_const(chunk, plan.chunk);
            let after = e.cmp(Cmp::Ge, begin, seen.all[0]);
            let before = e.cmp(Cmp::Le, e.add_const(begin, plan.chunk), seen.all[1]);
            let sees = |half: usize, column: Val| {
                let key = e.add(begin, column);
                let row = rows[half];
                e.and(e.cmp(Cmp::Ge, key, row.from), e.cmp(Cmp::Lt, key, row.to))
            };
            let stats = |half: usize, _: usize| stats[half];
            let [_, gradients] =
                self.gradients(&products, &slopes, &stats, (e.and(after, before), &sees));
            self.add(&self.rounded(&gradients), others[0], sums)
        });
        let scale = cx.spec.attrs.float("scale");
        self.store(tiles, tile, &rows, 0, &sums, scale);
    }

    /// Sums `dk` and `dv` of a tile of keys over chunks of queries, one head after the other.
    pub(super) fn keys(&self, of_queries: &Tiles<'_>, tiles: &Tiles<'_>, tile: Tile) {
        let (cx, e, plan) = (self.cx, &self.cx.e, self.plan);
        let own = |view: &View, row: Val| {
            let row = tiles.row(tile, row);
            (tiles.place(view, tile, row), row.exists)
        };
        let [first_own, second_own] = self.own();
        self.copy(first_own, ROWS, 1, &own);
        self.copy(second_own, ROWS, 2, &own);
        let [from, to] = super::queries_of(cx, tile);
        let begin = e.div_unsigned(from, e.i32(plan.chunk));
        let chunks = e.sub(e.div_ceil_const(to, plan.chunk), begin);
        let count = e.mul_const(chunks, plan.sizes.group);
        let last = e.add_const(to, -1);
        // The first query of a step, and its head.
        let place = |step: Val| {
            let (within, chunk) = (e.div_unsigned(step, chunks), e.rem_unsigned(step, chunks));
            let head = e.mul_const(tile.head, plan.sizes.group);
            let head = e.add(head, e.cast(within, Elem::I64));
            (e.mul_const(e.add(begin, chunk), plan.chunk), head)
        };
        let fetch = |step: Val, number: Val| {
            let (begin, head) = place(step);
            let line = |view: &View, row: Val| {
                let token = e.add(begin, row);
                let exists = e.cmp(Cmp::Lt, token, to);
                (of_queries.at(view, tile, e.min(token, last), head), exists)
            };
            let stage = self.stage(number);
            self.copy(stage.others[0], plan.chunk, 0, &line);
            self.copy(stage.others[1], plan.chunk, 5, &line);
            self.copy(stage.y, plan.chunk, 3, &line);
            e.if_then(e.cmp(Cmp::Lt, self.thread, e.i32(plan.chunk)), || {
                let (from, exists) = line(&cx.operand(4), self.thread);
                let at = e.add(stage.lse, e.shl(self.thread, 2));
                let bytes = e.select(exists, e.i32(4), e.i32(0));
                let text = "cp.async.ca.shared.global [$0], [$1], 4, $2;";
                e.ptx(text, &[at, from.base, bytes]);
            });
        };
        e.if_then(e.cmp(Cmp::Gt, count, e.i32(0)), || fetch(e.i32(0), e.i32(0)));
        self.commit();
        let rows = self.rows(tiles, tile);
        let tile_end = e.add(tile.first, tile.rows);
        let keys = self.zeros(plan.sizes.key).len();
        let mut init = self.zeros(plan.sizes.key);
        init.extend(self.zeros(plan.sizes.value));
        let sums = e.for_loop(e.i32(0), count, 1, &init, |step, sums| {
            self.arrive();
            let number = e.and(step, e.i32(1));
            let next = e.add_const(step, 1);
            e.if_then(e.cmp(Cmp::Lt, next, count), || fetch(next, e.xor(number, e.i32(1))));
            self.commit();
            let stage = self.stage(number);
            self.chunk_stats(&stage);
            let products = self.scores(first_own, stage.others[0]);
            let slopes = self.scores(second_own, stage.others[1]);
            e.barrier(Barrier::Block);
            let numbers = self.load_stats();
            let (begin, _) = place(step);
            let end = e.add_const(begin, plan.chunk);
            // All see all where the chunk's last query sees the first key, and its first the last.
            let [first_from, first_to] = of_queries.visible(tile, begin);
            let [last_from, _] = of_queries.visible(tile, e.add_const(end, -1));
            let (low, high) = (e.max(first_from, last_from), first_to);
            let whole = e.cmp(Cmp::Le, end, to);
            let after = e.cmp(Cmp::Ge, tile.first, low);
            let before = e.cmp(Cmp::Le, tile_end, high);
            let all = e.and(whole, e.and(after, before));
            let sees = |half: usize, column: Val| {
                let token = e.add(begin, column);
                let [from, end] = of_queries.visible(tile, token);
                let key = rows[half].token;
                let seen = e.and(e.cmp(Cmp::Ge, key, from), e.cmp(Cmp::Lt, key, end));
                e.and(seen, e.cmp(Cmp::Lt, token, to))
            };
            let stats = |_: usize, i: usize| numbers[i / 4 * 2 + i % 2];
            let [weights, gradients] = self.gradients(&products, &slopes, &stats, (all, &sees));
            let of_values = self.add(&self.rounded(&weights), stage.others[1], &sums[keys..]);
            let mut next = self.add(&self.rounded(&gradients), stage.others[0], &sums[..keys]);
            next.extend(of_values);
            next
        });
        let scale = cx.spec.attrs.float("scale");
        self.store(tiles, tile, &rows, 1, &sums[..keys], scale);
        self.store(tiles, tile, &rows, 2, &sums[keys..], 1.0);
    }

    /// Writes a tile's sums to a result.
    fn store(
        &self,
        tiles: &Tiles<'_>,
        tile: Tile,
        rows: &[Row; 2],
        result: usize,
        sums: &[Val],
        scale: f64,
    ) {
        let (cx, e) = (self.cx, &self.cx.e);
        let view = cx.result(result);
        let pair = e.shl(e.and(self.lane, e.i32(3)), 1);
        let zero = e.zero(Emitter::f32s(2));
        for (half, row) in rows.iter().enumerate() {
            let place = tiles.place(&view, tile, *row);
            e.if_then(row.exists, || {
                for (j, block) in (0..).zip(sums.chunks_exact(4)) {
                    let value = e.insert(block[2 * half], zero, 0);
                    let value = e.insert(block[2 * half + 1], value, 1);
                    let value = e.mul(value, e.float(value.ty(), scale));
                    let column = e.cast(e.add_const(pair, 8 * j), Elem::I64);
                    place.store_strip(cx, value, column, &Dim::from(1));
                }
            });
        }
    }
}
