//! `rope_kv_write` on a GPU to memories of eight bits: threads for the parts of all queries' heads,
//! then a warp for each head of keys and of values, whose elements share a scale.

use ir::{Dim, KernelSpec};

use super::{Head, Operands};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Val},
    lower::{
        cx::Cx, elementwise::maximum, flat, quantize_heads::Row, rope::cuda::Parts, view::View,
    },
};

/// Lanes of a warp.
const WARP: i64 = 32;

pub(super) fn kernel(spec: &KernelSpec) -> CudaKernel {
    let cx = Cx::cuda(spec, flat::THREADS);
    let (e, own) = (&cx.e, Operands::new(&cx));
    let style = spec.attrs.str("style");
    let parts = Parts::new(&own.q, &own.y, &own.cos, &own.sin, style);
    let of_q = own.q.shape[1].clone() * parts.each.clone();
    let tokens = own.q.shape[0].clone();
    let queries = tokens.clone() * of_q.clone();
    // Warps begin at multiples of their lanes.
    let before = queries.ceil_div(WARP) * Dim::from(WARP);
    let kv_heads = own.k.shape[1].clone();
    let each = kv_heads.clone() * Dim::from(2);
    let count = before.clone() + tokens * each.clone() * Dim::from(WARP);
    let grid = cx.each_thread(&count, |point| {
        let rotate = || {
            let of_q = cx.size(&of_q);
            let (token, index) = (e.div_unsigned(point, of_q), e.rem_unsigned(point, of_q));
            let row = |v: &View| v.at(&cx, cx.scale(token, &v.strides[0]));
            let (cos, sin, threads) = (row(&own.cos), row(&own.sin), cx.size(&parts.each));
            let head = e.div_unsigned(index, threads);
            let of = |v: &View| row(v).at(&cx, cx.scale(head, &v.strides[1]));
            let head = Head { cx: &cx, x: of(&own.q), y: of(&own.y), cos: &cos, sin: &sin };
            parts.rotate(&head, e.rem_unsigned(index, threads));
        };
        let write = || {
            let warp = e.sub(point, cx.size(&before));
            let lane = e.rem_unsigned(warp, e.i64(WARP));
            let row = e.div_unsigned(warp, e.i64(WARP));
            let (all, heads) = (cx.size(&each), cx.size(&kv_heads));
            let (token, row) = (e.div_unsigned(row, all), e.rem_unsigned(row, all));
            own.if_stored(&cx, token, |block, slot| {
                let warp = Warp { cx: &cx, own: &own, lane, token, place: (block, slot) };
                let is_key = e.cmp(Cmp::Lt, row, heads);
                e.either(is_key, || warp.key(row), || warp.value(e.sub(row, heads)));
            });
        };
        let is_query = e.cmp(Cmp::Lt, point, cx.size(&before));
        let exists = e.cmp(Cmp::Lt, point, cx.size(&queries));
        e.either(is_query, || e.if_then(exists, rotate), write);
    });
    let result = u32::try_from(spec.operands.len() + 2).expect("few operands");
    cx.finish_cuda(grid, 0, &[], |arg| {
        parts.is_wide() && (matches!(arg, 2 | 6 | 7) || arg == result)
    })
}

/// What a warp writes to.
struct Warp<'a> {
    cx: &'a Cx<'a>,
    own: &'a Operands,
    lane: Val,
    token: Val,
    /// Block and slot.
    place: (Val, Val),
}

impl Warp<'_> {
    /// A token's row of a head.
    fn row(&self, view: &View, head: Val) -> View {
        let (cx, strides) = (self.cx, &view.strides);
        view.at(cx, cx.offset(cx.scale(self.token, &strides[0]), head, &strides[1]))
    }

    fn key(&self, head: Val) {
        let (cx, own) = (self.cx, self.own);
        let x = self.row(&own.k, head);
        let angles = [&own.cos, &own.sin];
        let angles = angles.map(|v| v.at(cx, cx.scale(self.token, &v.strides[0])));
        let to = own.keys(cx, self.place.0, self.place.1);
        self.write(0, head, &x, &to, |i| self.rotated(&x, &angles, i));
    }

    fn value(&self, head: Val) {
        let (cx, own) = (self.cx, self.own);
        let x = self.row(&own.v, head);
        let to = own.values(cx, self.place.0, self.place.1);
        self.write(1, head, &x, &to, |i| x.load(cx, cx.scale(i, &x.strides[2])));
    }

    /// Element `i` of a rotated key.
    fn rotated(&self, x: &View, [cos, sin]: &[View; 2], i: Val) -> Val {
        let (cx, e) = (self.cx, &self.cx.e);
        let load = |v: &View, axis: usize, i: Val| v.load(cx, cx.scale(i, &v.strides[axis]));
        let half = cx.size(&cos.shape[1]);
        let turns = e.cmp(Cmp::Lt, i, e.mul_const(half, 2));
        let (second, other, angle) = if cx.spec.attrs.str("style") == "interleaved" {
            let second = e.cmp(Cmp::Ne, e.and(i, e.i64(1)), e.i64(0));
            (second, e.xor(i, e.i64(1)), e.shr(i, 1))
        } else {
            let second = e.cmp(Cmp::Ge, i, half);
            let first = e.sub(i, half);
            (second, e.select(second, first, e.add(i, half)), e.select(second, first, i))
        };
        let [other, angle] = [(other, i), (angle, e.i64(0))].map(|(a, b)| e.select(turns, a, b));
        let (own, other) = (load(x, 2, i), load(x, 2, other));
        let (cos, sin) = (load(cos, 1, angle), load(sin, 1, angle));
        let (along, across) = (e.mul(own, cos), e.mul(other, sin));
        let turned = e.select(second, e.add(along, across), e.sub(along, across));
        e.select(turns, turned, own)
    }

    /// Rounds a head's elements to memory, and its scale to memory number `which`.
    fn write(&self, which: usize, head: Val, x: &View, to: &View, element: impl Fn(Val) -> Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let size = x.shape[2].as_const().expect("supported");
        let last = e.i64(size - 1);
        let places: Vec<Val> =
            (0..size).step_by(32).map(|first| e.add_const(self.lane, first)).collect();
        // Behind the end is the last element once more.
        let elements: Vec<Val> = places.iter().map(|i| element(e.min(*i, last))).collect();
        let larger = |a, b| maximum(e, a, b);
        let most = elements.iter().map(|x| e.abs(*x)).reduce(larger).expect("a head is not empty");
        let row = Row::new(e, to.dtype, cx.fold_warp(most, larger));
        let to = to.at(cx, cx.scale(head, &to.strides[1])).bits();
        for (i, x) in places.into_iter().zip(elements) {
            let store = || to.store(cx, row.codes(e, x), cx.scale(i, &to.strides[2]));
            if size % WARP == 0 {
                store();
            } else {
                e.if_then(e.cmp(Cmp::Lt, i, e.i64(size)), store);
            }
        }
        if let Some(scales) = &self.own.scales {
            let scales = &scales[which];
            e.if_then(e.cmp(Cmp::Eq, self.lane, e.i64(0)), || {
                let at = self.own.scale_at(cx, scales, head, self.place);
                scales.store(cx, row.scale, at);
            });
        }
    }
}
