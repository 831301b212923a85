//! Products of tiles in shared memory by fused multiply-adds, sixteen threads a row of the tile.
//!
//! Thread `t` has rows `t / 16 + r · threads / 16` and, of the other side, either rows
//! `t % 16 + 16 b` or columns `4 (t % 16) + 64 b` and the next three. Every sum is one chain in the
//! order of what is summed over, for each element by itself.

use ir::Dim;

use crate::{
    emit::{Cmp, Elem, Emitter, Ty, Val},
    lower::{
        cx::Cx,
        view::{View, memory_elem, widen},
    },
};

const F32: Ty = Ty::Scalar(Elem::F32);
/// Loads of a thread that are in flight before the first is stored.
const BATCH: i64 = 8;

/// A matrix of f32 in shared memory.
#[derive(Clone, Copy)]
pub(in crate::lower::attention) struct Matrix {
    /// Its address.
    pub(in crate::lower::attention) at: Val,
    /// f32 of a row, a multiple of four.
    pub(in crate::lower::attention) stride: i64,
}

/// The threads of a block.
pub(in crate::lower::attention) struct Threads<'a> {
    pub(in crate::lower::attention) cx: &'a Cx<'a>,
    thread: Val,
    /// Number of the thread's first row, and its place among the sixteen of that.
    pub(in crate::lower::attention) row: Val,
    pub(in crate::lower::attention) lane: Val,
    count: i64,
}

/// Where the elements of a row lie.
pub(in crate::lower::attention) struct Line {
    /// At the row's first element.
    pub(in crate::lower::attention) view: View,
    /// Between elements.
    pub(in crate::lower::attention) step: Dim,
    /// What elements are multiplied with.
    pub(in crate::lower::attention) scale: Option<Val>,
}

impl<'a> Threads<'a> {
    pub(in crate::lower::attention) fn new(cx: &'a Cx<'a>) -> Threads<'a> {
        let e = &cx.e;
        let thread = e.thread();
        let (row, lane) = (e.shr(thread, 4), e.and(thread, e.i32(15)));
        Threads { cx, thread, row, lane, count: i64::from(e.threads()) }
    }

    /// Rows between neighbouring rows of a thread.
    pub(in crate::lower::attention) const fn apart(&self) -> i64 {
        self.count / 16
    }

    /// The thread's row number `r`.
    pub(in crate::lower::attention) fn own_row(&self, r: i64) -> Val {
        self.cx.e.add_const(self.row, r * self.apart())
    }

    fn address(&self, matrix: Matrix, row: Val, column: Val) -> Val {
        let e = &self.cx.e;
        let at = e.add(e.mul_const(row, matrix.stride), column);
        e.add(matrix.at, e.shl(at, 2))
    }

    fn load(&self, at: Val, offset: i64) -> [Val; 4] {
        let text = format!("ld.shared.v4.f32 {{$0, $1, $2, $3}}, [$4+{}];", 4 * offset);
        let v = self.cx.e.ptx_values(&text, &[F32; 4], &[at]);
        [v[0], v[1], v[2], v[3]]
    }

    /// Stores an element.
    pub(in crate::lower::attention) fn put(&self, to: Matrix, row: Val, column: Val, value: Val) {
        self.cx.e.ptx("st.shared.f32 [$0], $1;", &[self.address(to, row, column), value]);
    }

    /// Loads four elements.
    pub(in crate::lower::attention) fn get_four(
        &self,
        from: Matrix,
        row: Val,
        column: Val,
    ) -> [Val; 4] {
        self.load(self.address(from, row, column), 0)
    }

    /// Loads an element.
    pub(in crate::lower::attention) fn get(&self, from: Matrix, row: Val, column: Val) -> Val {
        let at = self.address(from, row, column);
        self.cx.e.ptx_values("ld.shared.f32 $0, [$1];", &[F32], &[at])[0]
    }

    /// Fills a matrix of `rows` rows and `width` columns, a multiple of four, with rows of `size`
    /// elements and zeros: of the rows, the first `valid`, of which there is one at least. `whole`
    /// says that four elements may be read at once.
    pub(in crate::lower::attention) fn fill(
        &self,
        to: Matrix,
        (rows, width): (i64, i64),
        (valid, size): (Val, i64),
        whole: bool,
        line: &dyn Fn(Val) -> Line,
    ) {
        let e = &self.cx.e;
        let last = e.add_const(valid, -1);
        let each = if whole && size % 4 == 0 { 4 } else { 1 };
        let units = width / each;
        self.batches(rows * units, |index| {
            let (row, unit) =
                (e.div_unsigned(index, e.i32(units)), e.rem_unsigned(index, e.i32(units)));
            let column = e.mul_const(unit, each);
            let mut inside = e.cmp(Cmp::Lt, row, valid);
            let mut from = column;
            if width > size {
                inside = e.and(inside, e.cmp(Cmp::Lt, column, e.i32(size)));
                from = e.min(column, e.i32(size - each));
            }
            let Line { view, step, scale } = line(e.min(row, last));
            let from = self.cx.scale(e.cast(from, Elem::I64), &step);
            let lanes = u32::try_from(each).expect("four at most");
            let value = self.widened(&view, from, lanes);
            let value = match scale {
                Some(scale) => e.mul(value, e.splat(scale, lanes)),
                None => value,
            };
            let value = e.select(inside, value, e.zero(value.ty()));
            (self.address(to, row, column), value)
        });
    }

    /// As [`Self::fill`], from memory in which rows are neighbours: `column(row)` of element zero
    /// of a row that is a multiple of four, and the distance of elements. `scales` are those of
    /// four rows.
    pub(in crate::lower::attention) fn fill_columns(
        &self,
        to: Matrix,
        (rows, width): (i64, i64),
        (valid, size): (Val, i64),
        whole: bool,
        column: &dyn Fn(Val) -> (View, Dim, Option<Val>),
    ) {
        let e = &self.cx.e;
        let last = e.div_unsigned(e.add_const(valid, -1), e.i32(4));
        let one = |index: Val| {
            let unit = e.div_unsigned(index, e.i32(width));
            let element = e.rem_unsigned(index, e.i32(width));
            let from = e.min(element, e.i32(size - 1));
            let (view, step, scales) = column(e.shl(e.min(unit, last), 2));
            let from = self.cx.scale(e.cast(from, Elem::I64), &step);
            let mut value = if whole {
                self.widened(&view, from, 4)
            } else {
                (0..4).fold(e.zero(Emitter::f32s(4)), |all, i| {
                    let one = self.widened(&view, e.add_const(from, i64::from(i)), 1);
                    e.insert(one, all, i)
                })
            };
            if let Some(scales) = scales {
                value = e.mul(value, scales);
            }
            let row = e.shl(unit, 2);
            let inside = e.cmp(Cmp::Lt, element, e.i32(size));
            let values = (0..4).map(|i| {
                let exists = e.cmp(Cmp::Lt, e.add_const(row, i64::from(i)), valid);
                let value = e.extract(value, i);
                e.select(e.and(inside, exists), value, e.f32(0.0))
            });
            (self.address(to, row, element), values.collect::<Vec<Val>>())
        };
        let count = rows / 4 * width;
        for i in 0..(count + self.count - 1) / self.count {
            let index = e.add_const(self.thread, i * self.count);
            let store = || {
                let (at, values) = one(index);
                for (i, value) in (0..).zip(values) {
                    let text = format!("st.shared.f32 [$0+{}], $1;", 4 * i * to.stride);
                    e.ptx(&text, &[at, value]);
                }
            };
            if (i + 1) * self.count > count {
                e.if_then(e.cmp(Cmp::Lt, index, e.i32(count)), store);
            } else {
                store();
            }
        }
    }

    /// Dense elements as f32.
    fn widened(&self, view: &View, from: Val, lanes: u32) -> Val {
        let e = &self.cx.e;
        let elem = memory_elem(view.dtype);
        let at = e.at(view.base, elem, from);
        let raw = if lanes > 1 {
            e.load_whole(Ty::of(elem, lanes), at)
        } else {
            e.load(Ty::of(elem, 1), at)
        };
        e.cast(widen(e, raw, view.dtype), Elem::F32)
    }

    /// Stores what `body(index)` gives for the thread's share of `0..count`, an address and one or
    /// four values.
    fn batches(&self, count: i64, body: impl Fn(Val) -> (Val, Val)) {
        let e = &self.cx.e;
        let put = |(at, value): (Val, Val)| {
            if value.lanes() == 1 {
                e.ptx("st.shared.f32 [$0], $1;", &[at, value]);
            } else {
                let parts = (0..4).map(|i| e.extract(value, i));
                let operands: Vec<Val> = [at].into_iter().chain(parts).collect();
                e.ptx("st.shared.v4.f32 [$0], {$1, $2, $3, $4};", &operands);
            }
        };
        let whole = count / self.count;
        let turns = whole / BATCH;
        if turns > 0 {
            e.for_each(e.i32(0), e.i32(turns), 1, |turn| {
                let first = e.add(self.thread, e.mul_const(turn, BATCH * self.count));
                let of = |i: i64| body(e.add_const(first, i * self.count));
                let all: Vec<(Val, Val)> = (0..BATCH).map(of).collect();
                all.into_iter().for_each(put);
            });
        }
        let of = |i: i64| body(e.add_const(self.thread, i * self.count));
        let rest: Vec<(Val, Val)> = (turns * BATCH..whole).map(of).collect();
        rest.into_iter().for_each(put);
        if whole * self.count < count {
            let index = e.add_const(self.thread, whole * self.count);
            e.if_then(e.cmp(Cmp::Lt, index, e.i32(count)), || put(body(index)));
        }
    }

    /// `Σ_k a[row][k] · b[other][k]` for so many rows and, of `b`, rows `lane + 16 j`; `width` is
    /// a multiple of four.
    pub(in crate::lower::attention) fn rows_by_rows(
        &self,
        (a, b): (Matrix, Matrix),
        (rows, others): (i64, i64),
        width: i64,
    ) -> Vec<Val> {
        let e = &self.cx.e;
        let zero = e.i32(0);
        let (from_a, from_b) = (self.address(a, self.row, zero), self.address(b, self.lane, zero));
        let count = usize::try_from(rows * others).expect("few");
        e.for_loop(zero, e.i32(width), 4, &vec![e.f32(0.0); count], |k, sums| {
            let k = e.shl(k, 2);
            let (at_a, at_b) = (e.add(from_a, k), e.add(from_b, k));
            let right: Vec<[Val; 4]> =
                (0..others).map(|j| self.load(at_b, 16 * j * b.stride)).collect();
            // One row after the other: there are few registers.
            let others = usize::try_from(others).expect("few");
            let mut next = Vec::new();
            for (r, sums) in (0..rows).zip(sums.chunks_exact(others)) {
                let left = self.load(at_a, r * self.apart() * a.stride);
                let pairs = sums.iter().zip(&right);
                next.extend(pairs.map(|(sum, right)| {
                    left.iter().zip(right).fold(*sum, |sum, (l, r)| e.fma(*l, *r, sum))
                }));
            }
            next
        })
    }

    /// Adds `Σ_k a[row][k] · b[k][column]` for so many rows and `blocks` blocks of 64 columns to
    /// sums, four a block, blocks within rows.
    pub(in crate::lower::attention) fn rows_by_columns(
        &self,
        (a, b): (Matrix, Matrix),
        (rows, blocks): (i64, i64),
        count: i64,
        sums: &[Val],
    ) -> Vec<Val> {
        let e = &self.cx.e;
        let zero = e.i32(0);
        let from_a = self.address(a, self.row, zero);
        let from_b = self.address(b, zero, e.shl(self.lane, 2));
        e.for_loop(zero, e.i32(count), 4, sums, |k, sums| {
            let at_a = e.add(from_a, e.shl(k, 2));
            let at_b = e.add(from_b, e.mul_const(k, 4 * b.stride));
            let left: Vec<[Val; 4]> =
                (0..rows).map(|r| self.load(at_a, r * self.apart() * a.stride)).collect();
            (0..4).fold(sums.to_vec(), |sums, i| {
                let right: Vec<Val> =
                    (0..blocks).flat_map(|j| self.load(at_b, i * b.stride + 64 * j)).collect();
                let i = usize::try_from(i).expect("four");
                let pairs = left.iter().flat_map(|l| right.iter().map(move |r| (l[i], *r)));
                pairs.zip(&sums).map(|((l, r), sum)| e.fma(l, r, *sum)).collect()
            })
        })
    }

    /// Calls `body(first of up to four sums, row, column, lanes)` for sums as
    /// [`Self::rows_by_columns`] has them, of rows of `size` elements.
    pub(in crate::lower::attention) fn each_strip(
        &self,
        (rows, blocks): (i64, i64),
        size: i64,
        body: impl Fn(usize, i64, Val),
    ) {
        let e = &self.cx.e;
        for row in 0..rows {
            for block in 0..blocks {
                let column = e.add_const(e.shl(self.lane, 2), 64 * block);
                let first = usize::try_from(4 * (row * blocks + block)).expect("few");
                if 64 * (block + 1) > size {
                    e.if_then(e.cmp(Cmp::Lt, column, e.i32(size)), || body(first, row, column));
                } else {
                    body(first, row, column);
                }
            }
        }
    }

    /// Stores up to four elements of a row of `size` from `column` on.
    pub(in crate::lower::attention) fn store(
        &self,
        view: &View,
        step: &Dim,
        values: &[Val],
        column: Val,
        (size, whole): (i64, bool),
    ) {
        let (cx, e) = (self.cx, &self.cx.e);
        if whole && size % 4 == 0 && step.is(1) {
            let vector = (0..4)
                .zip(values)
                .fold(e.zero(Emitter::f32s(4)), |vector, (i, value)| e.insert(*value, vector, i));
            view.store_strip(cx, vector, e.cast(column, Elem::I64), &Dim::from(1));
            return;
        }
        for (i, value) in (0..).zip(values) {
            let column = e.add_const(column, i);
            e.if_then(e.cmp(Cmp::Lt, column, e.i32(size)), || {
                view.store(cx, *value, cx.scale(e.cast(column, Elem::I64), step));
            });
        }
    }

    /// Combines a value over the sixteen threads of a row.
    pub(in crate::lower::attention) fn over_row(
        &self,
        value: Val,
        combine: impl Fn(Val, Val) -> Val,
    ) -> Val {
        let e = &self.cx.e;
        [1, 2, 4, 8].into_iter().fold(value, |v, mask| combine(v, e.shuffle_xor(v, mask)))
    }
}
