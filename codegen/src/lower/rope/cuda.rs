//! Rotary embedding on a GPU: a thread turns one pair, or four where heads allow it.
//!
//! Threads count along pairs first, then heads, then tokens, so that a warp reads neighbours.

use ir::{Dim, KernelSpec};

use super::Head;
use crate::{
    cuda::CudaKernel,
    emit::Cmp,
    lower::{cx::Cx, flat, view::View},
};

/// Pairs that a thread turns where they are dense.
const PAIRS: i64 = 4;

pub(super) fn kernel(spec: &KernelSpec) -> CudaKernel {
    let cx = Cx::cuda(spec, flat::THREADS);
    let e = &cx.e;
    let [x, cos, sin] = [0, 1, 2].map(|i| cx.operand(i));
    let y = cx.result(0);
    let (tokens, heads, size) = (x.shape[0].clone(), x.shape[1].clone(), x.shape[2].clone());
    let half = cos.shape[1].clone();
    let interleaved = spec.attrs.str("style") == "interleaved";
    let views = [&x, &cos, &sin, &y];
    let rows: Vec<&Dim> = views.iter().flat_map(|v| &v.strides[..v.strides.len() - 1]).collect();
    let dense = views.iter().all(|v| v.strides.last().is_some_and(|s| s.is(1)));
    // What is not turned is copied, as many elements at a time.
    let rest = size - half.clone() * Dim::from(2);
    let whole = Cx::in_strips(&half, &rows, 4) && Cx::in_strips(&rest, &[], 4);
    let wide = dense && !interleaved && whole;
    let pairs = if wide { PAIRS } else { 1 };
    let (turns, copies) = (half.ceil_div(pairs), rest.ceil_div(pairs));
    let each = turns.clone() + copies;
    let grid = cx.each_thread(&(tokens * heads.clone() * each.clone()), |point| {
        let (each, heads) = (cx.size(&each), cx.size(&heads));
        let row = e.div_unsigned(point, each);
        let (token, head) = (e.div_unsigned(row, heads), e.rem_unsigned(row, heads));
        let at = |v: &View| v.at(&cx, cx.scale(token, &v.strides[0]));
        let of = |v: &View| at(v).at(&cx, cx.scale(head, &v.strides[1]));
        let (cos, sin) = (at(&cos), at(&sin));
        let head = Head { cx: &cx, x: of(&x), y: of(&y), cos: &cos, sin: &sin };
        let index = e.rem_unsigned(point, each);
        let turned = e.cmp(Cmp::Lt, index, cx.size(&turns));
        let lanes = u32::try_from(pairs).expect("few");
        e.either(
            turned,
            || {
                let first = e.mul_const(index, pairs);
                let (a, b) = if interleaved {
                    let start = e.mul_const(index, 2);
                    (start, e.add_const(start, 1))
                } else {
                    (first, e.add(first, cx.size(&half)))
                };
                let (u, v) = head.turn(head.load(a, lanes), head.load(b, lanes), first);
                head.store(u, a);
                head.store(v, b);
            },
            || {
                let copied = e.mul_const(e.sub(index, cx.size(&turns)), pairs);
                let i = e.add(copied, e.mul_const(cx.size(&half), 2));
                head.store(head.load(i, lanes), i);
            },
        );
    });
    cx.finish_cuda(grid, 0, &[], |_| wide)
}
