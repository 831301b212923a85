//! `kv_write`: keys and values of tokens into their slots, in place.

mod cuda;

use ir::{Dim, KernelSpec, Target};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, refuse, stored_bytes},
    view::{View, check_rank},
};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Val},
};

/// The family.
pub(super) struct KvWrite;

impl Lower for KvWrite {
    fn ops(&self) -> &'static [&'static str] {
        &["kv_write"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        for (i, rank) in [(0, 4), (1, 4), (2, 3), (3, 3), (4, 1)] {
            check_rank(spec, i, rank)?;
        }
        if has_scales(spec) {
            for (i, rank) in [(5, 3), (6, 3), (7, 2), (8, 2)] {
                check_rank(spec, i, rank)?;
            }
        }
        for (result, operand) in KernelSpec::in_place(spec.op) {
            let result = spec.results.get(*result);
            if result.is_some_and(|r| spec.operands[*operand].as_ref() != Some(r)) {
                return Err("the memories are updated in place, so layouts must agree".into());
            }
        }
        Ok(())
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let e = &cx.e;
        let [k, v] = [2, 3].map(|i| cx.operand(i).bits());
        let slots = cx.operand(4);
        let [k_cache, v_cache] = [0, 1].map(|i| cx.result(i).bits());
        let block_size = cx.size(&v_cache.shape[2]);
        let all_slots = cx.size(&(v_cache.shape[0].clone() * v_cache.shape[2].clone()));
        // Along the block, head, element and slot of each memory.
        let k_axes = [0, 1, 2, 3].map(|a| k_cache.strides[a].clone());
        let v_axes = [0, 1, 3, 2].map(|a| v_cache.strides[a].clone());
        let scales = has_scales(spec)
            .then(|| [0, 1].map(|i| (cx.operand(7 + i).bits(), cx.result(2 + i).bits())));
        let each = k.shape[1].clone() * (k.shape[2].clone() + v.shape[2].clone());
        let tiles = cx.share_rows(&k.shape[0], &each, |token| {
            let slot = e.cast(slots.load(&cx, cx.scale(token, &slots.strides[0])), Elem::I64);
            // Beyond the memory as for negative ones: no index may lead out of it.
            let inside = e.and(e.cmp(Cmp::Ge, slot, e.i64(0)), e.cmp(Cmp::Lt, slot, all_slots));
            e.if_then(inside, || {
                let place = (e.div_unsigned(slot, block_size), e.rem_unsigned(slot, block_size));
                write(&cx, &k, &k_cache, &k_axes, token, place);
                write(&cx, &v, &v_cache, &v_axes, token, place);
                for (from, to) in scales.iter().flatten() {
                    write_scales(&cx, from, to, token, place);
                }
            });
        });
        Ok(cx.finish(tiles, 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        Ok(vec![cuda::kernel(spec)])
    }

    fn bytes(&self, spec: &KernelSpec) -> Dim {
        // What is given is read, and written to memory.
        let operands = spec.operands.iter().enumerate();
        let given =
            operands.filter(|(i, _)| !matches!(i, 0 | 1 | 5 | 6)).filter_map(|(_, o)| o.as_ref());
        given.fold(Dim::from(0), |sum, l| sum + stored_bytes(l) * Dim::from(2))
    }
}

/// Whether keys and values are integers, which have scales.
fn has_scales(spec: &KernelSpec) -> bool {
    spec.operands.get(5).is_some_and(Option::is_some)
}

/// Copies the scales of a token's heads to (block, slot) of their memory.
fn write_scales(cx: &Cx<'_>, from: &View, to: &View, token: Val, place: (Val, Val)) {
    let e = &cx.e;
    let from = from.at(cx, cx.scale(token, &from.strides[0]));
    let start = cx.offset(cx.scale(place.0, &to.strides[0]), place.1, &to.strides[2]);
    let to = to.at(cx, start);
    e.for_each(e.i64(0), cx.size(&from.shape[1]), 1, |head| {
        let scale = from.load(cx, cx.scale(head, &from.strides[1]));
        to.store(cx, scale, cx.scale(head, &to.strides[1]));
    });
}

/// Copies a token's heads to (block, slot) of a memory.
pub(super) fn write(
    cx: &Cx<'_>,
    from: &View,
    to: &View,
    axes: &[Dim; 4],
    token: Val,
    place: (Val, Val),
) {
    let e = &cx.e;
    let from = from.at(cx, cx.scale(token, &from.strides[0]));
    let start = cx.offset(cx.scale(place.0, &axes[0]), place.1, &axes[3]);
    let to = to.at(cx, start);
    e.for_each(e.i64(0), cx.size(&from.shape[1]), 1, |head| {
        let from = from.at(cx, cx.scale(head, &from.strides[1]));
        let to = to.at(cx, cx.scale(head, &axes[1]));
        cx.strips(e.i64(0), cx.size(&from.shape[2]), |i, lanes| {
            let step = &from.strides[2];
            let value = from.load_strip(cx, cx.scale(i, step), step, lanes);
            to.store_strip(cx, value, cx.scale(i, &axes[2]), &axes[2]);
        });
    });
}
