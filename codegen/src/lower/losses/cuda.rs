//! Losses on a GPU: a block of threads for each row.
//!
//! Every thread keeps the greatest of its strips and the sum of their exponentials, lanes and then
//! warps put theirs together, in one order: a row's bits depend on nothing but the row (Milakov &
//! Gimelshein 2018, arXiv:1805.02867). So a row is read from memory once for its loss; gradients
//! are made from its end on, for what was read last is in the caches.

use ir::{Dim, KernelSpec};

use super::{Row, Rows};
use crate::{
    cuda::CudaKernel,
    emit::{Barrier, Cmp, Elem, Ty, Val},
    lower::cx::Cx,
    math,
};

/// Strips that a thread loads before it computes with them.
const STRIPS: i64 = 4;

pub(super) fn kernel(spec: &KernelSpec) -> CudaKernel {
    let width = spec.operands[0].as_ref().and_then(|logits| logits.ty.shape[1].as_const());
    let threads = match width {
        Some(n) if n <= 256 => 32,
        Some(n) if n <= 4096 => 128,
        _ => 512,
    };
    let cx = Cx::cuda(spec, threads);
    let cx = if threads == 512 { cx.with_blocks(2) } else { cx };
    let e = &cx.e;
    let rows = Rows::of(&cx);
    let matrices = [Some(&rows.logits), rows.gradient.as_ref().map(|(_, dlogits)| dlogits)];
    let even = matrices
        .into_iter()
        .flatten()
        .all(|view| view.strides[1].is(1) && view.strides[0].exact_div(&Dim::from(4)).is_some());
    // A row of one is as long as the strides of others say.
    let lanes = if even && width.is_none_or(|n| n >= 4) { 4 } else { 1 };
    let index = e.cast(e.block('x'), Elem::I64);
    let team = Team { rows: &rows, row: rows.row(index), lanes, index };
    team.emit();
    let count = rows.logits.shape[0].clone();
    let shared = 8 * threads / 32;
    let matrices = [0, 1 + u32::try_from(spec.operands.len()).expect("few operands")];
    cx.finish_cuda([count, 1.into(), 1.into()], shared, &[], |arg| {
        lanes > 1 && matrices.contains(&arg)
    })
}

/// The threads that share a row.
struct Team<'r> {
    rows: &'r Rows<'r>,
    row: Row,
    lanes: u32,
    /// Of the row.
    index: Val,
}

impl Team<'_> {
    fn emit(&self) {
        let (rows, row, e) = (self.rows, &self.row, &self.rows.cx.e);
        let lse = self.lse();
        let leads = e.cmp(Cmp::Eq, e.thread(), e.i32(0));
        e.if_then(leads, || rows.loss(self.index, row, lse));
        let Some((dlogits, scale)) = row.dlogits.as_ref().zip(rows.scale(self.index)) else {
            return;
        };
        let own = rows.own(row, lse, scale);
        let write = |at: Val, logits: Val| {
            let value = rows.gradient(row, logits, lse, scale);
            let value = (0..logits.lanes()).fold(value, |value, lane| {
                let hit = e.cmp(Cmp::Eq, e.add_const(at, lane.into()), row.target);
                let hit = e.and(hit, row.counts);
                let one = e.select(hit, own, e.extract(value, lane));
                if logits.lanes() == 1 { one } else { e.insert(one, value, lane) }
            });
            let step = &dlogits.strides[1];
            dlogits.store_strip(rows.cx, value, rows.cx.scale(at, step), step);
        };
        self.rest(&[], |at, logits, _| {
            write(at, logits);
            Vec::new()
        });
        let whole = self.whole();
        let turns = e.div_unsigned(e.add_const(whole, self.step() - 1), e.i64(self.step()));
        e.for_each(e.i64(0), turns, 1, |turn| {
            let turn = e.sub(e.add_const(turns, -1), turn);
            for (at, logits) in self.strips(e.mul_const(turn, self.step()), whole) {
                e.if_then(e.cmp(Cmp::Lt, at, whole), || write(at, logits));
            }
        });
    }

    /// Columns of a turn.
    fn step(&self) -> i64 {
        i64::from(self.rows.cx.e.threads() * self.lanes) * STRIPS
    }

    /// Columns in whole strips.
    fn whole(&self) -> Val {
        let (e, n) = (&self.rows.cx.e, self.rows.n);
        e.sub(n, e.rem_unsigned(n, e.i64(self.lanes.into())))
    }

    fn load(&self, at: Val, lanes: u32) -> Val {
        let cx = self.rows.cx;
        let step = &self.row.logits.strides[1];
        self.row.logits.load_strip(cx, cx.scale(at, step), step, lanes)
    }

    /// The thread's strips of a turn: where they are, and their logits. Of those behind the end,
    /// what the last one has.
    fn strips(&self, first: Val, whole: Val) -> Vec<(Val, Val)> {
        let e = &self.rows.cx.e;
        let thread = e.cast(e.mul_const(e.thread(), self.lanes.into()), Elem::I64);
        let last = e.add_const(whole, -i64::from(self.lanes));
        let strip = |i: i64| {
            let skip = i * i64::from(e.threads() * self.lanes);
            let at = e.add_const(e.add(first, thread), skip);
            (at, self.load(e.min(at, last), self.lanes))
        };
        (0..STRIPS).map(strip).collect()
    }

    /// Calls `body` for a column behind the whole strips, by the thread that has one.
    fn rest(&self, init: &[Val], body: impl FnOnce(Val, Val, &[Val]) -> Vec<Val>) -> Vec<Val> {
        let e = &self.rows.cx.e;
        if self.lanes == 1 {
            return init.to_vec();
        }
        let at = e.add(self.whole(), e.cast(e.thread(), Elem::I64));
        let types: Vec<Ty> = init.iter().map(|value| value.ty()).collect();
        let inside = e.cmp(Cmp::Lt, at, self.rows.n);
        e.if_else(inside, &types, || body(at, self.load(at, 1), init), || init.to_vec())
    }

    /// The logarithm of the sum of exponentials of all.
    fn lse(&self) -> Val {
        let e = &self.rows.cx.e;
        let lowest = e.f32(f32::NEG_INFINITY);
        let whole = self.whole();
        let start = [lowest, e.f32(0.0)];
        let state = e.for_loop(e.i64(0), whole, self.step(), &start, |first, state| {
            let strips: Vec<Val> = self
                .strips(first, whole)
                .into_iter()
                .map(|(at, logits)| {
                    let none = e.splat(lowest, self.lanes);
                    e.select(e.cmp(Cmp::Lt, at, whole), logits, none)
                })
                .collect();
            self.with(state, &strips)
        });
        let state = self.rest(&state, |_, logits, state| self.with(state, &[logits]));
        let max = self.across(state[0], 0, |a, b| e.max(a, b));
        let shift = self.shift(max);
        let sum = e.mul(state[1], math::exp(e, e.sub(state[0], shift)));
        let sum = self.across(sum, 1, |a, b| e.add(a, b));
        e.add(math::log(e, sum), shift)
    }

    /// What exponents are less: the greatest, but for a row of -inf.
    fn shift(&self, max: Val) -> Val {
        let e = &self.rows.cx.e;
        let some = e.cmp(Cmp::Gt, max, e.f32(f32::NEG_INFINITY));
        e.select(some, max, e.f32(0.0))
    }

    /// The greatest and the sum of exponentials with strips more.
    fn with(&self, state: &[Val], strips: &[Val]) -> Vec<Val> {
        let e = &self.rows.cx.e;
        let [before, sum] = *state else { unreachable!("two of a thread") };
        let greatest = strips.iter().copied().reduce(|a, b| e.max(a, b)).expect("strips");
        let max = e.max(before, e.fold(greatest, |a, b| e.max(a, b)));
        let shift = self.shift(max);
        let power = |logits: &Val| math::exp(e, e.sub(*logits, e.splat(shift, logits.lanes())));
        let powers = strips.iter().map(power).reduce(|a, b| e.add(a, b)).expect("strips");
        let kept = e.mul(sum, math::exp(e, e.sub(before, shift)));
        vec![max, e.add(kept, e.fold(powers, |a, b| e.add(a, b)))]
    }

    /// The threads' values as one: lanes by halves, and so warps, whose values lie in their own
    /// part of shared memory.
    fn across(&self, value: Val, part: i64, combine: impl Fn(Val, Val) -> Val) -> Val {
        let (cx, e) = (self.rows.cx, &self.rows.cx.e);
        let value = cx.fold_warp(value, &combine);
        let warps = i64::from(e.threads() / 32);
        if warps == 1 {
            return value;
        }
        let place = |warp: Val| e.add(e.shared(), e.shl(warp, 2));
        e.if_then(e.cmp(Cmp::Eq, cx.lane(), e.i32(0)), || {
            e.store_shared(value, place(cx.warp()), 4 * warps * part);
        });
        e.barrier(Barrier::Block);
        // Lanes that differ by the number of warps have the same one.
        let own = e.and(cx.lane(), e.i32(warps - 1));
        let value = e.load_shared(Elem::F32, place(own), 4 * warps * part);
        let masks = [16, 8, 4, 2, 1].into_iter().filter(|mask| i64::from(*mask) < warps);
        masks.fold(value, |value, mask| combine(value, e.shuffle_xor(value, mask)))
    }
}
