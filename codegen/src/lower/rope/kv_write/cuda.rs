//! `rope_kv_write` on a GPU: of each token, threads for the parts of its queries' heads, then for
//! those of its keys' heads, then for four elements each of its values.

use ir::{Dim, KernelSpec};

use super::{Head, Operands};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Val},
    lower::{cx::Cx, flat, rope::cuda::Parts, view::View},
};

/// Elements of a value's head that a thread moves where they are dense.
const VALUES: i64 = 4;

pub(super) fn kernel(spec: &KernelSpec) -> CudaKernel {
    let cx = Cx::cuda(spec, flat::THREADS);
    let (e, own) = (&cx.e, Operands::new(&cx));
    let style = spec.attrs.str("style");
    // Along the elements of a key last.
    let strides = [0, 3, 1, 2].map(|axis| own.k_cache.strides[axis].clone()).to_vec();
    let keys = View { strides, ..own.k_cache.clone() };
    let q_parts = Parts::new(&own.q, &own.y, &own.cos, &own.sin, style);
    let k_parts = Parts::new(&own.k, &keys, &own.cos, &own.sin, style);
    let value = own.v.shape[2].clone();
    let rows: Vec<&Dim> = own.v.strides[..2].iter().chain(&own.v_cache.strides[..3]).collect();
    let dense = [&own.v, &own.v_cache].iter().all(|v| v.strides.last().is_some_and(|s| s.is(1)));
    let lanes = if dense && Cx::in_strips(&value, &rows, 4) { VALUES } else { 1 };
    let v_each = value.ceil_div(lanes);
    let [heads, kv_heads] = [&own.q, &own.k].map(|v| v.shape[1].clone());
    let of_q = heads * q_parts.each.clone();
    let of_k = kv_heads.clone() * k_parts.each.clone();
    let of_v = kv_heads * v_each.clone();
    let all = of_q.clone() + of_k.clone() + of_v;
    let tokens = own.q.shape[0].clone();
    let grid = cx.each_thread(&(tokens * all.clone()), |point| {
        let all = cx.size(&all);
        let (token, index) = (e.div_unsigned(point, all), e.rem_unsigned(point, all));
        let row = |v: &View| v.at(&cx, cx.scale(token, &v.strides[0]));
        let (cos, sin) = (row(&own.cos), row(&own.sin));
        let rotate = |x: &View, y: &View, parts: &Parts, index: Val| {
            let each = cx.size(&parts.each);
            let head = e.div_unsigned(index, each);
            let of = |v: &View| v.at(&cx, cx.scale(head, &v.strides[1]));
            let head = Head { cx: &cx, x: of(&row(x)), y: of(y), cos: &cos, sin: &sin };
            parts.rotate(&head, e.rem_unsigned(index, each));
        };
        let is_query = e.cmp(Cmp::Lt, index, cx.size(&of_q));
        e.either(
            is_query,
            || rotate(&own.q, &row(&own.y), &q_parts, index),
            || {
                own.if_stored(&cx, token, |block, slot| {
                    let index = e.sub(index, cx.size(&of_q));
                    let is_key = e.cmp(Cmp::Lt, index, cx.size(&of_k));
                    e.either(
                        is_key,
                        || rotate(&own.k, &own.keys(&cx, block, slot), &k_parts, index),
                        || {
                            let index = e.sub(index, cx.size(&of_k));
                            let each = cx.size(&v_each);
                            let head = e.div_unsigned(index, each);
                            let i = e.mul_const(e.rem_unsigned(index, each), lanes);
                            let of = |v: &View| v.at(&cx, cx.scale(head, &v.strides[1]));
                            let (from, to) = (of(&row(&own.v)), of(&own.values(&cx, block, slot)));
                            let count = u32::try_from(lanes).expect("few");
                            let [step, place] = [&from, &to].map(|v| v.strides[2].clone());
                            let x = from.load_strip(&cx, cx.scale(i, &step), &step, count);
                            to.store_strip(&cx, x, cx.scale(i, &place), &place);
                        },
                    );
                });
            },
        );
    });
    let first = u32::try_from(spec.operands.len()).expect("few operands");
    let is_wide = |arg: u32| match arg {
        2 => q_parts.is_wide(),
        3 | 6 | 7 => q_parts.is_wide() || k_parts.is_wide(),
        4 => lanes > 1,
        _ if arg == first => k_parts.is_wide() && keys.strides[3].is(1),
        _ if arg == first + 1 => lanes > 1,
        _ if arg == first + 2 => q_parts.is_wide(),
        _ => false,
    };
    cx.finish_cuda(grid, 0, &[], is_wide)
}
