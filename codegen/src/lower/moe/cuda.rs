//! Routing on a GPU.
//!
//! `moe_permute`: a block of threads for each expert, which counts what goes to the experts before
//! it and then finds places for its own, in order; one block more takes what goes to none.
//! `moe_combine`: a thread adds up to four columns of a token.

use ir::{Dim, KernelSpec};

use super::combine;
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Ty, Val},
    lower::{cx::Cx, flat, team::WARP_WORDS},
};

const THREADS: u32 = 256;
const WIDTH: i64 = THREADS as i64;

pub(super) fn permute(spec: &KernelSpec) -> CudaKernel {
    let cx = Cx::cuda(spec, THREADS);
    let e = &cx.e;
    let picked = cx.operand(0);
    let [tokens, slots, offsets] = [0, 1, 2].map(|i| cx.result(i));
    let experts = spec.attrs.int("experts");
    let count = picked.shape[0].clone() * picked.shape[1].clone();
    let (all, each) = (cx.size(&count), cx.size(&picked.shape[1]));
    let (own, none) = (e.block('x'), e.i32(-1));
    let is_rest = e.cmp(Cmp::Eq, own, e.i32(experts));
    let known = |expert: Val| {
        e.and(e.cmp(Cmp::Ge, expert, e.i32(0)), e.cmp(Cmp::Lt, expert, e.i32(experts)))
    };
    let place = |view: &crate::lower::view::View, pick: Val| {
        let row = cx.scale(e.div_unsigned(pick, each), &view.strides[0]);
        cx.offset(row, e.rem_unsigned(pick, each), &view.strides[1])
    };
    let expert = |pick: Val| picked.load(&cx, place(&picked, pick));
    let thread = e.cast(e.thread(), Elem::I64);
    let before = e.for_loop(thread, all, WIDTH, &[e.i32(0)], |pick, sum| {
        let expert = expert(pick);
        let counts = e.and(known(expert), e.cmp(Cmp::Lt, expert, own));
        vec![e.add(sum[0], e.cast(counts, Elem::I32))]
    });
    let first = cx.fold_block(before[0], e.shared(), |a, b| e.add(a, b));
    e.if_then(e.cmp(Cmp::Eq, thread, e.i64(0)), || {
        offsets.store(&cx, first, cx.scale(e.cast(own, Elem::I64), &offsets.strides[0]));
    });
    let at = e.add_const(e.shared(), WARP_WORDS);
    let of_expert = || {
        let _ = e.for_loop(e.i64(0), all, WIDTH, &[first], |start, row| {
            let pick = e.add(start, thread);
            let (inside, word) = (e.cmp(Cmp::Lt, pick, all), Ty::Scalar(Elem::I32));
            let expert = e.if_else(inside, &[word], || vec![expert(pick)], || vec![none])[0];
            let found = e.cmp(Cmp::Eq, expert, own);
            let (rank, total) = cx.place(found, at);
            e.if_then(found, || {
                let row = e.add(row[0], rank);
                slots.store(&cx, row, place(&slots, pick));
                let token = e.cast(e.div_unsigned(pick, each), Elem::I32);
                let to = cx.scale(e.cast(row, Elem::I64), &tokens.strides[0]);
                tokens.store(&cx, token, to);
            });
            vec![e.add(row[0], total)]
        });
    };
    let of_none = || {
        e.for_each(thread, all, WIDTH, |pick| {
            let unknown = e.xor(known(expert(pick)), e.int(Ty::Scalar(Elem::Bool), 1));
            e.if_then(unknown, || slots.store(&cx, none, place(&slots, pick)));
        });
        e.for_each(e.add(e.cast(first, Elem::I64), thread), all, WIDTH, |row| {
            tokens.store(&cx, none, cx.scale(row, &tokens.strides[0]));
        });
    };
    e.either(is_rest, of_none, of_expert);
    let grid = [Dim::from(experts + 1), Dim::from(1), Dim::from(1)];
    cx.finish_cuda(grid, u32::try_from(2 * WARP_WORDS).expect("small"), &[], |_| false)
}

pub(super) fn combine_kernel(spec: &KernelSpec) -> CudaKernel {
    let cx = Cx::cuda(spec, flat::THREADS);
    let e = &cx.e;
    let (from, to) = (cx.operand(0), cx.result(0));
    let dense = from.strides[1].is(1) && to.strides[1].is(1);
    let whole = Cx::in_strips(&to.shape[1], &[&from.strides[0], &to.strides[0]], 4);
    let lanes = if dense && whole { 4 } else { 1 };
    let each = to.shape[1].ceil_div(lanes.into());
    let grid = cx.each_thread(&(to.shape[0].clone() * each.clone()), |point| {
        let each = cx.size(&each);
        let i = e.mul_const(e.rem_unsigned(point, each), lanes.into());
        combine(&cx, e.div_unsigned(point, each), |token| token.strip(i, lanes));
    });
    cx.finish_cuda(grid, 0, &[], |arg| lanes > 1 && (arg == 0 || arg == 3))
}
