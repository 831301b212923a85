//! `kv_write` on a GPU: a thread moves one element; those of a token and head are neighbours.

use ir::{Dim, KernelSpec};

use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem},
    lower::{cx::Cx, flat},
};

pub(super) fn kernel(spec: &KernelSpec) -> CudaKernel {
    let cx = Cx::cuda(spec, flat::THREADS);
    let e = &cx.e;
    let slots = cx.operand(4);
    let [k_cache, v_cache] = [0, 1].map(|i| cx.result(i).bits());
    let block_size = v_cache.shape[2].clone();
    // Along the block, head, element and slot of each memory.
    let k_axes = [0, 1, 2, 3].map(|a| k_cache.strides[a].clone());
    let v_axes = [0, 1, 3, 2].map(|a| v_cache.strides[a].clone());
    let [k, v] = [2, 3].map(|i| cx.operand(i).bits());
    let (heads, of_k, of_v) = (k.shape[1].clone(), k.shape[2].clone(), v.shape[2].clone());
    let each = of_k.clone() + of_v;
    let count = k.shape[0].clone() * heads.clone() * each.clone();
    let grid = cx.each_thread(&count, |point| {
        let row = e.div_unsigned(point, cx.size(&each));
        let token = e.div_unsigned(row, cx.size(&heads));
        let head = e.rem_unsigned(row, cx.size(&heads));
        let i = e.rem_unsigned(point, cx.size(&each));
        let slot = e.cast(slots.load(&cx, cx.scale(token, &slots.strides[0])), Elem::I64);
        e.if_then(e.cmp(Cmp::Ge, slot, e.i64(0)), || {
            let (block, slot) = {
                let size = cx.size(&block_size);
                (e.div_unsigned(slot, size), e.rem_unsigned(slot, size))
            };
            let copy = |from: &super::View, to: &super::View, axes: &[Dim; 4], i| {
                let start = cx.offset(cx.scale(token, &from.strides[0]), head, &from.strides[1]);
                let value = from.load(&cx, cx.offset(start, i, &from.strides[2]));
                let start = cx.offset(cx.scale(block, &axes[0]), head, &axes[1]);
                let start = cx.offset(start, slot, &axes[3]);
                to.store(&cx, value, cx.offset(start, i, &axes[2]));
            };
            let is_key = e.cmp(Cmp::Lt, i, cx.size(&of_k));
            e.either(
                is_key,
                || copy(&k, &k_cache, &k_axes, i),
                || copy(&v, &v_cache, &v_axes, e.sub(i, cx.size(&of_k))),
            );
        });
    });
    cx.finish_cuda(grid, 0, &[], |_| false)
}
