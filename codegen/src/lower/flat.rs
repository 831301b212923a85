//! GPU kernels in which every thread does the same for one point: how points are counted out.

use ir::Dim;

use super::cx::Cx;
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Val},
};

/// Threads of a block.
pub(super) const THREADS: u32 = 256;

fn grid(count: &Dim, threads: i64) -> [Dim; 3] {
    [count.ceil_div(threads), 1.into(), 1.into()]
}

impl Cx<'_> {
    /// Runs `body(point)` for every point of `0..count`, a thread each, and returns the grid.
    pub(super) fn each_thread(&self, count: &Dim, body: impl FnOnce(Val)) -> [Dim; 3] {
        let e = &self.e;
        let threads = i64::from(e.threads());
        let block = e.cast(e.block('x'), Elem::I64);
        let point = e.add(e.mul_const(block, threads), e.cast(e.thread(), Elem::I64));
        e.if_then(e.cmp(Cmp::Lt, point, self.size(count)), || body(point));
        grid(count, threads)
    }

    /// The finished kernel in which so many threads have one point each.
    pub(super) fn finish_flat(self, count: &Dim) -> CudaKernel {
        let grid = grid(count, self.e.threads().into());
        self.finish_cuda(grid, 0, &[], |_| false)
    }

    /// Runs `body(points)` for every point of `0..count`, so many a thread where there are as many,
    /// else one by one, and returns the grid. A thread's points are a block's threads apart.
    pub(super) fn each_thread_of(
        &self,
        count: &Dim,
        points: i64,
        body: impl Fn(&[Val]),
    ) -> [Dim; 3] {
        let e = &self.e;
        let threads = i64::from(e.threads());
        let block = e.cast(e.block('x'), Elem::I64);
        let thread = e.cast(e.thread(), Elem::I64);
        let first = e.add(e.mul_const(block, points * threads), thread);
        let all: Vec<Val> = (0..points).map(|i| e.add_const(first, i * threads)).collect();
        let last = *all.last().expect("a point");
        let count_val = self.size(count);
        e.either(
            e.cmp(Cmp::Lt, last, count_val),
            || body(&all),
            || {
                for point in &all[..all.len() - 1] {
                    e.if_then(e.cmp(Cmp::Lt, *point, count_val), || body(&[*point]));
                }
            },
        );
        [count.ceil_div(points * threads), 1.into(), 1.into()]
    }

    /// Whether rows of `n` elements, `strides` apart, can be walked `lanes` at a time, given that
    /// each begins at a multiple of sixteen bytes if these strides allow it.
    pub(super) fn in_strips(n: &Dim, strides: &[&Dim], lanes: u32) -> bool {
        let lanes = Dim::from(i64::from(lanes));
        let whole = |dim: &Dim| dim.exact_div(&lanes).is_some();
        whole(n) && strides.iter().all(|stride| whole(stride))
    }
}
