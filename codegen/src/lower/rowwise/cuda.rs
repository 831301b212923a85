//! Rows on a GPU: a block of threads for each row.
//!
//! Every thread folds the strips that are the block's width apart, then lanes of a strip, lanes of
//! a warp and warps are folded in one order: a row's bits depend on nothing but the row.

use std::cell::Cell;

use ir::{Dim, KernelSpec};

use super::{Row, Rows};
use crate::{
    cuda::CudaKernel,
    emit::{Barrier, Cmp, Elem, Ty, Val},
    lower::{LowerError, cx::Cx},
};

/// The threads that share a row.
pub(super) struct Team {
    lanes: u32,
    /// Folds so far: each has a place in shared memory of its own.
    folds: Cell<i64>,
}

/// Most folds of a row.
const FOLDS: i64 = 3;
/// Warps of a block.
const WARPS: i64 = 8;

impl Team {
    /// For these rows.
    fn new(rows: &Rows) -> Team {
        let strides: Vec<&Dim> = rows.outer.strides.iter().flatten().collect();
        let dense = rows.sx.is(1) && rows.sy.is(1);
        let lanes = if dense && Cx::in_strips(&rows.n, &strides, 4) { 4 } else { 1 };
        Team { lanes, folds: Cell::new(0) }
    }

    /// Calls `body` for this thread's strips.
    fn strips(
        &self,
        row: &Row<'_>,
        init: &[Val],
        body: impl FnOnce(Val, &[Val]) -> Vec<Val>,
    ) -> Vec<Val> {
        let e = &row.cx.e;
        let first = e.cast(e.mul_const(e.thread(), self.lanes.into()), Elem::I64);
        let step = i64::from(e.threads() * self.lanes);
        e.for_loop(first, row.n, step, init, body)
    }

    pub(super) fn fold(
        &self,
        row: &Row<'_>,
        start: f64,
        value: impl Fn(Val) -> Val,
        combine: impl Fn(Val, Val) -> Val,
        across: impl Fn(Val) -> Val,
    ) -> Val {
        let e = &row.cx.e;
        let init = e.float(Ty::of(Elem::F32, self.lanes), start);
        let sums = self
            .strips(row, &[init], |i, sums| vec![combine(sums[0], value(row.load(i, self.lanes)))]);
        let mut total = if self.lanes == 1 { sums[0] } else { across(sums[0]) };
        for mask in [16, 8, 4, 2, 1] {
            total = combine(total, e.shuffle_xor(total, mask));
        }
        let warps = i64::from(e.threads() / 32);
        if warps == 1 {
            return total;
        }
        let fold = self.folds.replace(self.folds.get() + 1);
        assert!(fold < FOLDS, "a row is folded {FOLDS} times at most");
        let base = e.add_const(e.shared(), fold * WARPS * 4);
        let warp = e.shr(e.thread(), 5);
        let lane = e.and(e.thread(), e.i32(31));
        e.if_then(e.cmp(Cmp::Eq, lane, e.i32(0)), || {
            e.ptx("st.shared.f32 [$0], $1;", &[e.add(base, e.shl(warp, 2)), total]);
        });
        e.barrier(Barrier::Block);
        let part = |i: i64| {
            let text = format!("ld.shared.f32 $0, [$1+{}];", 4 * i);
            e.ptx_values(&text, &[Ty::Scalar(Elem::F32)], &[base])[0]
        };
        (1..warps).fold(part(0), |sum, i| combine(sum, part(i)))
    }

    pub(super) fn map(&self, row: &Row<'_>, value: impl Fn(Val, Val) -> Val) {
        let cx = row.cx;
        let _ = self.strips(row, &[], |i, _| {
            let y = value(i, row.load(i, self.lanes));
            row.y.store_strip(cx, y, cx.scale(i, &row.sy), &row.sy);
            Vec::new()
        });
    }
}

/// Emits the kernel.
pub(super) fn kernel(spec: &KernelSpec) -> Result<CudaKernel, LowerError> {
    // How many threads there are depends on the rows, which are read through a context.
    let n = Rows::of(&Cx::cuda(spec, 32))?.n;
    let cx = Cx::cuda(spec, threads(&n));
    let rows = Rows::of(&cx)?;
    let team = Team::new(&rows);
    let point = cx.e.cast(cx.e.block('x'), Elem::I64);
    let lanes = team.lanes;
    rows.row(&cx, point, Some(team)).emit();
    let grid = [rows.outer.points(), 1.into(), 1.into()];
    let shared = u32::try_from(FOLDS * WARPS * 4).expect("small");
    Ok(cx.finish_cuda(grid, shared, &[], |_| lanes > 1))
}

/// Threads for a row of `n`.
fn threads(n: &Dim) -> u32 {
    match n.as_const() {
        Some(n) if n <= 256 => 32,
        Some(n) if n <= 1024 => 128,
        _ => 256,
    }
}
