//! `scatter_nd` on a GPU: a block of threads for a run of the result's elements.
//!
//! A block looks through all tuples and keeps, for each row that it has elements of, the number of
//! the last one that names it; its elements then come from that row of the updates, or from data.

use ir::{Dim, KernelSpec};

use crate::{
    cuda::CudaKernel,
    emit::{Barrier, Cmp, Elem, Ty::Scalar, Val},
    lower::{cx::Cx, space::Space, view::View},
};

const THREADS: i64 = 256;
/// Elements of a block.
const EACH: i64 = 4 * THREADS;

pub(super) fn kernel(spec: &KernelSpec) -> Result<CudaKernel, String> {
    let cx = Cx::cuda(spec, 256);
    let e = &cx.e;
    let (data, indices, y) = (cx.operand(0).bits(), cx.operand(1), cx.result(0).bits());
    let updates = cx.operand(2).bits();
    let grid = indices.shape.len() - 1;
    let length = indices.shape[grid].as_const().and_then(|k| usize::try_from(k).ok());
    let length = length.ok_or("the length of index tuples must be constant")?;
    let product = |dims: &[Dim]| dims.iter().fold(Dim::from(1), |n, d| n * d.clone());
    let (count, width) = (product(&y.shape), product(&y.shape[length..]));
    let all = cx.size(&count);
    let width = e.max(cx.size(&width), e.i64(1));
    let first = e.mul_const(e.cast(e.block('x'), Elem::I64), EACH);
    let end = e.min(e.add_const(first, EACH), all);
    let first_row = e.div_unsigned(first, width);
    let last_row = e.div_unsigned(e.add_const(end, -1), width);
    let thread = e.cast(e.thread(), Elem::I64);
    let word = |row: Val| e.add(e.shared(), e.shl(e.cast(row, Elem::I32), 2));
    e.for_each(thread, e.i64(EACH), THREADS, |row| e.store_shared(e.i32(-1), word(row), 0));
    e.barrier(Barrier::Block);
    let tuples = Space::new(&indices.shape[..grid], &[indices.strides[..grid].to_vec()]).merged();
    e.for_each(thread, cx.size(&tuples.points()), THREADS, |tuple| {
        let at = tuples.offsets(&cx, tuple)[0];
        let (row, inside) = row_of(&cx, &indices, &y, at, length);
        let own = e.and(e.cmp(Cmp::Ge, row, first_row), e.cmp(Cmp::Le, row, last_row));
        e.if_then(e.and(inside, own), || {
            let tuple = e.cast(tuple, Elem::I32);
            e.ptx("red.shared.max.s32 [$0], $1;", &[word(e.sub(row, first_row)), tuple]);
        });
    });
    e.barrier(Barrier::Block);
    let moved = Space::new(&updates.shape, std::slice::from_ref(&updates.strides)).merged();
    let kept = Space::new(&y.shape, &[data.strides.clone(), y.strides.clone()]).merged();
    e.for_each(e.add(first, thread), end, THREADS, |point| {
        let row = e.sub(e.div_unsigned(point, width), first_row);
        let tuple = e.load_shared(Elem::I32, word(row), 0);
        let at = kept.offsets(&cx, point);
        let given = || {
            let line = e.mul(e.cast(tuple, Elem::I64), width);
            let from = moved.offsets(&cx, e.add(line, e.rem_unsigned(point, width)))[0];
            y.store(&cx, updates.load(&cx, from), at[1]);
        };
        let is_given = e.cmp(Cmp::Ge, tuple, e.i32(0));
        e.either(is_given, given, || y.store(&cx, data.load(&cx, at[0]), at[1]));
    });
    let blocks = [count.ceil_div(EACH), 1.into(), 1.into()];
    Ok(cx.finish_cuda(blocks, u32::try_from(4 * EACH).expect("small"), &[], |_| false))
}

/// The row that a tuple names, counted over the axes that tuples name, and whether there is one.
fn row_of(cx: &Cx<'_>, indices: &View, y: &View, at: Val, length: usize) -> (Val, Val) {
    let e = &cx.e;
    let step = indices.strides.last().expect("tuples lie along an axis");
    let mut inside = e.int(Scalar(Elem::Bool), 1);
    let mut row = e.i64(0);
    for (j, extent) in (0..).zip(&y.shape[..length]) {
        let index = indices.load(cx, cx.offset(at, e.i64(j), step));
        let (index, extent) = (e.cast(index, Elem::I64), cx.size(extent));
        let below = e.cmp(Cmp::Lt, index, e.i64(0));
        let index = e.select(below, e.add(index, extent), index);
        let within = e.and(e.cmp(Cmp::Ge, index, e.i64(0)), e.cmp(Cmp::Lt, index, extent));
        inside = e.and(inside, within);
        row = e.add(e.mul(row, extent), index);
    }
    (row, inside)
}
