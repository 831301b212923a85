//! From global memory to the ring: sixteen bytes a copy where rows are aligned to that, else four,
//! else two elements through registers. Copies outside of the operand write zeros and read nothing.

use super::{
    super::{Matrix, PANEL},
    Gen,
};
use crate::emit::{Cmp, Elem, Emitter, Ty, Val};

/// A piece of a matrix of dense rows.
pub(in super::super) struct Dense {
    pub(in super::super) matrix: Matrix,
    /// First row and column, i32.
    pub(in super::super) first: [Val; 2],
    /// Rows and columns of the matrix, i32.
    pub(in super::super) limits: [Val; 2],
    /// Whether every column of every piece is one of the matrix.
    pub(in super::super) columns_whole: bool,
    /// Rows and columns of the piece.
    pub(in super::super) extent: [i64; 2],
}

/// The threads that copy together.
pub(in super::super) struct Copier<'a> {
    pub(in super::super) e: &'a Emitter,
    pub(in super::super) thread: Val,
    pub(in super::super) threads: i64,
}

/// Where unit `unit` of row `row` lies: rows of `units` sixteen-byte units, permuted.
pub(super) fn place(gen_: &Gen<'_>, row: Val, unit: Val, units: i64, elem: Elem) -> Val {
    let e = gen_.e;
    let turned = e.xor(unit, turn(gen_, row, units, elem));
    e.shl(e.add(e.mul_const(row, units), turned), 4)
}

/// What a row's units are exclusive-ored with.
pub(super) fn turn(gen_: &Gen<'_>, row: Val, units: i64, elem: Elem) -> Val {
    let e = gen_.e;
    match (elem, units) {
        // Lanes read eight bytes: four rows of two units at a time.
        (Elem::F32, _) => e.shl(e.and(row, e.i32(3)), 1),
        // Two rows, or four, share the 128 bytes of all banks.
        (_, 4) => e.and(e.shr(row, 1), e.i32(3)),
        (_, 2) => e.and(e.shr(row, 2), e.i32(1)),
        _ => e.and(row, e.i32(7)),
    }
}

impl Copier<'_> {
    /// Calls `body(first, first + thread)` for the thread's share of `0..count`.
    pub(in super::super) fn share(&self, count: i64, body: impl Fn(i64, Val)) {
        let (e, threads) = (self.e, self.threads);
        for first in (0..count).step_by(usize::try_from(threads).expect("few threads")) {
            let unit = e.add_const(self.thread, first);
            if first + threads <= count {
                body(first, unit);
            } else {
                e.if_then(e.cmp(Cmp::Lt, unit, e.i32(count)), || body(first, unit));
            }
        }
    }

    /// Copies a piece to shared memory at `to`, where unit u of row r goes to `place(r, u)`.
    pub(in super::super) fn dense(&self, piece: &Dense, to: Val, place: impl Fn(Val, Val) -> Val) {
        let e = self.e;
        let (elem, stride) = (piece.matrix.elem, piece.matrix.stride);
        let bytes = elem.bytes().cast_signed();
        let each = 16 / bytes;
        let units = piece.extent[1] / each;
        let base = e.arg(piece.matrix.arg);
        // The thread's first row; its others are as many rows below as is known here.
        let own = e.div_unsigned(self.thread, e.i32(units));
        let start = e.mul_const(e.cast(e.add(piece.first[0], own), Elem::I64), stride);
        let unit = e.rem_unsigned(self.thread, e.i32(units));
        assert_eq!(self.threads % units, 0, "threads of whole rows");
        self.share(piece.extent[0] * units, |first, _| {
            let below = first / units;
            let row = e.add_const(own, below);
            let to = e.add(to, place(row, unit));
            let row = e.add(piece.first[0], row);
            let column = e.add(piece.first[1], e.mul_const(unit, each));
            let start = e.add_const(start, below * stride);
            let from = e.at(base, elem, e.add(start, e.cast(column, Elem::I64)));
            let inside = e.cmp(Cmp::Lt, row, piece.limits[0]);
            // Elements from the column on, at most `each` and none in a row outside.
            let left = if piece.columns_whole {
                e.i32(each)
            } else {
                let left = e.sub(piece.limits[1], column);
                e.max(e.i32(0), e.min(e.i32(each), left))
            };
            let left = e.select(inside, left, e.i32(0));
            if stride * bytes % 16 == 0 {
                let text = "cp.async.cg.shared.global [$0], [$1], 16, $2;";
                e.ptx(text, &[to, from, e.mul_const(left, bytes)]);
            } else if bytes == 4 || stride % 2 == 0 {
                self.copy_words(to, from, e.mul_const(left, bytes));
            } else {
                self.copy_halves(to, from, left);
            }
        });
    }

    /// Copies the first `bytes` of a unit, word by word.
    fn copy_words(&self, to: Val, from: Val, bytes: Val) {
        let e = self.e;
        for at in (0..16).step_by(4) {
            let left = e.max(e.i32(0), e.min(e.i32(4), e.add_const(bytes, -at)));
            let text = format!("cp.async.ca.shared.global [$0+{at}], [$1+{at}], 4, $2;");
            e.ptx(&text, &[to, from, left]);
        }
    }

    /// Copies the first `count` of eight two-byte elements.
    fn copy_halves(&self, to: Val, from: Val, count: Val) {
        let e = self.e;
        let half = |i: i64| {
            let inside = e.cmp(Cmp::Lt, e.i32(i), count);
            let load = || vec![e.load(Ty::Scalar(Elem::I16), e.at_const(from, Elem::I16, i))];
            let zero = || vec![e.int(Ty::Scalar(Elem::I16), 0)];
            let half = e.if_else(inside, &[Ty::Scalar(Elem::I16)], load, zero)[0];
            e.extend_unsigned(half, Elem::I32)
        };
        let word = |i: i64| e.or(half(2 * i), e.shl(half(2 * i + 1), 16));
        let mut operands = vec![to];
        operands.extend((0..4).map(word));
        e.ptx("st.shared.v4.b32 [$0], {$1, $2, $3, $4};", &operands);
    }
}

impl Gen<'_> {
    /// The threads that copy.
    pub(super) fn copier(&self) -> Copier<'_> {
        let (e, tile) = (self.e, self.tile);
        match tile.copiers {
            0 => Copier { e, thread: self.thread, threads: tile.multipliers() },
            copiers => {
                let thread = e.add_const(self.thread, -tile.multipliers());
                Copier { e, thread, threads: 32 * copiers }
            }
        }
    }

    /// Copies a piece to shared memory at `to`.
    pub(super) fn copy(&self, piece: &Dense, to: Val) {
        let elem = piece.matrix.elem;
        let units = piece.extent[1] * elem.bytes().cast_signed() / 16;
        self.copier().dense(piece, to, |row, unit| place(self, row, unit, units, elem));
    }

    /// Copies rows `k..` of the tile's panels: a unit is half a row of a panel.
    pub(super) fn copy_panels(&self, k: Val, to: Val) {
        let (e, spec) = (self.e, self.spec);
        let panels = self.tile.n / PANEL;
        let first = e.div_unsigned(self.origin[1], e.i32(PANEL));
        let base = e.arg(spec.w);
        self.copier().share(panels * self.tile.k * 2, |_, unit| {
            let (line, half) = (e.shr(unit, 1), e.and(unit, e.i32(1)));
            let to = e.add(to, place(self, line, half, 2, spec.w_elem));
            let panel = e.add(first, e.div_unsigned(line, e.i32(self.tile.k)));
            let row = e.add(k, e.rem_unsigned(line, e.i32(self.tile.k)));
            let start = e.mul_const(e.cast(panel, Elem::I64), spec.k * PANEL);
            let within = e.add(e.mul_const(row, PANEL), e.shl(half, 3));
            let from = e.at(base, spec.w_elem, e.add(start, e.cast(within, Elem::I64)));
            let mut bytes = e.i32(16);
            if spec.columns() % self.tile.n != 0 {
                let inside = e.cmp(Cmp::Lt, panel, e.i32(spec.panels()));
                bytes = e.select(inside, bytes, e.i32(0));
            }
            if spec.k % self.tile.k != 0 {
                bytes = e.select(e.cmp(Cmp::Lt, row, e.i32(spec.k)), bytes, e.i32(0));
            }
            e.ptx("cp.async.cg.shared.global [$0], [$1], 16, $2;", &[to, from, bytes]);
        });
    }
}
