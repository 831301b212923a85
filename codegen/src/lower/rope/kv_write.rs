//! `rope_kv_write`: queries and keys rotated, keys and values into their slots, in one launch.

mod cuda;

use ir::{Dim, KernelSpec, Target};

use super::Head;
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Val},
    lower::{
        Emitted, Lower, LowerError,
        cx::{Cx, refuse, stored_bytes},
        kv_write::write,
        view::{View, check_f32s, check_rank},
    },
};

/// The family.
pub(in crate::lower) struct RopeKvWrite;

impl Lower for RopeKvWrite {
    fn ops(&self) -> &'static [&'static str] {
        &["rope_kv_write"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check_f32s(spec, &[0, 1, 2, 3, 4, 6, 7])?;
        for (i, rank) in [(0, 4), (1, 4), (2, 3), (3, 3), (4, 3), (5, 1), (6, 2), (7, 2)] {
            check_rank(spec, i, rank)?;
        }
        for (result, operand) in KernelSpec::in_place(spec.op) {
            if spec.operands[*operand].as_ref() != spec.results.get(*result) {
                return Err("the memories are updated in place, so layouts must agree".into());
            }
        }
        Ok(())
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let (e, own) = (&cx.e, Operands::new(&cx));
        let style = spec.attrs.str("style");
        let (half, size) = (own.cos.shape[1].clone(), own.q.shape[2].clone());
        let kv_heads = own.k.shape[1].clone();
        let keys = (own.q.shape[1].clone() + kv_heads.clone()) * size.clone();
        let each = keys + kv_heads.clone() * own.v.shape[2].clone();
        let tiles = cx.share_rows(&own.q.shape[0], &each, |token| {
            let row = |v: &View| v.at(&cx, cx.scale(token, &v.strides[0]));
            let (cos, sin) = (row(&own.cos), row(&own.sin));
            let rotate = |x: View, y: View, heads: &Dim| {
                e.for_each(e.i64(0), cx.size(heads), 1, |head| {
                    let of = |v: &View| v.at(&cx, cx.scale(head, &v.strides[1]));
                    let head = Head { cx: &cx, x: of(&x), y: of(&y), cos: &cos, sin: &sin };
                    head.rotate(style, &half, &size);
                });
            };
            rotate(row(&own.q), row(&own.y), &own.q.shape[1]);
            own.if_stored(&cx, token, |block, slot| {
                rotate(row(&own.k), own.keys(&cx, block, slot), &kv_heads);
                let axes = [0, 1, 3, 2].map(|axis| own.v_cache.strides[axis].clone());
                write(&cx, &own.v, &own.v_cache, &axes, token, (block, slot));
            });
        });
        Ok(cx.finish(tiles, 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        Ok(vec![cuda::kernel(spec)])
    }

    fn bytes(&self, spec: &KernelSpec) -> Dim {
        // What is given is read, and of the memories as much written as keys and values are.
        let given = spec.operands[2..].iter().flatten().map(stored_bytes);
        let read = given.fold(Dim::from(0), |sum, bytes| sum + bytes);
        let width = Dim::from(spec.results[0].ty.dtype.size());
        let kept = spec.operands[3..5].iter().flatten().map(|l| l.ty.elements() * width.clone());
        kept.fold(read + stored_bytes(&spec.results[2]), |sum, bytes| sum + bytes)
    }
}

/// The operands and results.
struct Operands {
    q: View,
    k: View,
    v: View,
    slots: View,
    cos: View,
    sin: View,
    k_cache: View,
    v_cache: View,
    y: View,
}

impl Operands {
    fn new(cx: &Cx<'_>) -> Operands {
        let [q, k, v, slots, cos, sin] = [2, 3, 4, 5, 6, 7].map(|i| cx.operand(i));
        let [k_cache, v_cache, y] = [0, 1, 2].map(|i| cx.result(i));
        Operands { q, k, v, slots, cos, sin, k_cache, v_cache, y }
    }

    /// Calls `body(block, slot)` where the token has a place in memory: no index may lead out of
    /// it, so one beyond is as a negative one.
    fn if_stored(&self, cx: &Cx<'_>, token: Val, body: impl FnOnce(Val, Val)) {
        let e = &cx.e;
        let (blocks, size) = (&self.v_cache.shape[0], &self.v_cache.shape[2]);
        let slot = self.slots.load(cx, cx.scale(token, &self.slots.strides[0]));
        let slot = e.cast(slot, Elem::I64);
        let all = cx.size(&(blocks.clone() * size.clone()));
        let inside = e.and(e.cmp(Cmp::Ge, slot, e.i64(0)), e.cmp(Cmp::Lt, slot, all));
        let size = cx.size(size);
        e.if_then(inside, || body(e.div_unsigned(slot, size), e.rem_unsigned(slot, size)));
    }

    /// The keys of a slot as `[1, heads, size]`.
    fn keys(&self, cx: &Cx<'_>, block: Val, slot: Val) -> View {
        let [blocks, heads, size, slots] = [0, 1, 2, 3].map(|i| &self.k_cache.strides[i]);
        let start = cx.offset(cx.scale(block, blocks), slot, slots);
        let strides = vec![Dim::from(0), heads.clone(), size.clone()];
        View { strides, ..self.k_cache.at(cx, start) }
    }

    /// The values of a slot as `[1, heads, size]`.
    fn values(&self, cx: &Cx<'_>, block: Val, slot: Val) -> View {
        let [blocks, heads, slots, size] = [0, 1, 2, 3].map(|i| &self.v_cache.strides[i]);
        let start = cx.offset(cx.scale(block, blocks), slot, slots);
        let strides = vec![Dim::from(0), heads.clone(), size.clone()];
        View { strides, ..self.v_cache.at(cx, start) }
    }
}
