//! Gradients of norms on a GPU: a block of threads for each block of rows.
//!
//! Warps reduce rows, whose means and deviations stay in shared memory. Then threads stand in four
//! teams, each with a quarter of the rows, and take columns: what the teams sum is added from the
//! first to the last. So the order of sums is one, and all of it is parallel.

use ir::{Dim, KernelSpec, NORM_GRAD_ROWS};

use super::{Grad, Row};
use crate::{
    cuda::CudaKernel,
    emit::{Barrier, Cmp, Elem, Ty, Val},
    lower::cx::Cx,
};

const THREADS: u32 = 512;
const WARPS: i64 = THREADS as i64 / 32;
const BLOCK: i64 = NORM_GRAD_ROWS as i64;
const TEAMS: i64 = 4;
/// Threads of a team.
const WIDTH: i64 = THREADS as i64 / TEAMS;
/// Means of x and of g, one over the deviation, mean of `g · n`: f32 by row.
const STATS: i64 = 4;
const STATS_BYTES: i64 = 4 * STATS * BLOCK;

pub(super) fn kernel(spec: &KernelSpec) -> CudaKernel {
    let cx = Cx::cuda(spec, THREADS);
    let e = &cx.e;
    let grad = Grad::of(&cx);
    let rows = grad.x.shape[0].clone();
    let n = grad.x.shape[1].clone();
    let every = [&grad.x, &grad.w, &grad.dy, &grad.dx].into_iter().chain(&grad.sums);
    let every = every.chain(&grad.residual).chain(&grad.rounded);
    let steps: Vec<&Dim> = every
        .clone()
        .filter_map(|v| v.strides.len().checked_sub(2).map(|a| &v.strides[a]))
        .collect();
    let dense = every.clone().all(|v| v.strides.last().is_some_and(|s| s.is(1)));
    let lanes = if dense && Cx::in_strips(&n, &steps, 4) { 4 } else { 1 };
    let block = e.cast(e.block('x'), Elem::I64);
    let first = e.mul_const(block, BLOCK);
    let count = e.min(e.i64(BLOCK), e.sub(cx.size(&rows), first));
    let team = Team { grad: &grad, lanes, first, shared: e.shared() };
    e.for_each(e.cast(cx.warp(), Elem::I64), count, WARPS, |row| team.reduce(row));
    e.barrier(Barrier::Block);
    team.columns(block, count);
    let sums = TEAMS * WIDTH * i64::from(lanes) * 4 * grad.sums.len() as i64;
    let shared = u32::try_from(STATS_BYTES + sums).expect("small");
    cx.finish_cuda([rows.ceil_div(BLOCK), 1.into(), 1.into()], shared, &[], |_| lanes > 1)
}

struct Team<'g> {
    grad: &'g Grad<'g>,
    lanes: u32,
    /// The block's first row.
    first: Val,
    /// Address of shared memory.
    shared: Val,
}

impl Team<'_> {
    fn word(&self, at: Val, index: Val) -> Val {
        let e = &self.grad.cx.e;
        e.add(at, e.shl(e.cast(index, Elem::I32), 2))
    }

    fn stat(&self, row: Val) -> Val {
        self.word(self.shared, self.grad.cx.e.mul_const(row, STATS))
    }

    /// A row of the block, by a warp.
    fn reduce(&self, row: Val) {
        let (cx, e) = (self.grad.cx, &self.grad.cx.e);
        let sum = |value: &dyn Fn(Val, u32) -> [Val; 2]| {
            let init = [e.zero(Ty::of(Elem::F32, self.lanes)); 2];
            let first = e.mul_const(e.cast(cx.lane(), Elem::I64), self.lanes.into());
            let step = 32 * i64::from(self.lanes);
            let sums = e.for_loop(first, self.grad.n, step, &init, |i, sums| {
                let values = value(i, self.lanes);
                sums.iter().zip(values).map(|(sum, value)| e.add(*sum, value)).collect()
            });
            [0, 1].map(|i| cx.fold_warp(e.reduce_add(sums[i]), |a, b| e.add(a, b)))
        };
        let row_values = self.grad.reduce_with(e.add(self.first, row), &sum);
        let Row { means, r, slope, .. } = row_values;
        let (mean, level) = means.unwrap_or((e.f32(0.0), e.f32(0.0)));
        e.if_then(e.cmp(Cmp::Eq, cx.lane(), e.i32(0)), || {
            for (i, value) in (0..).zip([mean, level, r, slope]) {
                e.store_shared(value, self.stat(row), 4 * i);
            }
        });
    }

    /// What [`Self::reduce`] left of a row.
    fn row(&self, row: Val) -> Row {
        let (grad, e) = (self.grad, &self.grad.cx.e);
        let stats = e.load_shared_four(Elem::F32, self.stat(row), 0);
        let at = e.add(self.first, row);
        let ([x, dy, dx], [residual, rounded]) = grad.views(at);
        let means = grad.centred().then_some((stats[0], stats[1]));
        Row { x, dy, residual, dx, rounded, means, r: stats[2], slope: stats[3] }
    }

    fn columns(&self, block: Val, count: Val) {
        let (grad, e) = (self.grad, &self.grad.cx.e);
        let thread = e.cast(e.thread(), Elem::I64);
        let (team, own) =
            (e.div_unsigned(thread, e.i64(WIDTH)), e.rem_unsigned(thread, e.i64(WIDTH)));
        let ty = Ty::of(Elem::F32, self.lanes);
        let each = BLOCK / TEAMS;
        let from = e.mul_const(team, each);
        let to = e.max(from, e.min(e.add_const(from, each), count));
        let step = WIDTH * i64::from(self.lanes);
        let partial = e.add_const(self.shared, STATS_BYTES);
        let words = (0..).zip(&grad.sums).map(|(sum, _)| sum * i64::from(self.lanes));
        let words: Vec<i64> = words.collect();
        // Word `w` of a team's sums lies beside those of the team's other threads.
        let place = |team: Val| self.word(partial, e.add(e.mul_const(team, WIDTH), own));
        e.for_each(e.i64(0), grad.n, step, |column| {
            let i = e.add(column, e.mul_const(own, self.lanes.into()));
            let inside = e.cmp(Cmp::Lt, i, grad.n);
            let init = vec![e.zero(ty); grad.sums.len()];
            let types = vec![ty; grad.sums.len()];
            let sums = e.if_else(
                inside,
                &types,
                || {
                    let w = grad.load(&grad.w, i, self.lanes);
                    e.for_loop(from, to, 1, &init, |row, sums| {
                        grad.step(&self.row(row), w, i, sums)
                    })
                },
                || init.clone(),
            );
            for (first, sum) in words.iter().zip(&sums) {
                for lane in 0..self.lanes {
                    let byte = 4 * TEAMS * WIDTH * (first + i64::from(lane));
                    e.store_shared(e.extract(*sum, lane), place(team), byte);
                }
            }
            e.barrier(Barrier::Block);
            let mine = e.and(inside, e.cmp(Cmp::Eq, team, e.i64(0)));
            e.if_then(mine, || {
                for (first, view) in words.iter().zip(&grad.sums) {
                    let total = (0..self.lanes).fold(e.zero(ty), |total, lane| {
                        let byte = 4 * TEAMS * WIDTH * (first + i64::from(lane));
                        let part = |team: i64| {
                            e.load_shared(Elem::F32, place(e.i64(0)), byte + 4 * WIDTH * team)
                        };
                        let sum = (1..TEAMS).fold(part(0), |sum, team| e.add(sum, part(team)));
                        if self.lanes == 1 { sum } else { e.insert(sum, total, lane) }
                    });
                    grad.store(&grad.row_of(view, block), i, total);
                }
            });
            e.barrier(Barrier::Block);
        });
    }
}
