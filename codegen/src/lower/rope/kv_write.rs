//! `rope_kv_write`: queries and keys rotated, keys and values into their slots, in one launch.

mod cuda;
mod warps;

use ir::{DType, Dim, KernelSpec, Target};

use super::Head;
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Val},
    lower::{
        Emitted, Lower, LowerError,
        cx::{Cx, refuse, stored_bytes},
        kv_write::write,
        quantize_heads::quantize,
        view::{View, check_f32s, check_floats, check_rank},
    },
};

/// The family.
pub(in crate::lower) struct RopeKvWrite;

impl Lower for RopeKvWrite {
    fn ops(&self) -> &'static [&'static str] {
        &["rope_kv_write"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        if scales(spec) {
            check_floats(spec, &[2, 3, 4, 6, 7], &spec.results[2..])?;
            for (i, rank) in [(8, 3), (9, 3)] {
                check_rank(spec, i, rank)?;
            }
            let sizes = spec.operands[3..5].iter().flatten();
            if sizes.clone().any(|l| l.ty.shape.last().and_then(Dim::as_const).is_none()) {
                return Err("heads of eight bits are of constant sizes".into());
            }
        } else {
            check_f32s(spec, &[0, 1, 2, 3, 4, 6, 7])?;
        }
        for (i, rank) in [(0, 4), (1, 4), (2, 3), (3, 3), (4, 3), (5, 1), (6, 2), (7, 2)] {
            check_rank(spec, i, rank)?;
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
                if own.scales.is_some() {
                    own.write_scaled(&cx, (style, &half), token, (block, slot));
                    return;
                }
                rotate(row(&own.k), own.keys(&cx, block, slot), &kv_heads);
                let axes = [0, 1, 3, 2].map(|axis| own.v_cache.strides[axis].clone());
                write(&cx, &own.v, &own.v_cache, &axes, token, (block, slot));
            });
        });
        let line = if own.scales.is_some() { 4 * own.key_size().next_multiple_of(16) } else { 0 };
        Ok(cx.finish(tiles, line))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        Ok(vec![if scales(spec) { warps::kernel(spec) } else { cuda::kernel(spec) }])
    }

    fn bytes(&self, spec: &KernelSpec) -> Dim {
        // What is given is read, and of the memories as much written as keys and values are.
        let given = spec.operands[2..8].iter().flatten().map(stored_bytes);
        let read = given.fold(Dim::from(0), |sum, bytes| sum + bytes);
        let width = Dim::from(spec.results[0].ty.dtype.size());
        let kept = spec.operands[3..5].iter().flatten().map(|l| l.ty.elements() * width.clone());
        let all = kept.fold(read + stored_bytes(&spec.results[2]), |sum, bytes| sum + bytes);
        if !scales(spec) {
            return all;
        }
        let heads = spec.operands[3].iter().map(|k| k.ty.shape[0].clone() * k.ty.shape[1].clone());
        heads.fold(all, |sum, heads| sum + heads * Dim::from(8))
    }
}

/// Whether memories are of eight bits, with scales.
fn scales(spec: &KernelSpec) -> bool {
    spec.operands.get(8).is_some_and(Option::is_some)
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
    /// Memories of the scales of keys and values.
    scales: Option<[View; 2]>,
}

impl Operands {
    fn new(cx: &Cx<'_>) -> Operands {
        let [q, k, v, slots, cos, sin] = [2, 3, 4, 5, 6, 7].map(|i| cx.operand(i));
        let [k_cache, v_cache, y] = [0, 1, 2].map(|i| cx.result(i));
        let scales = scales(cx.spec).then(|| [3, 4].map(|i| cx.result(i)));
        Operands { q, k, v, slots, cos, sin, k_cache, v_cache, y, scales }
    }

    /// Elements of a key, a constant where there are scales.
    fn key_size(&self) -> u64 {
        self.k.shape[2].as_const().map_or(0, i64::cast_unsigned)
    }

    /// Where a scale of a head is.
    fn scale_at(&self, cx: &Cx<'_>, view: &View, head: Val, place: (Val, Val)) -> Val {
        let at = cx.offset(cx.scale(place.0, &view.strides[0]), head, &view.strides[1]);
        cx.offset(at, place.1, &view.strides[2])
    }

    /// Rounds a token's rotated keys, and its values, to (block, slot) of their memories.
    fn write_scaled(
        &self,
        cx: &Cx<'_>,
        (style, half): (&str, &Dim),
        token: Val,
        place: (Val, Val),
    ) {
        let e = &cx.e;
        let row = |v: &View| v.at(cx, cx.scale(token, &v.strides[0]));
        let (k, v, cos, sin) = (row(&self.k), row(&self.v), row(&self.cos), row(&self.sin));
        let memories = [self.keys(cx, place.0, place.1), self.values(cx, place.0, place.1)];
        let strides = vec![Dim::from(0), Dim::from(0), Dim::from(1)];
        let line = View { base: cx.scratch(0), dtype: DType::F32, strides, ..k.clone() };
        e.for_each(e.i64(0), cx.size(&self.k.shape[1]), 1, |head| {
            let of = |v: &View| v.at(cx, cx.scale(head, &v.strides[1]));
            let rotated = Head { cx, x: of(&k), y: line.clone(), cos: &cos, sin: &sin };
            rotated.rotate(style, half, &self.k.shape[2]);
            let given = [line.clone(), of(&v)];
            for (i, scales) in self.scales.iter().flatten().enumerate() {
                let (from, to) = (&given[i], of(&memories[i]));
                let size = from.shape[2].as_const().expect("supported");
                let scale = quantize(cx, size, (from, &from.strides[2]), (&to, &to.strides[2]));
                scales.store(cx, scale, self.scale_at(cx, scales, head, place));
            }
        });
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
