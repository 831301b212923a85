//! Loops on a GPU: a thread computes strips of neighbours where all operands allow it, else single
//! elements.
//!
//! A strip is sixteen bytes of the narrowest tensor, which is what a thread reads at once. A thread
//! has two strips, and loads both before it stores: with one of a single operand in flight, all
//! threads that a multiprocessor holds wait for 32 KiB, less than memory's latency times its share
//! of the bandwidth. Threads follow the results' innermost axis; an operand that is dense along
//! another one is read in strides.

use ir::{Dim, KernelSpec};

use super::{Code, Loop};
use crate::{
    cuda::CudaKernel,
    lower::{cx::Cx, flat},
};

/// Most elements of a strip.
const LANES: u32 = 8;
/// Strips of a thread.
const STRIPS: i64 = 2;

pub(super) fn kernel(spec: &KernelSpec, code: &Code) -> CudaKernel {
    let cx = Cx::cuda(spec, flat::THREADS);
    let e = &cx.e;
    let nest = Loop::of(&cx, code);
    let (outer, inner, steps) = nest.space.clone().split_inner();
    let tensors = nest.operands.len() + nest.results.len();
    let strides: Vec<&Dim> = outer.strides[..tensors].iter().flatten().collect();
    let even = steps[..tensors].iter().all(|step| step.is(0) || step.is(1));
    let mut tensors = nest.operands.iter().chain(&nest.results);
    let widest = if tensors.any(|view| view.dtype.size() < 4) { LANES } else { LANES / 2 };
    let fits = |lanes: &u32| even && Cx::in_strips(&inner, &strides, *lanes);
    let lanes = [widest, 4].into_iter().find(fits).unwrap_or(1);
    let each = inner.ceil_div(lanes.into());
    let strips = if lanes > 1 { STRIPS } else { 1 };
    let flat = outer.extents.is_empty();
    let grid = cx.each_thread_of(&(outer.points() * each.clone()), strips, |points| {
        let places = points.iter().map(|point| {
            if flat {
                return (outer.offsets(&cx, e.i64(0)), e.mul_const(*point, lanes.into()));
            }
            let each = cx.size(&each);
            let offsets = outer.offsets(&cx, e.div_unsigned(*point, each));
            (offsets, e.mul_const(e.rem_unsigned(*point, each), lanes.into()))
        });
        let places: Vec<_> = places.collect();
        let lines: Vec<_> =
            places.iter().map(|(offsets, _)| nest.line(&cx, offsets, &steps)).collect();
        let strips = || lines.iter().zip(&places);
        let values: Vec<_> =
            strips().map(|(line, (_, first))| line.values(&cx, *first, lanes)).collect();
        for ((line, (_, first)), values) in strips().zip(values) {
            line.store(&cx, *first, values);
        }
    });
    cx.finish_cuda(grid, 0, &[], |arg| lanes > 1 && steps[arg as usize].is(1))
}
