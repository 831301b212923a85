//! Keys and values in rows: a chunk's keys are transposed into panels first.

use ir::{DType, Dim};

use super::{
    GROUP, Sizes,
    flash::{CHUNK, Panel, Source},
    paged::after_window,
};
use crate::{
    emit::{Elem, Ty, Val},
    lower::{
        cx::Cx,
        pack::{Rows, pack_rows},
        view::{View, memory_elem},
    },
};

/// One sequence, or one entry of a batch, of one key/value head.
pub(super) struct Dense<'c> {
    pub(super) cx: &'c Cx<'c>,
    pub(super) sizes: Sizes,
    /// From the first token and head: strides of token, head and element.
    pub(super) q: (View, [Dim; 3]),
    /// The same; elements are dense.
    pub(super) y: (View, [Dim; 2]),
    /// The same of the logarithms of sums, where they are wanted.
    pub(super) lse: Option<(View, [Dim; 2])>,
    /// From the first key: strides of key and element.
    pub(super) k: (View, [Dim; 2]),
    /// The same; elements are dense.
    pub(super) v: (View, Dim),
    /// Strides of head, token and key.
    pub(super) bias: Option<(View, [Dim; 3])>,
    /// Number of keys.
    pub(super) keys: Val,
    /// Token `i` stands at position `i + shift`.
    pub(super) shift: Val,
    /// f32 `[CHUNK / 16][D][16]` of scratch.
    pub(super) panels: Val,
}

/// Scratch for the panels of a chunk.
pub(super) fn panel_bytes(sizes: Sizes) -> u64 {
    (4 * CHUNK * sizes.key).cast_unsigned()
}

impl Dense<'_> {
    fn group_panel(&self, group: Val) -> Val {
        let e = &self.cx.e;
        e.at(self.panels, Elem::F32, e.mul_const(group, GROUP * self.sizes.key))
    }
}

impl Source for Dense<'_> {
    fn query(&self, token: Val, head: Val) -> (View, Dim) {
        let (cx, (view, [by_token, by_head, step])) = (self.cx, &self.q);
        let offset = cx.offset(cx.scale(token, by_token), head, by_head);
        (view.at(cx, offset), step.clone())
    }

    fn output(&self, token: Val, head: Val) -> View {
        let (cx, (view, [by_token, by_head])) = (self.cx, &self.y);
        view.at(cx, cx.offset(cx.scale(token, by_token), head, by_head))
    }

    fn log_sum(&self, token: Val, head: Val) -> Option<View> {
        let (cx, (view, [by_token, by_head])) = (self.cx, self.lse.as_ref()?);
        Some(view.at(cx, cx.offset(cx.scale(token, by_token), head, by_head)))
    }

    fn visible(&self, token: Val) -> (Val, Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let position = e.add(token, self.shift);
        let end = match cx.spec.attrs.str("mask") {
            "causal" => e.max(e.min(e.add_const(position, 1), self.keys), e.i64(0)),
            _ => self.keys,
        };
        (after_window(cx, position), end)
    }

    fn prepare(&self, first: Val, count: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let (view, [by_key, step]) = &self.k;
        let elem = memory_elem(view.dtype);
        e.for_each(e.i64(0), e.div_ceil_const(count, GROUP), 1, |group| {
            let done = e.mul_const(group, GROUP);
            let base = view.at(cx, cx.scale(e.add(first, done), by_key)).base;
            let rows = Rows { base, elem, row: by_key, column: step };
            let count = e.min(e.i64(GROUP), e.sub(count, done));
            pack_rows(cx, &rows, count, e.i64(self.sizes.key), self.group_panel(group));
        });
    }

    fn panel(&self, _: Val, group: Val) -> Panel {
        let base = self.group_panel(group);
        Panel { base, dtype: DType::F32, step: self.cx.e.i64(GROUP) }
    }

    fn values(&self, key: Val) -> (View, Val) {
        let (cx, (view, by_key)) = (self.cx, &self.v);
        (view.at(cx, cx.scale(key, by_key)), cx.size(by_key))
    }

    fn key_scales(&self, _: Val) -> Option<Val> {
        None
    }

    fn value_scales(&self, _: Val) -> Option<Val> {
        None
    }

    fn bias(&self, token: Val, head: Val, key: Val, count: Val) -> Option<Val> {
        let (cx, e) = (self.cx, &self.cx.e);
        let (view, [by_head, by_token, by_key]) = self.bias.as_ref()?;
        let offset = cx.offset(cx.scale(token, by_token), head, by_head);
        let row = view.at(cx, cx.offset(offset, key, by_key));
        let zero = e.zero(Ty::Vector(Elem::F32, 16));
        Some(if by_key.is(1) {
            e.load_masked(row.base, e.mask_below(count, 16), zero)
        } else if by_key.is(0) {
            e.splat(row.load(cx, e.i64(0)), 16)
        } else {
            let last = e.add_const(count, -1);
            (0..16).fold(zero, |vector, lane| {
                let at = cx.scale(e.min(e.i64(lane.into()), last), by_key);
                e.insert(row.load(cx, at), vector, lane)
            })
        })
    }
}
