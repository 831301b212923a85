//! Orders on a GPU: a block of threads for up to 1024 places of a row's result.
//!
//! The elements that come to these places are brought to shared memory as pairs of key and index,
//! and each goes to the place that is the number of those before it. Of a row of at most 2048 they
//! are all brought there. Of a longer one they are those between two others, which are found digit
//! by digit, the highest first, from counts of digits (radix select: Alabi, Blanchard, Gordon &
//! Steinbach 2012, "Fast k-selection algorithms for graphics processing units"); a few are found
//! by [`few`], which is faster.

mod few;

use ir::{Dim, KernelSpec};

use super::{Keys, Plan, Row};
use crate::{
    cuda::CudaKernel,
    emit::{Barrier, Cmp, Elem, Ty, Val},
    lower::{
        LowerError,
        cx::{Cx, refuse},
        space::Space,
        team::WARP_WORDS,
        view::View,
    },
};

/// Elements of a row that is sorted as a whole, at most.
const WHOLE: i64 = 2048;
/// Places of a block in a longer row.
const PLACES: i64 = 1024;
/// Values of a digit.
const DIGITS: i64 = 256;

pub(super) fn kernel(spec: &KernelSpec) -> Result<CudaKernel, LowerError> {
    let plan = Plan::of(spec).map_err(|reason| refuse(spec, reason))?;
    let is_whole = plan.longest <= WHOLE;
    if !is_whole && plan.most > PLACES {
        let why = format!("at most {PLACES} elements of a row of more than {WHOLE} on a GPU");
        return Err(refuse(spec, why));
    }
    let threads: u32 = match plan.longest {
        n if n <= 32 => 32,
        n if n <= 128 => 128,
        n if n <= WHOLE => 256,
        _ => 1024,
    };
    let cx = Cx::cuda(spec, threads);
    let e = &cx.e;
    let x = cx.operand(0);
    let indices = cx.result(spec.results.len() - 1);
    let values = (spec.results.len() > 1).then(|| cx.result(0).bits());
    let views: Vec<&View> = [&x, &indices].into_iter().chain(&values).collect();
    let mut strides: Vec<Vec<Dim>> = views.iter().map(|v| v.strides.clone()).collect();
    let steps: Vec<Dim> = strides.iter_mut().map(|s| s.remove(plan.axis)).collect();
    let mut extents = x.shape.clone();
    let n = extents.remove(plan.axis);
    let outer = Space::new(&extents, &strides).merged();
    let keys = Keys::of(spec, x.dtype);
    let at = outer.offsets(&cx, e.cast(e.block('x'), Elem::I64));
    let row = Row { cx: &cx, keys: &keys, x: x.at(&cx, at[0]), step: &steps[0] };
    let room = if is_whole { plan.longest } else { PLACES };
    let block = Block { cx: &cx, keys: &keys, room, n: cx.size(&n) };
    let from = row.x.clone().bits();
    let indices = indices.at(&cx, at[1]);
    let values = values.as_ref().map(|v| v.at(&cx, at[2]));
    let write = |place: Val, index: Val| {
        indices.store(&cx, index, cx.scale(place, &steps[1]));
        if let Some(values) = &values {
            let value = from.load(&cx, cx.scale(index, &steps[0]));
            values.store(&cx, value, cx.scale(place, &steps[2]));
        }
    };
    let shared = u32::try_from(block.bytes()).expect("room is small");
    if !is_whole && 2 * plan.most <= PLACES && block.has_words() {
        let count = cx.size(&plan.count);
        let index = block.few(&row, count);
        let place = block.thread();
        e.if_then(e.cmp(Cmp::Lt, place, count), || write(place, e.cast(index, Elem::I64)));
        return Ok(cx.finish_cuda([outer.points(), 1.into(), 1.into()], shared, &[], |_| false));
    }
    let (first, count) = if is_whole {
        block.take(&row);
        (e.i64(0), cx.size(&plan.count))
    } else {
        let first = e.mul_const(e.cast(e.block('y'), Elem::I64), PLACES);
        let count = e.min(e.i64(PLACES), e.sub(cx.size(&plan.count), first));
        let several = plan.most > PLACES;
        block.select(&row, several.then_some(first), e.add_const(e.add(first, count), -1));
        (first, count)
    };
    e.barrier(Barrier::Block);
    let held = if is_whole { block.n } else { count };
    block.rank(held, |place, index| {
        e.if_then(e.cmp(Cmp::Lt, place, count), || write(e.add(first, place), index));
    });
    let parts = if is_whole { Dim::from(1) } else { plan.count.ceil_div(PLACES) };
    Ok(cx.finish_cuda([outer.points(), parts, 1.into()], shared, &[], |_| false))
}

/// A block of threads: 8 or 4 bytes of key, then 4 of index, `room` times each; behind them counts
/// of digits and words of warps.
struct Block<'c> {
    cx: &'c Cx<'c>,
    keys: &'c Keys,
    room: i64,
    /// Elements of the row.
    n: Val,
}

/// An element of a rank: its key, and how many with the same key come before it.
#[derive(Clone, Copy)]
struct Ranked {
    key: Val,
    before: Val,
}

impl Block<'_> {
    fn key_bytes(&self) -> i64 {
        self.keys.elem.bytes().cast_signed()
    }

    fn indices(&self) -> i64 {
        self.key_bytes() * self.room
    }

    fn counts(&self) -> i64 {
        (self.indices() + 4 * self.room + 127) / 128 * 128
    }

    fn bytes(&self) -> i64 {
        self.counts() + 4 * DIGITS + 3 * WARP_WORDS
    }

    fn words(&self, number: i64) -> Val {
        self.cx.e.add_const(self.cx.e.shared(), self.counts() + 4 * DIGITS + number * WARP_WORDS)
    }

    fn thread(&self) -> Val {
        self.cx.e.cast(self.cx.e.thread(), Elem::I64)
    }

    fn width(&self) -> i64 {
        self.cx.e.threads().into()
    }

    fn at(&self, index: Val, bytes: i64) -> Val {
        let e = &self.cx.e;
        e.add(e.shared(), e.mul_const(e.cast(index, Elem::I32), bytes))
    }

    fn put(&self, place: Val, key: Val, index: Val) {
        let e = &self.cx.e;
        e.store_shared(key, self.at(place, self.key_bytes()), 0);
        e.store_shared(e.cast(index, Elem::I32), self.at(place, 4), self.indices());
    }

    fn key(&self, place: Val) -> Val {
        self.cx.e.load_shared(self.keys.elem, self.at(place, self.key_bytes()), 0)
    }

    fn index(&self, place: Val) -> Val {
        let e = &self.cx.e;
        e.cast(e.load_shared(Elem::I32, self.at(place, 4), self.indices()), Elem::I64)
    }

    /// Brings all elements.
    fn take(&self, row: &Row<'_>) {
        let e = &self.cx.e;
        e.for_each(self.thread(), self.n, self.width(), |i| self.put(i, row.key(i, 1), i));
    }

    /// `body(place, index)` for each of the first `count` pairs.
    fn rank(&self, count: Val, body: impl FnOnce(Val, Val)) {
        let e = &self.cx.e;
        e.for_each(self.thread(), count, self.width(), |own| {
            let (key, index) = (self.key(own), self.index(own));
            let places = e.for_loop(e.i64(0), count, 1, &[e.i64(0)], |other, place| {
                let (less, same) = (self.key(other), self.index(other));
                let first = e.and(e.cmp(Cmp::Eq, less, key), e.cmp(Cmp::Lt, same, index));
                let before = e.or(e.cmp(Cmp::Lt, less, key), first);
                vec![e.add(place[0], e.cast(before, Elem::I64))]
            });
            body(places[0], index);
        });
    }

    /// A key as far as digits tell it apart.
    fn told_apart(&self, key: Val) -> Val {
        let e = &self.cx.e;
        match self.keys.digits.start {
            0 => key,
            start => e.and(key, e.int(key.ty(), -1 << start)),
        }
    }

    /// Brings the elements from the rank `first` (zero if `None`) to, and with, the rank `last`.
    fn select(&self, row: &Row<'_>, first: Option<Val>, last: Val) {
        let e = &self.cx.e;
        let first = first.map(|rank| self.ranked(row, rank));
        let last = self.ranked(row, last);
        let zero = e.i32(0);
        let none = e.int(Ty::Scalar(Elem::Bool), 0);
        let init = [zero; 3];
        let _ = e.for_loop(e.i64(0), self.n, self.width(), &init, |start, held| {
            let i = e.add(start, self.thread());
            let inside = e.cmp(Cmp::Lt, i, self.n);
            let ty = last.key.ty();
            let own = e.if_else(inside, &[ty], || vec![row.key(i, 1)], || vec![e.zero(ty)])[0];
            let key = self.told_apart(own);
            let mut next = vec![held[0], held[1], held[2]];
            // Among those with the key of an end, the number of this one.
            let mut number = |end: Ranked, slot: usize| {
                let same = e.and(inside, e.cmp(Cmp::Eq, key, end.key));
                let (place, all) = self.cx.place(same, self.words(slot as i64));
                let number = e.cast(e.add(held[slot], place), Elem::I64);
                next[slot] = e.add(held[slot], all);
                (same, number)
            };
            let (same, at) = number(last, 1);
            let with = e.and(same, e.cmp(Cmp::Le, at, last.before));
            let mut found = e.and(inside, e.or(e.cmp(Cmp::Lt, key, last.key), with));
            if let Some(first) = first {
                let (same, at) = number(first, 2);
                let with = e.and(same, e.cmp(Cmp::Ge, at, first.before));
                found = e.and(found, e.or(e.cmp(Cmp::Gt, key, first.key), with));
            }
            let found = e.select(inside, found, none);
            let (place, all) = self.cx.place(found, self.words(0));
            e.if_then(found, || {
                self.put(e.cast(e.add(held[0], place), Elem::I64), own, i);
            });
            next[0] = e.add(held[0], all);
            next
        });
    }

    /// Finds the element of a rank, i64.
    fn ranked(&self, row: &Row<'_>, rank: Val) -> Ranked {
        let e = &self.cx.e;
        let ty = Ty::Scalar(self.keys.elem);
        let counts = e.add_const(e.shared(), self.counts());
        let digits = self.keys.digits.clone();
        let (mut key, mut before) = (e.zero(ty), rank);
        for shift in digits.clone().step_by(8).rev() {
            e.barrier(Barrier::Block);
            e.for_each(self.thread(), e.i64(DIGITS), self.width(), |digit| {
                e.store_shared(e.i32(0), e.add(counts, e.shl(e.cast(digit, Elem::I32), 2)), 0);
            });
            e.barrier(Barrier::Block);
            // The bits that are known.
            let known = (shift + 8..digits.end).fold(0i64, |mask, bit| mask | 1 << bit);
            e.for_each(self.thread(), self.n, self.width(), |i| {
                let own = row.key(i, 1);
                let differs = e.and(e.xor(own, key), e.int(ty, known));
                e.if_then(e.cmp(Cmp::Eq, differs, e.zero(ty)), || {
                    let digit = e.cast(self.keys.digit(e, own, shift), Elem::I32);
                    let count = e.add(counts, e.shl(digit, 2));
                    e.ptx("red.shared.add.u32 [$0], $1;", &[count, e.i32(1)]);
                });
            });
            e.barrier(Barrier::Block);
            let init = [e.i64(0), before, e.i64(0)];
            let found = e.for_loop(e.i64(0), e.i64(DIGITS), 1, &init, |digit, state| {
                let count = e.add(counts, e.shl(e.cast(digit, Elem::I32), 2));
                let count = e.cast(e.load_shared(Elem::I32, count, 0), Elem::I64);
                let sum = e.add(state[2], count);
                // The last digit that does not come behind the rank.
                let reached = e.cmp(Cmp::Le, state[2], before);
                vec![
                    e.select(reached, digit, state[0]),
                    e.select(reached, e.sub(before, state[2]), state[1]),
                    sum,
                ]
            });
            let digit = match self.keys.elem {
                Elem::I64 => found[0],
                elem => e.cast(found[0], elem),
            };
            let is_highest = shift + 8 == digits.end;
            let digit = if is_highest { e.xor(digit, e.int(ty, 0x80)) } else { digit };
            let digit = if shift == 0 { digit } else { e.shl(digit, shift) };
            key = e.or(key, digit);
            before = found[1];
        }
        let above = ty.elem().bits() - digits.end;
        let key = if above > 0 { e.shr_signed(e.shl(key, above), above) } else { key };
        Ranked { key, before }
    }
}
