//! A table's gradient on a GPU: a block of threads for thirty-two rows of the table.
//!
//! A block looks through all ids, 2048 at a time, notes the tokens that are its own in their
//! order, and sorts them by row with a stable counting sort. Then a thread adds four columns of a
//! row, from the first token on: every sum has one order, and no two threads write to one place.

use ir::{Dim, KernelSpec};

use crate::{
    cuda::CudaKernel,
    emit::{Barrier, Cmp, Elem, Ty, Val},
    lower::{cx::Cx, team::WARP_WORDS, view::View},
};

const THREADS: i64 = 256;
/// Rows of a block, a lane each.
const ROWS: i64 = 32;
/// Tokens that are looked through at a time.
const CHUNK: i64 = 2048;
/// Tokens whose rows are read at once.
const UNROLL: i64 = 4;

/// Places in shared memory: rows and tokens that were found, tokens in order of rows, and where
/// each row's begin.
const FOUND_ROWS: i64 = WARP_WORDS;
const FOUND: i64 = FOUND_ROWS + 4 * CHUNK;
const SORTED: i64 = FOUND + 4 * CHUNK;
const STARTS: i64 = SORTED + 4 * CHUNK;
const BYTES: i64 = STARTS + 4 * (ROWS + 1);

pub(super) fn kernel(spec: &KernelSpec) -> CudaKernel {
    let cx = Cx::cuda(spec, 256);
    let e = &cx.e;
    let (dy, ids, table) = (cx.operand(0), cx.operand(1), cx.result(0));
    let (tokens, rows) = (dy.shape[0].clone(), table.shape[0].clone());
    let dense = dy.strides[1].is(1) && table.strides[1].is(1);
    let whole = Cx::in_strips(&dy.shape[1], &[&dy.strides[0], &table.strides[0]], 4);
    let lanes = if dense && whole { 4 } else { 1 };
    let first = e.mul_const(e.cast(e.block('x'), Elem::I64), ROWS);
    let grad = Grad { cx: &cx, dy, ids, table, first, shared: e.shared(), lanes };
    let chunks = e.div_ceil_const(cx.size(&tokens), CHUNK);
    // Of no tokens too, the rows are written.
    e.for_each(e.i64(0), e.max(chunks, e.i64(1)), 1, |chunk| {
        let count = grad.find(chunk);
        e.barrier(Barrier::Block);
        e.if_then(e.cmp(Cmp::Eq, cx.warp(), e.i32(0)), || grad.sort(count));
        e.barrier(Barrier::Block);
        grad.add(e.cmp(Cmp::Eq, chunk, e.i64(0)));
    });
    let grid = [rows.ceil_div(ROWS), Dim::from(1), Dim::from(1)];
    let shared = u32::try_from(BYTES).expect("small");
    cx.finish_cuda(grid, shared, &[], |arg| lanes > 1 && arg != 1)
}

struct Grad<'c> {
    cx: &'c Cx<'c>,
    dy: View,
    ids: View,
    table: View,
    /// The block's first row, i64.
    first: Val,
    shared: Val,
    lanes: u32,
}

impl Grad<'_> {
    fn word(&self, index: Val) -> Val {
        let e = &self.cx.e;
        e.add(self.shared, e.shl(index, 2))
    }

    /// Notes the chunk's tokens that belong to the block; returns their number, i32.
    fn find(&self, chunk: Val) -> Val {
        let (cx, e) = (self.cx, &self.cx.e);
        let rows = cx.size(&self.table.shape[0]);
        let tokens = cx.size(&self.dy.shape[0]);
        let start = e.add(e.mul_const(chunk, CHUNK), e.cast(e.thread(), Elem::I64));
        let count = e.for_loop(e.i64(0), e.i64(CHUNK), THREADS, &[e.i32(0)], |turn, count| {
            let token = e.add(start, turn);
            let none = e.i64(-1);
            let row = e.if_else(
                e.cmp(Cmp::Lt, token, tokens),
                &[none.ty()],
                || {
                    let id = self.ids.load(cx, cx.scale(token, &self.ids.strides[0]));
                    let id = e.cast(id, Elem::I64);
                    let id = e.select(e.cmp(Cmp::Lt, id, e.i64(0)), e.add(id, rows), id);
                    let inside = e.and(e.cmp(Cmp::Ge, id, e.i64(0)), e.cmp(Cmp::Lt, id, rows));
                    let row = e.sub(id, self.first);
                    let own =
                        e.and(e.cmp(Cmp::Ge, row, e.i64(0)), e.cmp(Cmp::Lt, row, e.i64(ROWS)));
                    vec![e.select(e.and(inside, own), row, none)]
                },
                || vec![none],
            )[0];
            let found = e.cmp(Cmp::Ge, row, e.i64(0));
            let (place, all) = cx.place(found, self.shared);
            e.if_then(found, || {
                let at = self.word(e.add(count[0], place));
                e.store_shared(e.cast(row, Elem::I32), at, FOUND_ROWS);
                e.store_shared(e.cast(token, Elem::I32), at, FOUND);
            });
            vec![e.add(count[0], all)]
        });
        count[0]
    }

    /// Brings what was found in order of rows, by one warp: a lane has one row.
    fn sort(&self, count: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let (lane, zero) = (cx.lane(), e.i32(0));
        let each = |init: Val, body: &dyn Fn(Val, Val, Val) -> Val| {
            e.for_loop(zero, count, 1, &[init], |i, state| {
                let row = e.load_shared(Elem::I32, self.word(i), FOUND_ROWS);
                vec![body(i, e.cmp(Cmp::Eq, row, lane), state[0])]
            })[0]
        };
        let own = each(zero, &|_, mine, sum| e.add(sum, e.cast(mine, Elem::I32)));
        let up_to = [1, 2, 4, 8, 16].into_iter().fold(own, |sum, distance| {
            let below = e.shuffle_up(sum, distance);
            let some = e.cmp(Cmp::Ge, lane, e.i32(distance.into()));
            e.add(sum, e.select(some, below, zero))
        });
        e.store_shared(up_to, self.word(lane), STARTS + 4);
        let start = e.sub(up_to, own);
        e.if_then(e.cmp(Cmp::Eq, lane, zero), || e.store_shared(zero, self.shared, STARTS));
        let _ = each(start, &|i, mine, next| {
            e.if_then(mine, || {
                let token = e.load_shared(Elem::I32, self.word(i), FOUND);
                e.store_shared(token, self.word(next), SORTED);
            });
            e.add(next, e.cast(mine, Elem::I32))
        });
    }

    /// Adds the sorted tokens to their rows; in the first chunk, to zero.
    fn add(&self, is_first: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let lanes = i64::from(self.lanes);
        let strips = cx.size(&self.dy.shape[1].ceil_div(lanes));
        let left = e.min(e.i64(ROWS), e.sub(cx.size(&self.table.shape[0]), self.first));
        let thread = e.cast(e.thread(), Elem::I64);
        e.for_each(thread, e.mul(left, strips), THREADS, |part| {
            let row = e.div_unsigned(part, strips);
            let column = e.mul_const(e.rem_unsigned(part, strips), lanes);
            let at = self.word(e.cast(row, Elem::I32));
            let [start, end] = [0, 4].map(|byte| e.load_shared(Elem::I32, at, STARTS + byte));
            let some = e.or(is_first, e.cmp(Cmp::Lt, start, end));
            e.if_then(some, || {
                let to = cx.scale(e.add(self.first, row), &self.table.strides[0]);
                let to = cx.offset(to, column, &self.table.strides[1]);
                let (step, ty) = (&self.table.strides[1], Ty::of(Elem::F32, self.lanes));
                let init = e.if_else(
                    is_first,
                    &[ty],
                    || vec![e.zero(ty)],
                    || vec![self.table.load_strip(cx, to, step, self.lanes)],
                );
                let sum = self.sum(init[0], start, end, column);
                self.table.store_strip(cx, sum, to, step);
            });
        });
    }

    fn sum(&self, init: Val, start: Val, end: Val, column: Val) -> Val {
        let (cx, e) = (self.cx, &self.cx.e);
        let step = &self.dy.strides[1];
        let load = |i: Val, byte: i64| {
            let token = e.load_shared(Elem::I32, self.word(i), SORTED + byte);
            let from = cx.scale(e.cast(token, Elem::I64), &self.dy.strides[0]);
            self.dy.load_strip(cx, cx.offset(from, column, step), step, self.lanes)
        };
        let rest = e.rem_unsigned(e.sub(end, start), e.i32(UNROLL));
        let whole = e.sub(end, rest);
        let sums = e.for_loop(start, whole, UNROLL, &[init], |i, sums| {
            let rows: Vec<Val> = (0..UNROLL).map(|u| load(i, 4 * u)).collect();
            vec![rows.into_iter().fold(sums[0], |sum, row| e.add(sum, row))]
        });
        e.for_loop(whole, end, 1, &sums, |i, sums| vec![e.add(sums[0], load(i, 0))])[0]
    }
}
