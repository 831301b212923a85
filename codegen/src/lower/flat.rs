//! GPU kernels in which every thread does the same for one point: how points are counted out.

use ir::Dim;

use super::cx::Cx;
use crate::emit::{Cmp, Elem, Val};

/// Threads of a block.
pub(super) const THREADS: u32 = 256;

impl Cx<'_> {
    /// Runs `body(point)` for every point of `0..count`, a thread each, and returns the grid.
    pub(super) fn each_thread(&self, count: &Dim, body: impl FnOnce(Val)) -> [Dim; 3] {
        let e = &self.e;
        let threads = i64::from(e.threads());
        let block = e.cast(e.block('x'), Elem::I64);
        let point = e.add(e.mul_const(block, threads), e.cast(e.thread(), Elem::I64));
        e.if_then(e.cmp(Cmp::Lt, point, self.size(count)), || body(point));
        [count.ceil_div(threads), 1.into(), 1.into()]
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
