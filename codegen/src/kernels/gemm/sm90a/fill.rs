//! Rows of `a` by the producer's threads: global memory to registers, rounded and put in the
//! weight's order there, then to a stage as the copy engine would have written it.
//!
//! A copy engine neither rounds f32 nor exchanges two-byte elements within sixteen bytes, and
//! converting in the warpgroups that multiply would take tensor cores their time. Loads run ahead
//! of the ring by one step (f32) or two (two-byte elements), so that 32 KiB of `a` are in flight;
//! lanes read neighbouring sixteen bytes, and write whole rows of 128 bytes, free of conflicts.

use super::{
    super::{Matrix, Order},
    K, Tile, WARPGROUP,
};
use crate::emit::{Cmp, Elem, Emitter, Ty, Val};

const WORD: Ty = Ty::Scalar(Elem::I32);

/// What the producer's threads copy.
pub(super) struct Fill<'a> {
    pub(super) e: &'a Emitter,
    pub(super) a: Matrix,
    /// Length of the sums.
    pub(super) k: i64,
    /// Element of the weight, as PTX names it.
    pub(super) to: &'static str,
    pub(super) order: Order,
    pub(super) tile: Tile,
    /// Number of rows, i32.
    pub(super) rows: Val,
    /// Number of the thread among the producers, i32.
    pub(super) thread: Val,
}

/// A tile's rows for a thread.
pub(super) struct Rows {
    /// Address of the thread's first row at its first column.
    from: Val,
    /// Whether each of the thread's rows is one of `a`.
    inside: Vec<Val>,
}

impl Fill<'_> {
    /// Registers of a thread that a step's loads fill.
    const fn words(&self) -> i64 {
        4 * self.loads()
    }

    fn narrow(&self) -> bool {
        self.a.elem != Elem::F32
    }

    /// Sixteen-byte units of a row of a stage, in global memory.
    const fn units(&self) -> i64 {
        if matches!(self.a.elem, Elem::F32) { K / 4 } else { K / 8 }
    }

    const fn loads(&self) -> i64 {
        self.tile.m() * self.units() / WARPGROUP
    }

    /// Rows between a thread's loads.
    const fn apart(&self) -> i64 {
        WARPGROUP / self.units()
    }

    /// Steps that loads run ahead.
    pub(super) const fn ahead(&self) -> i64 {
        if matches!(self.a.elem, Elem::F32) { 1 } else { 2 }
    }

    fn unit(&self) -> Val {
        self.e.rem_unsigned(self.thread, self.e.i32(self.units()))
    }

    /// The thread's first row within the tile.
    fn row(&self) -> Val {
        self.e.div_unsigned(self.thread, self.e.i32(self.units()))
    }

    const fn each(&self) -> i64 {
        if matches!(self.a.elem, Elem::F32) { 4 } else { 8 }
    }

    /// The rows of the tile that begins at `first`.
    pub(super) fn rows(&self, first: Val) -> Rows {
        let e = self.e;
        let row = e.add(first, self.row());
        let start = e.mul_const(e.cast(row, Elem::I64), self.a.stride);
        let column = e.cast(e.mul_const(self.unit(), self.each()), Elem::I64);
        let from = e.at(e.arg(self.a.arg), self.a.elem, e.add(start, column));
        let inside = (0..self.loads())
            .map(|i| e.cmp(Cmp::Lt, e.add_const(row, i * self.apart()), self.rows))
            .collect();
        Rows { from, inside }
    }

    /// Loads step `step` of a tile's rows; zeros outside of `a`.
    pub(super) fn load(&self, rows: &Rows, step: Val) -> Vec<Val> {
        let e = self.e;
        let first = e.mul_const(step, K);
        let from = e.at(rows.from, self.a.elem, e.cast(first, Elem::I64));
        // Also false for steps past the last.
        let column = e.add(first, e.mul_const(self.unit(), self.each()));
        let within = e.cmp(Cmp::Lt, column, e.i32(self.k));
        let text = "{\n.reg .pred inside;\nsetp.ne.b32 inside, $4, 0;\nmov.b32 $0, 0;\n\
                    mov.b32 $1, 0;\nmov.b32 $2, 0;\nmov.b32 $3, 0;\n\
                    @inside ld.global.v4.b32 {$0, $1, $2, $3}, [$5];\n}";
        (0..)
            .zip(&rows.inside)
            .flat_map(|(i, inside)| {
                let inside = e.cast(e.and(*inside, within), Elem::I32);
                let at = e.at_const(from, self.a.elem, i * self.apart() * self.a.stride);
                e.ptx_values(text, &[WORD; 4], &[inside, at])
            })
            .collect()
    }

    /// The registers of a step as the stage has them: rounded, in the weight's order.
    pub(super) fn convert(&self, loaded: &[Val]) -> Vec<Val> {
        let e = self.e;
        let round = format!("cvt.rn.{}x2.f32 $0, $2, $1;", self.to);
        let words: Vec<Val> = if self.narrow() {
            loaded.to_vec()
        } else {
            let float = |word: &Val| e.bitcast(*word, Ty::Scalar(Elem::F32));
            let pair = |pair: &[Val]| {
                e.ptx_values(&round, &[WORD], &[float(&pair[0]), float(&pair[1])])[0]
            };
            loaded.chunks_exact(2).map(pair).collect()
        };
        if self.order == Order::Plain {
            return words;
        }
        let eight = if self.narrow() { self.unit() } else { e.shr(self.unit(), 1) };
        let bit = |mask: i64| e.cmp(Cmp::Ne, e.and(eight, e.i32(mask)), e.i32(0));
        let (halves, pairs) = (bit(1), bit(2));
        let selector = e.select(halves, e.i32(0x1032), e.i32(0x3210));
        let turn =
            |word: Val| e.ptx_pure("prmt.b32 $0, $1, $1, $2;", &[WORD], &[word, selector])[0];
        words
            .chunks_exact(2)
            .flat_map(|pair| {
                [e.select(pairs, pair[1], pair[0]), e.select(pairs, pair[0], pair[1])].map(turn)
            })
            .collect()
    }

    /// Writes a step's registers to the stage at `to`.
    pub(super) fn store(&self, words: &[Val], to: Val) {
        let e = self.e;
        let (unit, row) = (self.unit(), self.row());
        let eight = if self.narrow() { unit } else { e.shr(unit, 1) };
        let half = if self.narrow() { e.i32(0) } else { e.shl(e.and(unit, e.i32(1)), 3) };
        let each = if self.narrow() { 4 } else { 2 };
        let place = |row: Val| {
            let turned = e.xor(eight, e.and(row, e.i32(7)));
            e.add(e.add(e.shl(row, 7), e.shl(turned, 4)), half)
        };
        assert_eq!(self.apart() % 8, 0, "a thread's rows are turned alike");
        let to = e.add(to, place(row));
        let registers: Vec<String> = (1..=each).map(|i| format!("${i}")).collect();
        for (i, words) in (0..).zip(words.chunks_exact(each)) {
            let offset = i * self.apart() * 128;
            let text =
                format!("st.shared.v{each}.b32 [$0+{offset}], {{{}}};", registers.join(", "));
            let mut operands = vec![to];
            operands.extend(words);
            e.ptx(&text, &operands);
        }
    }

    /// Registers for the loads in flight, of `ahead` steps.
    pub(super) fn in_flight(&self) -> usize {
        usize::try_from(self.words()).expect("few registers")
    }
}
