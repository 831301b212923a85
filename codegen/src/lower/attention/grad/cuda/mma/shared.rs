//! A block's shared memory: rows of its own, and a ring of two chunks of the other side's.
//!
//! Sixteen-byte units of a row are exclusive-ored with bits of the row's number: neither copies nor
//! `ldmatrix` meet in a bank.

use super::{Block, ROWS, Sizes, THREADS};
use crate::{
    emit::{Barrier, Cmp, Elem, Val},
    lower::view::View,
};

/// How shared memory is divided.
#[derive(Clone, Copy)]
pub(in super::super) struct Plan {
    pub(super) sizes: Sizes,
    /// Rows of a chunk.
    pub(super) chunk: i64,
}

impl Plan {
    pub(in super::super) const fn of(sizes: Sizes) -> Plan {
        // Of large heads, sums of both results leave registers for fewer scores.
        let small = sizes.key <= 64 && sizes.value <= 64;
        Plan { sizes, chunk: if small { 64 } else { 32 } }
    }

    const fn own_bytes(self) -> i64 {
        2 * ROWS * (self.sizes.key + self.sizes.value)
    }

    /// Two matrices of a chunk; of queries y, and logarithms of sums, besides.
    const fn stage_bytes(self) -> i64 {
        self.chunk * (2 * (self.sizes.key + 2 * self.sizes.value) + 4)
    }

    pub(in super::super) const fn bytes(self) -> i64 {
        self.own_bytes() + 2 * self.stage_bytes() + 8 * self.chunk
    }
}

/// A matrix of rows of so many elements in shared memory.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub(super) at: Val,
    pub(super) size: i64,
}

/// A stage of the ring.
pub(super) struct Stage {
    /// k and v, or q and dy.
    pub(super) others: [Matrix; 2],
    pub(super) y: Matrix,
    pub(super) lse: Val,
}

impl Block<'_> {
    pub(super) fn own(&self) -> [Matrix; 2] {
        let (e, sizes) = (&self.cx.e, self.plan.sizes);
        let at = e.shared();
        let second = e.add_const(at, 2 * ROWS * sizes.key);
        [Matrix { at, size: sizes.key }, Matrix { at: second, size: sizes.value }]
    }

    /// Stage 0 or 1 (i32).
    pub(super) fn stage(&self, number: Val) -> Stage {
        let (e, plan) = (&self.cx.e, self.plan);
        let at = e.add_const(e.shared(), plan.own_bytes());
        let at = e.add(at, e.mul_const(number, plan.stage_bytes()));
        let Sizes { key, value, .. } = plan.sizes;
        let second = e.add_const(at, 2 * plan.chunk * key);
        let third = e.add_const(second, 2 * plan.chunk * value);
        let lse = e.add_const(third, 2 * plan.chunk * value);
        let y = Matrix { at: third, size: value };
        let others = [Matrix { at, size: key }, Matrix { at: second, size: value }];
        Stage { others, y, lse }
    }

    /// Where `[chunk][2]` numbers of a chunk's queries are.
    pub(super) fn stats(&self) -> Val {
        let bytes = self.plan.own_bytes() + 2 * self.plan.stage_bytes();
        self.cx.e.add_const(self.cx.e.shared(), bytes)
    }

    /// What the units of a row are exclusive-ored with.
    pub(super) fn turn(&self, row: Val, units: i64) -> Val {
        let e = &self.cx.e;
        match units {
            _ if units % 8 == 0 => e.and(row, e.i32(7)),
            _ if units % 4 == 0 => e.and(e.shr(row, 1), e.i32(3)),
            _ => e.and(e.shr(row, 2), e.i32(1)),
        }
    }

    /// Address of a unit of a row.
    pub(super) fn unit(&self, matrix: Matrix, row: Val, unit: Val) -> Val {
        let (e, units) = (&self.cx.e, matrix.size / 8);
        let unit = e.xor(unit, self.turn(row, units));
        e.add(matrix.at, e.shl(e.add(e.mul_const(row, units), unit), 4))
    }

    /// Address of unit `bit + 2 step` of a row, for a bit: parts that lanes compute are few.
    pub(super) fn unit_of_step(&self, matrix: Matrix, row: Val, bit: Val, step: i64) -> Val {
        let (e, units) = (&self.cx.e, matrix.size / 8);
        let among = match units {
            _ if units % 8 == 0 => 8,
            _ if units % 4 == 0 => 4,
            _ => 2,
        };
        let turned = e.xor(bit, self.turn(row, units));
        let unit = e.xor(turned, e.i32(2 * step % among));
        let begin = e.shl(e.add(e.mul_const(row, units), unit), 4);
        e.add_const(e.add(matrix.at, begin), 2 * step / among * among * 16)
    }

    /// Begins the copy of rows of operand `i`, zeros for those that do not exist.
    pub(super) fn copy(
        &self,
        to: Matrix,
        rows: i64,
        i: usize,
        row: &dyn Fn(&View, Val) -> (View, Val),
    ) {
        let (cx, e) = (self.cx, &self.cx.e);
        let view = cx.operand(i);
        let units = to.size / 8;
        let count = rows * units;
        let one = |index: Val| {
            let (line, unit) =
                (e.div_unsigned(index, e.i32(units)), e.rem_unsigned(index, e.i32(units)));
            let (from, exists) = row(&view, line);
            let column = e.cast(e.shl(unit, 3), Elem::I64);
            let from = e.at(from.base, self.elem(), column);
            let bytes = e.select(exists, e.i32(16), e.i32(0));
            let text = "cp.async.cg.shared.global [$0], [$1], 16, $2;";
            e.ptx(text, &[self.unit(to, line, unit), from, bytes]);
        };
        for first in (0..count).step_by(usize::try_from(THREADS).expect("few")) {
            let index = e.add_const(self.thread, first);
            if first + THREADS <= count {
                one(index);
            } else {
                e.if_then(e.cmp(Cmp::Lt, index, e.i32(count)), || one(index));
            }
        }
    }

    /// Waits for copies, and for all threads.
    pub(super) fn arrive(&self) {
        self.cx.e.ptx("cp.async.wait_group 0;", &[]);
        self.cx.e.barrier(Barrier::Block);
    }

    pub(super) fn commit(&self) {
        self.cx.e.ptx("cp.async.commit_group;", &[]);
    }
}
