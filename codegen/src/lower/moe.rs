//! Tokens to experts and back: `moe_permute` and `moe_combine`.

mod cuda;

use ir::{DType, Dim, KernelSpec, Target};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, refuse},
    view::{View, check_f32s, check_rank},
};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Emitter, Ty, Val},
};

/// `moe_permute`.
pub(super) struct Permute;

/// `moe_combine`.
pub(super) struct Combine;

impl Lower for Permute {
    fn ops(&self) -> &'static [&'static str] {
        &["moe_permute"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check_rank(spec, 0, 2)?;
        match &spec.operands[0] {
            Some(experts) if experts.ty.dtype == DType::I32 => Ok(()),
            _ => Err("experts must be i32".into()),
        }
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let e = &cx.e;
        let experts = spec.attrs.int("experts");
        let sort = Sort {
            cx: &cx,
            picked: cx.operand(0),
            slots: cx.result(1),
            experts: e.i64(experts),
            next: cx.scratch(0),
        };
        let (tokens, offsets) = (cx.result(0), cx.result(2));
        // One tile: a counting sort, a few steps a token.
        e.for_each(e.tile_begin(), e.tile_end(), 1, |_| {
            let word = Ty::Scalar(Elem::I32);
            e.for_each(e.i64(0), sort.experts, 1, |i| e.store_at(e.zero(word), sort.next, i));
            sort.each(|_, _, slot| e.store(e.add_const(e.load(word, slot), 1), slot), |_| {});
            let end = e.for_loop(e.i64(0), sort.experts, 1, &[e.zero(word)], |i, sum| {
                let slot = e.at(sort.next, Elem::I32, i);
                let count = e.load(word, slot);
                e.store(sum[0], slot);
                offsets.store(&cx, sum[0], cx.scale(i, &offsets.strides[0]));
                vec![e.add(sum[0], count)]
            });
            offsets.store(&cx, end[0], cx.scale(sort.experts, &offsets.strides[0]));
            let none = e.int(word, -1);
            let rest = e.cast(end[0], Elem::I64);
            e.for_each(rest, cx.size(&tokens.shape[0]), 1, |row| {
                tokens.store(&cx, none, cx.scale(row, &tokens.strides[0]));
            });
            sort.each(
                |token, to, slot| {
                    let row = e.load(word, slot);
                    e.store(e.add_const(row, 1), slot);
                    sort.slots.store(&cx, row, to);
                    let at = cx.scale(e.cast(row, Elem::I64), &tokens.strides[0]);
                    tokens.store(&cx, e.cast(token, Elem::I32), at);
                },
                |to| sort.slots.store(&cx, none, to),
            );
        });
        Ok(cx.finish(Dim::from(1), 4 * experts.max(1).cast_unsigned()))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        Ok(vec![cuda::permute(spec)])
    }
}

/// What the passes of a counting sort see.
struct Sort<'a> {
    cx: &'a Cx<'a>,
    picked: View,
    slots: View,
    experts: Val,
    /// i32 by expert: how many, then which row is next.
    next: Val,
}

impl Sort<'_> {
    /// For every expert of every token in order: `inside(token, offset in slots, the expert's
    /// counter)`, or `outside(offset in slots)` where there is no such expert.
    fn each(&self, inside: impl FnOnce(Val, Val, Val), outside: impl FnOnce(Val)) {
        let (cx, e) = (self.cx, &self.cx.e);
        let [tokens, each] = [0, 1].map(|axis| cx.size(&self.picked.shape[axis]));
        e.for_each(e.i64(0), tokens, 1, |token| {
            e.for_each(e.i64(0), each, 1, |j| {
                let place = |view: &View| {
                    let row = cx.scale(token, &view.strides[0]);
                    cx.offset(row, j, &view.strides[1])
                };
                let expert = e.cast(self.picked.load(cx, place(&self.picked)), Elem::I64);
                let known =
                    e.and(e.cmp(Cmp::Ge, expert, e.i64(0)), e.cmp(Cmp::Lt, expert, self.experts));
                let to = place(&self.slots);
                let counter = || e.at(self.next, Elem::I32, expert);
                e.either(known, || inside(token, to, counter()), || outside(to));
            });
        });
    }
}

impl Lower for Combine {
    fn ops(&self) -> &'static [&'static str] {
        &["moe_combine"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check_f32s(spec, &[0, 2])?;
        (0..3).try_for_each(|i| check_rank(spec, i, 2))?;
        match &spec.operands[1] {
            Some(slots) if slots.ty.dtype == DType::I32 => Ok(()),
            _ => Err("slots must be i32".into()),
        }
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let e = &cx.e;
        let to = cx.result(0);
        let tiles = cx.share_rows(&to.shape[0], &to.shape[1], |token| {
            combine(&cx, token, |token| {
                cx.strips(e.i64(0), cx.size(&to.shape[1]), |i, lanes| token.strip(i, lanes));
            });
        });
        Ok(cx.finish(tiles, 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        Ok(vec![cuda::combine_kernel(spec)])
    }
}

/// What a token's experts computed, and where it goes.
struct Combined<'c> {
    cx: &'c Cx<'c>,
    from: View,
    slots: View,
    weights: View,
    to: View,
}

/// Calls `body` with a token.
fn combine<'c>(cx: &'c Cx<'c>, token: Val, body: impl FnOnce(&Combined<'c>)) {
    let of_token = |view: View| view.at(cx, cx.scale(token, &view.strides[0]));
    let [slots, weights, to] = [cx.operand(1), cx.operand(2), cx.result(0)].map(of_token);
    body(&Combined { cx, from: cx.operand(0), slots, weights, to });
}

impl Combined<'_> {
    /// So many columns from `i` on.
    fn strip(&self, i: Val, lanes: u32) {
        let (cx, e) = (self.cx, &self.cx.e);
        let rows = cx.size(&self.from.shape[0]);
        let each = cx.size(&self.slots.shape[1]);
        let ty = Emitter::f32s(lanes);
        let from = self.from.at(cx, cx.scale(i, &self.from.strides[1]));
        let sum = e.for_loop(e.i64(0), each, 1, &[e.zero(ty)], |j, sum| {
            let slot = self.slots.load(cx, cx.scale(j, &self.slots.strides[1]));
            let slot = e.cast(slot, Elem::I64);
            let inside = e.and(e.cmp(Cmp::Ge, slot, e.i64(0)), e.cmp(Cmp::Lt, slot, rows));
            let add = || {
                let weight = self.weights.load(cx, cx.scale(j, &self.weights.strides[1]));
                let row = cx.scale(slot, &from.strides[0]);
                let y = from.load_strip(cx, row, &from.strides[1], lanes);
                vec![e.fma(e.splat(weight, lanes), y, sum[0])]
            };
            e.if_else(inside, &[ty], add, || vec![sum[0]])
        });
        let step = &self.to.strides[1];
        self.to.store_strip(cx, sum[0], cx.scale(i, step), step);
    }
}
