//! Reductions on a GPU: a warp for each result where the folded axes are the inner ones, else a
//! thread.
//!
//! Lanes fold every thirty-second element and are then folded by halves; a thread folds all of its
//! elements in order. Which of both is decided by the layout alone.

use ir::KernelSpec;

use super::{Reduction, Space};
use crate::{
    cuda::CudaKernel,
    lower::{cx::Cx, flat},
};

/// Threads of a block in which each has a row of its own.
pub(super) const ROW_THREADS: u32 = 64;

pub(super) fn kernel(spec: &KernelSpec) -> CudaKernel {
    let cx = Cx::cuda(spec, flat::THREADS);
    let e = &cx.e;
    let Reduction { x, y, fold, kept, gone } = Reduction::of(&cx);
    let dense = |s: &Space| s.strides[0].last().is_some_and(|s| s.is(1));
    let word = fold.start(e, 1).elem().bits() == 32;
    let shared = word && (dense(&gone) || !dense(&kept));
    let lanes = if shared { 32 } else { 1 };
    let points = kept.points() * ir::Dim::from(lanes);
    let grid = cx.each_thread(&points, |point| {
        let lane = e.rem_unsigned(point, e.i64(lanes));
        let at = kept.offsets(&cx, e.div_unsigned(point, e.i64(lanes)));
        let count = cx.size(&gone.points());
        let sums = e.for_loop(lane, count, lanes, &[fold.start(e, 1)], |turn, sums| {
            let offset = e.add(at[0], gone.offsets(&cx, turn)[0]);
            vec![fold.combine(e, sums[0], x.load(&cx, offset))]
        });
        let mut total = sums[0];
        if shared {
            for mask in [16, 8, 4, 2, 1] {
                total = fold.combine(e, total, e.shuffle_xor(total, mask));
            }
        }
        y.store(&cx, fold.finish(&cx, total), at[1]);
    });
    cx.finish_cuda(grid, 0, &[], |_| false)
}
