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
    let scales = super::has_scales(spec)
        .then(|| [0, 1].map(|i| (cx.operand(7 + i).bits(), cx.result(2 + i).bits())));
    let data = of_k.clone() + of_v;
    // Behind the elements of a head, its scales.
    let each = data.clone() + Dim::from(if scales.is_some() { 2 } else { 0 });
    let all_slots = v_cache.shape[0].clone() * v_cache.shape[2].clone();
    let count = k.shape[0].clone() * heads.clone() * each.clone();
    let grid = cx.each_thread(&count, |point| {
        let row = e.div_unsigned(point, cx.size(&each));
        let token = e.div_unsigned(row, cx.size(&heads));
        let head = e.rem_unsigned(row, cx.size(&heads));
        let i = e.rem_unsigned(point, cx.size(&each));
        let slot = e.cast(slots.load(&cx, cx.scale(token, &slots.strides[0])), Elem::I64);
        // Beyond the memory as for negative ones: no index may lead out of it.
        let before = e.cmp(Cmp::Lt, slot, cx.size(&all_slots));
        e.if_then(e.and(before, e.cmp(Cmp::Ge, slot, e.i64(0))), || {
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
            let value = || copy(&v, &v_cache, &v_axes, e.sub(i, cx.size(&of_k)));
            let is_key = e.cmp(Cmp::Lt, i, cx.size(&of_k));
            let rest = || match &scales {
                None => value(),
                Some([k, v]) => {
                    let move_scale = |(from, to): &(super::View, super::View)| {
                        let start = cx.scale(token, &from.strides[0]);
                        let scale = from.load(&cx, cx.offset(start, head, &from.strides[1]));
                        let start =
                            cx.offset(cx.scale(block, &to.strides[0]), head, &to.strides[1]);
                        to.store(&cx, scale, cx.offset(start, slot, &to.strides[2]));
                    };
                    let behind = e.sub(i, cx.size(&data));
                    let scale = || {
                        let of_key = e.cmp(Cmp::Eq, behind, e.i64(0));
                        e.either(of_key, || move_scale(k), || move_scale(v));
                    };
                    e.either(e.cmp(Cmp::Lt, behind, e.i64(0)), value, scale);
                }
            };
            e.either(is_key, || copy(&k, &k_cache, &k_axes, i), rest);
        });
    });
    cx.finish_cuda(grid, 0, &[], |_| false)
}
