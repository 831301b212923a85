//! Rotary position embedding, each token's cosines and sines shared by its heads.

mod cuda;
mod kv_write;

use ir::{Dim, KernelSpec, Target};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, LANES, refuse},
    view::{View, check_f32s, check_rank},
};
use crate::{cuda::CudaKernel, emit::Val};
pub(super) use kv_write::RopeKvWrite;

/// The family.
pub(super) struct Rope;

impl Lower for Rope {
    fn ops(&self) -> &'static [&'static str] {
        &["rope"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check_f32s(spec, &[0, 1, 2])?;
        for (i, rank) in [(0, 3), (1, 2), (2, 2)] {
            check_rank(spec, i, rank)?;
        }
        Ok(())
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let e = &cx.e;
        let [x, cos, sin] = [0, 1, 2].map(|i| cx.operand(i));
        let y = cx.result(0);
        let (heads, size) = (x.shape[1].clone(), x.shape[2].clone());
        let half = cos.shape[1].clone();
        let tiles = cx.share_rows(&x.shape[0], &(heads.clone() * size.clone()), |token| {
            let row = |v: &View| v.at(&cx, cx.scale(token, &v.strides[0]));
            let (x, y, cos, sin) = (row(&x), row(&y), row(&cos), row(&sin));
            e.for_each(e.i64(0), cx.size(&heads), 1, |head| {
                let row = |v: &View| v.at(&cx, cx.scale(head, &v.strides[1]));
                let head = Head { cx: &cx, x: row(&x), y: row(&y), cos: &cos, sin: &sin };
                head.rotate(spec.attrs.str("style"), &half, &size);
            });
        });
        Ok(cx.finish(tiles, 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        Ok(vec![cuda::kernel(spec)])
    }
}

/// One head of one token.
struct Head<'a> {
    cx: &'a Cx<'a>,
    x: View,
    y: View,
    cos: &'a View,
    sin: &'a View,
}

impl Head<'_> {
    /// All of the head: pairs up to `2 · half` turned, the rest up to `size` as it is.
    fn rotate(&self, style: &str, half: &Dim, size: &Dim) {
        match style {
            "interleaved" => self.interleaved(half),
            _ => self.halves(half),
        }
        self.copy(&(half.clone() * Dim::from(2)), size);
    }

    fn load(&self, i: Val, lanes: u32) -> Val {
        let stride = &self.x.strides[2];
        self.x.load_strip(self.cx, self.cx.scale(i, stride), stride, lanes)
    }

    fn store(&self, value: Val, i: Val) {
        let stride = &self.y.strides[2];
        self.y.store_strip(self.cx, value, self.cx.scale(i, stride), stride);
    }

    /// The pair turned by the angles from `i` on.
    fn turn(&self, first: Val, second: Val, i: Val) -> (Val, Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let angle = |v: &View| {
            let stride = &v.strides[1];
            v.load_strip(cx, cx.scale(i, stride), stride, first.lanes())
        };
        let (cos, sin) = (angle(self.cos), angle(self.sin));
        (e.sub(e.mul(first, cos), e.mul(second, sin)), e.add(e.mul(second, cos), e.mul(first, sin)))
    }

    /// Pairs `i` and `i + half`.
    fn halves(&self, half: &Dim) {
        let (cx, e) = (self.cx, &self.cx.e);
        let half = cx.size(half);
        cx.strips(e.i64(0), half, |i, lanes| {
            let other = e.add(i, half);
            let (first, second) = self.turn(self.load(i, lanes), self.load(other, lanes), i);
            self.store(first, i);
            self.store(second, other);
        });
    }

    /// Pairs `2i` and `2i + 1`.
    fn interleaved(&self, half: &Dim) {
        let (cx, e) = (self.cx, &self.cx.e);
        cx.strips(e.i64(0), cx.size(half), |i, lanes| {
            let start = e.mul_const(i, 2);
            let next = e.add_const(start, lanes.into());
            let (a, b) = (self.load(start, lanes), self.load(next, lanes));
            if lanes == 1 {
                let (first, second) = self.turn(a, b, i);
                self.store(first, start);
                self.store(second, next);
                return;
            }
            let every_other = |from: u32| (0..LANES).map(|l| 2 * l + from).collect::<Vec<_>>();
            let woven =
                |from: u32| (0..LANES).map(|l| from + l / 2 + l % 2 * LANES).collect::<Vec<_>>();
            let first = e.shuffle(a, b, &every_other(0));
            let second = e.shuffle(a, b, &every_other(1));
            let (first, second) = self.turn(first, second, i);
            self.store(e.shuffle(first, second, &woven(0)), start);
            self.store(e.shuffle(first, second, &woven(LANES / 2)), next);
        });
    }

    /// Elements that are not rotated.
    fn copy(&self, from: &Dim, to: &Dim) {
        if from != to {
            let cx = self.cx;
            cx.strips(cx.size(from), cx.size(to), |i, lanes| self.store(self.load(i, lanes), i));
        }
    }
}
