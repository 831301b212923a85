//! Loops on a GPU: a thread computes four neighbours where all operands allow it, else one element.
//!
//! Threads follow the results' innermost axis; an operand that is dense along another one is read
//! in strides.

use ir::{Dim, KernelSpec};

use super::{Code, Loop};
use crate::{
    cuda::CudaKernel,
    lower::{cx::Cx, flat},
};

/// Elements that a thread computes where they are dense.
const LANES: u32 = 4;

pub(super) fn kernel(spec: &KernelSpec, code: &Code) -> CudaKernel {
    let cx = Cx::cuda(spec, flat::THREADS);
    let e = &cx.e;
    let nest = Loop::of(&cx, code);
    let (outer, inner, steps) = nest.space.clone().split_inner();
    let tensors = nest.operands.len() + nest.results.len();
    let strides: Vec<&Dim> = outer.strides[..tensors].iter().flatten().collect();
    let even = steps[..tensors].iter().all(|step| step.is(0) || step.is(1));
    let lanes = if even && Cx::in_strips(&inner, &strides, LANES) { LANES } else { 1 };
    let each = inner.ceil_div(lanes.into());
    let grid = cx.each_thread(&(outer.points() * each.clone()), |point| {
        let each = cx.size(&each);
        let offsets = outer.offsets(&cx, e.div_unsigned(point, each));
        let line = nest.line(&cx, &offsets, &steps);
        line.strip(&cx, e.mul_const(e.rem_unsigned(point, each), lanes.into()), lanes);
    });
    cx.finish_cuda(grid, 0, &[], |arg| lanes > 1 && steps[arg as usize].is(1))
}
