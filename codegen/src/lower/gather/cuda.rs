//! Gathers on a GPU: a thread moves sixteen bytes of a block, or one element.

use ir::{Dim, KernelSpec};

use super::{Pick, missing};
use crate::{
    cuda::CudaKernel,
    lower::{cx::Cx, flat},
};

pub(super) fn kernel(spec: &KernelSpec) -> Result<CudaKernel, String> {
    let cx = Cx::cuda(spec, flat::THREADS);
    let e = &cx.e;
    let (data, indices, y) = (cx.operand(0), cx.operand(1), cx.result(0));
    let pick = Pick::of(spec, &data, &indices, &y)?;
    let missing = missing(e, data.dtype);
    let (data, y) = (data.bits(), y.bits());
    let wide = u32::try_from(16 / data.dtype.size()).unwrap_or(1);
    let (of_data, of_y) = (&pick.outer.strides[0], &pick.outer.strides[2]);
    let tuple = pick.tuple.iter().map(|(_, _, stride)| stride);
    let strides: Vec<&Dim> = of_data.iter().chain(of_y).chain(tuple).collect();
    let dense = pick.steps[0].is(1) && pick.steps[2].is(1);
    let lanes = if dense && Cx::in_strips(&pick.n, &strides, wide) { wide } else { 1 };
    let each = pick.n.ceil_div(lanes.into());
    let grid = cx.each_thread(&(pick.outer.points() * each.clone()), |index| {
        let each = cx.size(&each);
        let (from, inside, to) = pick.block(&cx, &indices, e.div_unsigned(index, each));
        let i = e.mul_const(e.rem_unsigned(index, each), lanes.into());
        let (to, step) = (y.at(&cx, to), &pick.steps[2]);
        let store = |value| to.store_strip(&cx, value, cx.scale(i, step), step);
        let step = &pick.steps[0];
        let load = || {
            let from = data.at(&cx, from);
            store(from.load_strip(&cx, cx.scale(i, step), step, lanes));
        };
        e.either(inside, load, || store(e.splat(missing, lanes)));
    });
    Ok(cx.finish_cuda(grid, 0, &[], |arg| lanes > 1 && arg != 1))
}
