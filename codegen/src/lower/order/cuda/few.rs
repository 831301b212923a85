//! A few elements of a long row, in two passes over it.
//!
//! Each thread finds the first in order of its own elements. When these are sorted, the one in the
//! last wanted place is a limit: at least so many elements are no later than it, and few more where
//! the row is in no order of its own. What is no later is brought to shared memory and sorted. If
//! that is more than there is room for, as where most elements are equal, the last wanted element
//! is found digit by digit instead.
//!
//! Both sorts are bitonic networks (Batcher 1968, "Sorting networks and their applications"), an
//! element a thread; within a warp elements are exchanged by shuffles. Pairs of key and index
//! differ, so the result does not depend on the order in which threads bring theirs.

use ir::DType;

use super::{Block, Row};
use crate::emit::{Barrier, Cmp, Elem, Ty, Val};

/// Elements that a thread has on their way at once.
const AT_ONCE: i64 = 8;

const WORD: Ty = Ty::Scalar(Elem::I32);

impl Block<'_> {
    /// Whether keys fit the words that lanes exchange.
    pub(super) fn has_words(&self) -> bool {
        self.keys.elem == Elem::I32
    }

    /// The index of the element in each place of a row's order, i32, in the thread of that number;
    /// right in the first `count` threads, which are at most half of all.
    pub(super) fn few(&self, row: &Row<'_>, count: Val) -> Val {
        let e = &self.cx.e;
        let gauge = Gauge::new(self, row);
        let first = gauge.first(self, row);
        let first = self.sort(&[first])[0];
        let (limit_at, held_at) = (self.words(0), self.words(1));
        let last = e.max(e.add_const(e.cast(count, Elem::I32), -1), e.i32(0));
        e.if_then(e.cmp(Cmp::Eq, e.thread(), last), || e.store_shared(first, limit_at, 0));
        e.if_then(e.cmp(Cmp::Eq, e.thread(), e.i32(0)), || {
            e.store_shared(e.i32(0), held_at, 0);
        });
        e.barrier(Barrier::Block);
        gauge.bring(self, row, e.load_shared(Elem::I32, limit_at, 0), held_at);
        e.barrier(Barrier::Block);
        let held = e.load_shared(Elem::I32, held_at, 0);
        let fits = e.cmp(Cmp::Le, held, e.i32(self.room));
        let held = e.if_else(
            fits,
            &[WORD],
            || vec![held],
            || {
                e.barrier(Barrier::Block);
                self.select(row, None, e.add_const(count, -1));
                e.barrier(Barrier::Block);
                vec![e.cast(count, Elem::I32)]
            },
        )[0];
        let thread = self.thread();
        let pair = e.if_else(
            e.cmp(Cmp::Lt, e.thread(), held),
            &[WORD; 2],
            || vec![self.key(thread), e.cast(self.index(thread), Elem::I32)],
            || vec![e.i32(i32::MAX.into()); 2],
        );
        self.sort(&pair)[1]
    }

    /// Sorts the threads' words, by the first and where those are equal by the next.
    fn sort(&self, own: &[Val]) -> Vec<Val> {
        let e = &self.cx.e;
        let thread = e.thread();
        let bit = |number: u32| e.and(e.shr(thread, number), e.i32(1));
        let mut own = own.to_vec();
        for size in 1..=e.threads().ilog2() {
            for distance in (0..size).rev() {
                let other: Vec<Val> = match distance {
                    0..5 => own.iter().map(|word| e.shuffle_xor(*word, 1 << distance)).collect(),
                    _ => self.exchange(&own, 1 << distance),
                };
                let before = other.iter().zip(&own).rev().fold(None, |rest, (other, own)| {
                    let before = e.cmp(Cmp::Lt, *other, *own);
                    let same = |rest| e.and(e.cmp(Cmp::Eq, *other, *own), rest);
                    Some(rest.map_or(before, |rest| e.or(before, same(rest))))
                });
                // Of a pair the lower thread has what comes first, in every other part of `size`
                // the upper one.
                let wants_first = e.cmp(Cmp::Eq, bit(distance), bit(size));
                let takes = e.cmp(Cmp::Eq, before.expect("words"), wants_first);
                own = other.iter().zip(&own).map(|(a, b)| e.select(takes, *a, *b)).collect();
            }
        }
        own
    }

    /// The words of the thread whose number differs in these bits.
    fn exchange(&self, own: &[Val], bits: i64) -> Vec<Val> {
        let e = &self.cx.e;
        let own_at = self.at(e.thread(), 4);
        let other_at = self.at(e.xor(e.thread(), e.i32(bits)), 4);
        let area = 4 * self.room;
        e.barrier(Barrier::Block);
        for (word, byte) in own.iter().zip((0..).step_by(usize::try_from(area).expect("small"))) {
            e.store_shared(*word, own_at, byte);
        }
        e.barrier(Barrier::Block);
        (0..own.len() as i64).map(|i| e.load_shared(Elem::I32, other_at, i * area)).collect()
    }
}

/// What elements are compared by: themselves where that is cheaper than by their keys.
enum Gauge {
    /// The largest floats first.
    Values,
    Keys,
}

impl Gauge {
    fn new(block: &Block<'_>, row: &Row<'_>) -> Gauge {
        match row.x.dtype {
            DType::F32 if block.keys.descending => Gauge::Values,
            _ => Gauge::Keys,
        }
    }

    fn load(&self, block: &Block<'_>, row: &Row<'_>, i: Val) -> Val {
        let x = row.x.load(block.cx, block.cx.scale(i, row.step));
        match self {
            Gauge::Values => x,
            Gauge::Keys => block.keys.key(&block.cx.e, x),
        }
    }

    /// The least key of the thread's elements, NaN aside where values are compared; the greatest
    /// there is if it has none.
    fn first(&self, block: &Block<'_>, row: &Row<'_>) -> Val {
        let e = &block.cx.e;
        let (none, earlier): (Val, &dyn Fn(Val, Val) -> Val) = match self {
            Gauge::Values => (e.f32(f32::NEG_INFINITY), &|a, b| e.max(a, b)),
            Gauge::Keys => (e.i32(i32::MAX.into()), &|a, b| e.min(a, b)),
        };
        let whole = self.whole(block);
        let first =
            e.for_loop(e.i64(0), whole, AT_ONCE * block.width(), &[none], |start, first| {
                let i = e.add(start, block.thread());
                let some: Vec<Val> = (0..AT_ONCE)
                    .map(|n| self.load(block, row, e.add_const(i, n * block.width())))
                    .collect();
                vec![some.into_iter().fold(first[0], |first, x| earlier(x, first))]
            });
        let rest = e.add(whole, block.thread());
        let first = e.for_loop(rest, block.n, block.width(), &first, |i, first| {
            vec![earlier(self.load(block, row, i), first[0])]
        })[0];
        match self {
            Gauge::Values => block.keys.key(e, first),
            Gauge::Keys => first,
        }
    }

    /// Brings what is no later than a key to shared memory, as far as there is room, and counts it.
    fn bring(&self, block: &Block<'_>, row: &Row<'_>, limit: Val, held_at: Val) {
        let e = &block.cx.e;
        let limit = match self {
            Gauge::Values => block.keys.value(e, limit),
            Gauge::Keys => limit,
        };
        let counts = |x: Val| match self {
            // NaN is above all numbers.
            Gauge::Values => {
                let less = e.cmp(Cmp::Lt, x, limit);
                e.xor(less, e.int(less.ty(), 1))
            }
            Gauge::Keys => e.cmp(Cmp::Le, x, limit),
        };
        let put = |x: Val, i: Val| {
            let add = "atom.shared.add.u32 $0, [$1], $2;";
            let place = e.ptx_values(add, &[WORD], &[held_at, e.i32(1)])[0];
            e.if_then(e.cmp(Cmp::Lt, place, e.i32(block.room)), || {
                let key = match self {
                    Gauge::Values => block.keys.key(e, x),
                    Gauge::Keys => x,
                };
                block.put(place, key, i);
            });
        };
        let whole = self.whole(block);
        e.for_each(e.i64(0), whole, AT_ONCE * block.width(), |start| {
            let i = e.add(start, block.thread());
            let at = |n: i64| e.add_const(i, n * block.width());
            let some: Vec<Val> = (0..AT_ONCE).map(|n| self.load(block, row, at(n))).collect();
            let which: Vec<Val> = some.iter().map(|x| counts(*x)).collect();
            let any = which.iter().copied().reduce(|a, b| e.or(a, b)).expect("some");
            e.if_then(any, || {
                for ((n, x), counts) in (0..).zip(&some).zip(&which) {
                    e.if_then(*counts, || put(*x, at(n)));
                }
            });
        });
        e.for_each(e.add(whole, block.thread()), block.n, block.width(), |i| {
            let x = self.load(block, row, i);
            e.if_then(counts(x), || put(x, i));
        });
    }

    /// Elements of the row in whole steps.
    fn whole(&self, block: &Block<'_>) -> Val {
        let e = &block.cx.e;
        e.sub(block.n, e.rem_unsigned(block.n, e.i64(AT_ONCE * block.width())))
    }
}
