//! Keys and values in blocks: panels are read where they lie.

use ir::{DType, Dim};

use super::{
    GROUP,
    flash::{Panel, Source},
};
use crate::{
    emit::{Elem, Val},
    lower::{
        cx::Cx,
        e4m3,
        view::{View, memory_elem},
    },
};

const LINE_BYTES: u64 = 64;

/// One sequence's memory, of one key/value head.
pub(super) struct Paged<'c> {
    pub(super) cx: &'c Cx<'c>,
    pub(super) q: View,
    pub(super) y: View,
    /// `[NB, _, D, BS]` and `[NB, _, BS, Dv]`, at the head.
    pub(super) k: View,
    pub(super) v: View,
    /// `[NB, _, BS]`, at the head, of keys and values of eight bits.
    pub(super) k_scales: Option<View>,
    pub(super) v_scales: Option<View>,
    /// `[_, MB]`, at the sequence.
    pub(super) table: View,
    pub(super) positions: View,
}

impl Paged<'_> {
    /// Block and slot of a key. Whatever the table says, the block is one of the memory's.
    fn slot(&self, key: Val) -> (Val, Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let size = cx.size(&self.k.shape[3]);
        let entry = cx.scale(e.div_unsigned(key, size), &self.table.strides[1]);
        let block = e.cast(self.table.load(cx, entry), Elem::I64);
        let last = e.add_const(cx.size(&self.k.shape[0]), -1);
        (e.max(e.min(block, last), e.i64(0)), e.rem_unsigned(key, size))
    }

    /// Asks for the cache lines of part `part` of `parts` of so many bytes.
    fn prefetch(&self, base: Val, bytes: i64, part: Val, parts: i64) {
        let e = &self.cx.e;
        let lines = bytes.cast_unsigned().div_ceil(LINE_BYTES).cast_signed();
        let first = e.div_unsigned(e.mul_const(part, lines), e.i64(parts));
        for line in 0..lines.cast_unsigned().div_ceil(parts.cast_unsigned()).cast_signed() {
            let line = e.add_const(first, line);
            e.prefetch(e.at(base, Elem::I8, e.mul_const(line, LINE_BYTES.cast_signed())));
        }
    }

    /// Scales of sixteen keys from `key` on.
    fn scales(&self, view: Option<&View>, key: Val) -> Option<Val> {
        let (cx, view) = (self.cx, view?);
        let (block, slot) = self.slot(key);
        let at = cx.offset(slot, block, &view.strides[0]);
        let scales = view.load_strip(cx, at, &Dim::from(1), 16);
        Some(match self.k.dtype {
            DType::F8E4M3 => cx.e.mul(scales, cx.e.float(scales.ty(), e4m3::UNIT.into())),
            _ => scales,
        })
    }
}

/// The row of a token and head.
fn row(cx: &Cx<'_>, view: &View, token: Val, head: Val) -> View {
    let offset = cx.offset(cx.scale(token, &view.strides[0]), head, &view.strides[1]);
    view.at(cx, offset)
}

impl Source for Paged<'_> {
    fn query(&self, token: Val, head: Val) -> (View, Dim) {
        (row(self.cx, &self.q, token, head), self.q.strides[2].clone())
    }

    fn output(&self, token: Val, head: Val) -> View {
        row(self.cx, &self.y, token, head)
    }

    fn visible(&self, token: Val) -> (Val, Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let position = self.positions.load(cx, cx.scale(token, &self.positions.strides[0]));
        let position = e.cast(position, Elem::I64);
        // A sequence has no more keys than its table has room for.
        let room = self.table.shape[1].clone() * self.k.shape[3].clone();
        let end = e.min(e.add_const(position, 1), cx.size(&room));
        (after_window(cx, position), end)
    }

    fn prepare(&self, _: Val, _: Val) {}

    fn panel(&self, key: Val, _: Val) -> Panel {
        let cx = self.cx;
        let (block, slot) = self.slot(key);
        let view = self.k.at(cx, cx.offset(slot, block, &self.k.strides[0]));
        Panel { base: view.base, dtype: view.dtype, step: cx.size(&self.k.strides[2]) }
    }

    fn values(&self, key: Val) -> (View, Val) {
        let cx = self.cx;
        let (block, slot) = self.slot(key);
        let offset = cx.offset(cx.scale(block, &self.v.strides[0]), slot, &self.v.strides[2]);
        (self.v.at(cx, offset), cx.size(&self.v.strides[2]))
    }

    fn prefetch_keys(&self, key: Val, part: Val, parts: i64) {
        let panel = self.panel(key, key);
        let size = |view: &View, axis: usize| view.shape[axis].as_const();
        // Elsewhere a panel is not one piece.
        if let (Some(width), Some(GROUP)) = (size(&self.k, 2), size(&self.k, 3)) {
            let bytes = GROUP * width * memory_elem(panel.dtype).bytes().cast_signed();
            self.prefetch(panel.base, bytes, part, parts);
        }
    }

    fn prefetch_values(&self, key: Val, part: Val, parts: i64) {
        let (view, _) = self.values(key);
        if let Some(width) = view.shape[3].as_const() {
            let bytes = GROUP * width * memory_elem(view.dtype).bytes().cast_signed();
            self.prefetch(view.base, bytes, part, parts);
        }
    }

    fn key_scales(&self, key: Val) -> Option<Val> {
        self.scales(self.k_scales.as_ref(), key)
    }

    fn value_scales(&self, key: Val) -> Option<Val> {
        self.scales(self.v_scales.as_ref(), key)
    }

    fn bias(&self, _: Val, _: Val, _: Val, _: Val) -> Option<Val> {
        None
    }
}

/// The first key that a window leaves visible at a position.
pub(super) fn after_window(cx: &Cx<'_>, position: Val) -> Val {
    let e = &cx.e;
    match cx.spec.attrs.int("window") {
        0 => e.i64(0),
        window => e.max(e.add_const(position, 1 - window), e.i64(0)),
    }
}
