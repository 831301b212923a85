//! Reductions on a GPU, by teams of threads where a result is of many elements.
//!
//! Where the folded axes are the inner ones, neighbouring threads fold neighbouring elements: a
//! warp for each result, or a block where those are many. Where the axis that stays is the inner
//! one, neighbouring threads have neighbouring results: a thread for each, or a block for a few
//! columns, whose teams take every so-many-th element. Each thread folds its elements in order,
//! several loads ahead; threads are then folded in one order. Which way it is is decided by the
//! layout alone.

use ir::{Dim, KernelSpec};

use super::{Reduction, Space};
use crate::{
    cuda::CudaKernel,
    emit::{Barrier, Cmp, Elem, Val},
    lower::{cx::Cx, flat},
};

/// Threads of a block in which each has a row of its own.
pub(super) const ROW_THREADS: u32 = 64;
/// Loads that a thread has under way.
const AHEAD: i64 = 8;
/// Elements for which a warp, or a thread, is enough.
const FEW: i64 = 1024;
const FEW_ROWS: i64 = 64;
/// Threads of a block that shares a few results.
const TEAM: i64 = 512;

pub(super) fn kernel(spec: &KernelSpec) -> CudaKernel {
    let shape = {
        let cx = Cx::cuda(spec, flat::THREADS);
        Shape::of(&Reduction::of(&cx), &cx)
    };
    match shape {
        Shape::Threads(lanes) => few(spec, lanes),
        Shape::Block(threads) => row(spec, threads),
        Shape::Columns(columns) => teams(spec, columns),
    }
}

/// How threads share the work.
enum Shape {
    /// So many lanes a result.
    Threads(i64),
    /// A block of so many threads a result.
    Block(i64),
    /// A block for so many neighbouring results.
    Columns(i64),
}

impl Shape {
    fn of(reduction: &Reduction<'_>, cx: &Cx<'_>) -> Shape {
        let Reduction { x, fold, kept, gone, .. } = reduction;
        let dense = |s: &Space| s.strides[0].last().is_some_and(|s| s.is(1));
        let start = fold.start(&cx.e, 1);
        if start.elem().bits() != 32 || start.elem() == Elem::Bool {
            return Shape::Threads(1);
        }
        let (count, results) = (gone.points().as_const(), kept.points().as_const());
        if dense(gone) || !dense(kept) {
            return match (count, results) {
                (Some(count), _) if count <= FEW => Shape::Threads(32),
                (_, Some(results)) if results <= 32 => Shape::Block(1024),
                _ => Shape::Block(128),
            };
        }
        if count.is_some_and(|count| count <= FEW_ROWS) {
            return Shape::Threads(1);
        }
        // Blocks for most multiprocessors, but no fewer columns than a sector of memory has.
        let sector = 32 / i64::try_from(x.dtype.size()).expect("small").max(1);
        let wanted = results.map_or(32, |results| results / 128).clamp(sector.min(32), 32);
        Shape::Columns(1 << wanted.ilog2())
    }
}

impl Reduction<'_> {
    /// Folds the elements `first`, `first + step` and so on of a result, which begins at an offset.
    fn part(&self, cx: &Cx<'_>, at: Val, first: Val, step: i64) -> Val {
        let e = &cx.e;
        let count = cx.size(&self.gone.points());
        let load = |turn: Val| {
            let offset = e.add(at, self.gone.offsets(cx, turn)[0]);
            self.fold.term(e, self.x.load(cx, offset))
        };
        let start = self.fold.start(e, 1);
        // Whole turns of several loads, and the rest one by one.
        let turns = {
            let left = e.max(e.i64(0), e.sub(count, first));
            let mine = e.div_unsigned(e.add_const(left, step - 1), e.i64(step));
            e.sub(mine, e.rem_unsigned(mine, e.i64(AHEAD)))
        };
        let end = e.add(first, e.mul_const(turns, step));
        let whole = e.for_loop(first, end, AHEAD * step, &[start], |turn, sums| {
            let loads: Vec<Val> = (0..AHEAD).map(|i| load(e.add_const(turn, i * step))).collect();
            let all = loads.into_iter().fold(sums[0], |sum, x| self.fold.combine(e, sum, x));
            vec![all]
        });
        let all = e.for_loop(end, count, step, &whole, |turn, sums| {
            vec![self.fold.combine(e, sums[0], load(turn))]
        });
        all[0]
    }

    /// Stores a result, of which `at` are the offsets.
    fn store(&self, cx: &Cx<'_>, total: Val, at: Val) {
        self.y.store(cx, self.fold.finish(cx, total), at);
    }
}

/// Some lanes of a warp, or a thread, for each result.
fn few(spec: &KernelSpec, lanes: i64) -> CudaKernel {
    let cx = Cx::cuda(spec, flat::THREADS);
    let e = &cx.e;
    let reduction = Reduction::of(&cx);
    let kept = &reduction.kept;
    let grid = cx.each_thread(&(kept.points() * Dim::from(lanes)), |point| {
        let lane = e.rem_unsigned(point, e.i64(lanes));
        let at = kept.offsets(&cx, e.div_unsigned(point, e.i64(lanes)));
        let mut total = reduction.part(&cx, at[0], lane, lanes);
        if lanes > 1 {
            total = cx.fold_warp(total, |a, b| reduction.fold.combine(e, a, b));
        }
        reduction.store(&cx, total, at[1]);
    });
    cx.finish_cuda(grid, 0, &[], |_| false)
}

/// A block for each result.
fn row(spec: &KernelSpec, threads: i64) -> CudaKernel {
    let cx = Cx::cuda(spec, u32::try_from(threads).expect("few threads"));
    let e = &cx.e;
    let reduction = Reduction::of(&cx);
    let kept = &reduction.kept;
    let at = kept.offsets(&cx, e.cast(e.block('x'), Elem::I64));
    let own = reduction.part(&cx, at[0], e.cast(e.thread(), Elem::I64), threads);
    let total = cx.fold_block(own, e.shared(), |a, b| reduction.fold.combine(e, a, b));
    e.if_then(e.cmp(Cmp::Eq, e.thread(), e.i32(0)), || reduction.store(&cx, total, at[1]));
    let grid = [kept.points(), 1.into(), 1.into()];
    let shared = u32::try_from(threads / 32 * 4).expect("small");
    cx.finish_cuda(grid, shared, &[], |_| false)
}

/// A block for so many neighbouring results.
fn teams(spec: &KernelSpec, columns: i64) -> CudaKernel {
    let cx = Cx::cuda(spec, u32::try_from(TEAM).expect("few threads"));
    let e = &cx.e;
    let reduction = Reduction::of(&cx);
    let kept = &reduction.kept;
    let count = cx.size(&kept.points());
    let own = e.rem_unsigned(e.thread(), e.i32(columns));
    let team = e.div_unsigned(e.thread(), e.i32(columns));
    let first = e.mul_const(e.cast(e.block('x'), Elem::I64), columns);
    let point = e.add(first, e.cast(own, Elem::I64));
    // Threads without a result of their own take part in the last one's.
    let at = kept.offsets(&cx, e.min(point, e.add_const(count, -1)));
    let part = reduction.part(&cx, at[0], e.cast(team, Elem::I64), TEAM / columns);
    let place = e.add(e.shared(), e.shl(e.thread(), 2));
    e.store_shared(part, place, 0);
    e.barrier(Barrier::Block);
    let leads = e.cmp(Cmp::Eq, team, e.i32(0));
    e.if_then(e.and(leads, e.cmp(Cmp::Lt, point, count)), || {
        let of_team = |team: i64| e.load_shared(part.elem(), place, 4 * columns * team);
        let total = (1..TEAM / columns)
            .fold(of_team(0), |sum, team| reduction.fold.combine(e, sum, of_team(team)));
        reduction.store(&cx, total, at[1]);
    });
    let grid = [kept.points().ceil_div(columns), 1.into(), 1.into()];
    cx.finish_cuda(grid, u32::try_from(4 * TEAM).expect("small"), &[], |_| false)
}
