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

    /// Whether rows of `n` elements, `strides` apart, can be walked `lanes` at a time, given that
    /// each begins at a multiple of sixteen bytes if these strides allow it.
    pub(super) fn in_strips(n: &Dim, strides: &[&Dim], lanes: u32) -> bool {
        let lanes = i64::from(lanes);
        let whole = |dim: &Dim| dim.as_const().is_some_and(|value| value % lanes == 0);
        whole(n) && strides.iter().all(|stride| whole(stride))
    }
}
