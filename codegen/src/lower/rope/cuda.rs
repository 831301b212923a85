//! Rotary embedding on a GPU: a thread turns one pair, or four where heads allow it.
//!
//! Threads count along pairs first, then heads, then tokens, so that a warp reads neighbours.

use ir::{Dim, KernelSpec};

use super::Head;
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Val},
    lower::{cx::Cx, flat, view::View},
};

/// Pairs that a thread turns where they are dense.
const PAIRS: i64 = 4;

/// How threads share a head.
pub(super) struct Parts {
    half: Dim,
    interleaved: bool,
    /// Pairs that a thread turns, or elements that it copies.
    pairs: i64,
    /// Threads that turn pairs.
    turns: Dim,
    /// Threads of a head.
    pub(super) each: Dim,
}

impl Parts {
    /// Of heads of `x` that become those of `y`, each `[.., heads, size]` by strides.
    pub(super) fn new(x: &View, y: &View, cos: &View, sin: &View, style: &str) -> Parts {
        let (size, half) = (x.shape[x.shape.len() - 1].clone(), cos.shape[1].clone());
        let interleaved = style == "interleaved";
        let dense = |v: &View| v.strides.last().is_some_and(|s| s.is(1));
        // Elements of a result that are apart are stored one by one, wherever they are.
        let views = [x, cos, sin].into_iter().chain(dense(y).then_some(y));
        let rows: Vec<&Dim> = views.flat_map(|v| &v.strides[..v.strides.len() - 1]).collect();
        // What is not turned is copied, as many elements at a time.
        let rest = size - half.clone() * Dim::from(2);
        let whole = Cx::in_strips(&half, &rows, 4) && Cx::in_strips(&rest, &[], 4);
        let wide = [x, cos, sin].into_iter().all(dense) && !interleaved && whole;
        let pairs = if wide { PAIRS } else { 1 };
        let (turns, copies) = (half.ceil_div(pairs), rest.ceil_div(pairs));
        let each = turns.clone() + copies;
        Parts { half, interleaved, pairs, turns, each }
    }

    /// Whether threads move sixteen bytes of f32 at once.
    pub(super) fn is_wide(&self) -> bool {
        self.pairs > 1
    }

    /// What thread `index` of a head does.
    pub(super) fn rotate(&self, head: &Head<'_>, index: Val) {
        let (cx, e, pairs) = (head.cx, &head.cx.e, self.pairs);
        let lanes = u32::try_from(pairs).expect("few");
        let (turns, half) = (cx.size(&self.turns), cx.size(&self.half));
        e.either(
            e.cmp(Cmp::Lt, index, turns),
            || {
                let first = e.mul_const(index, pairs);
                let (a, b) = if self.interleaved {
                    let start = e.mul_const(index, 2);
                    (start, e.add_const(start, 1))
                } else {
                    (first, e.add(first, half))
                };
                let (u, v) = head.turn(head.load(a, lanes), head.load(b, lanes), first);
                head.store(u, a);
                head.store(v, b);
            },
            || {
                let copied = e.mul_const(e.sub(index, turns), pairs);
                let i = e.add(copied, e.mul_const(half, 2));
                head.store(head.load(i, lanes), i);
            },
        );
    }
}

pub(super) fn kernel(spec: &KernelSpec) -> CudaKernel {
    let cx = Cx::cuda(spec, flat::THREADS);
    let e = &cx.e;
    let [x, cos, sin] = [0, 1, 2].map(|i| cx.operand(i));
    let y = cx.result(0);
    let (tokens, heads) = (x.shape[0].clone(), x.shape[1].clone());
    let parts = Parts::new(&x, &y, &cos, &sin, spec.attrs.str("style"));
    let each = &parts.each;
    let grid = cx.each_thread(&(tokens * heads.clone() * each.clone()), |point| {
        let (each, heads) = (cx.size(each), cx.size(&heads));
        let row = e.div_unsigned(point, each);
        let (token, head) = (e.div_unsigned(row, heads), e.rem_unsigned(row, heads));
        let at = |v: &View| v.at(&cx, cx.scale(token, &v.strides[0]));
        let of = |v: &View| at(v).at(&cx, cx.scale(head, &v.strides[1]));
        let (cos, sin) = (at(&cos), at(&sin));
        let head = Head { cx: &cx, x: of(&x), y: of(&y), cos: &cos, sin: &sin };
        parts.rotate(&head, e.rem_unsigned(point, each));
    });
    cx.finish_cuda(grid, 0, &[], |_| parts.is_wide())
}
