//! From shared memory to the registers of `mma.sync.m16n8k16`.
//!
//! Lane `4g + t` holds of the left operand rows `g` and `g + 8` at `2t`, `2t + 1`, `2t + 8` and
//! `2t + 9`, of the right one the same steps of column `g`. PTX ISA, "Matrix Fragments for
//! mma.m16n8k16".
//!
//! Where the order is [`Order::Turned`], places 0 to 7 of an odd sixteen-wide step have pairs 2, 3,
//! 0, 1 of k, and in places 8 to 15 of every step each pair is also the other way round.

use super::{
    super::{Form, Order, PANEL},
    Gen,
    copy::place,
};
use crate::emit::{Elem, Emitter, Ty, Val};

const WORD: Ty = Ty::Scalar(Elem::I32);

impl Gen<'_> {
    /// Block `i` of sixteen rows at sixteen-wide step `step`.
    pub(super) fn left(&self, from: Val, i: i64, step: i64) -> [Val; 4] {
        match self.spec.a.elem {
            Elem::F32 => self.left_f32(from, i, step),
            _ => self.left_half(from, i, step),
        }
    }

    /// Whether pairs of k are exchanged at this sixteen-wide step.
    fn exchanged(&self, step: i64) -> bool {
        self.order == Order::Turned && step % 2 == 1
    }

    fn left_half(&self, from: Val, i: i64, step: i64) -> [Val; 4] {
        let mut words = if self.exchanged(step) {
            self.left_exchanged(from, i, step)
        } else {
            self.left_matrices(from, i, step)
        };
        if self.order == Order::Turned {
            for word in &mut words[2..] {
                *word = self.e.ptx_pure("prmt.b32 $0, $1, $1, 0x1032;", &[WORD], &[*word])[0];
            }
        }
        words
    }

    /// As [`Self::left_matrices`], but every lane has the pairs of its neighbour.
    fn left_exchanged(&self, from: Val, i: i64, step: i64) -> [Val; 4] {
        let e = self.e;
        let units = self.tile.k / 8;
        let row = e.add(self.warp[0], e.shr(self.lane, 2));
        let pair = e.xor(e.and(self.lane, e.i32(3)), e.i32(1));
        let at = [0, 1].map(|high| {
            let unit = e.i32(2 * step + high);
            let at = place(self, row, unit, units, self.spec.a.elem);
            e.add(e.add(from, at), e.shl(pair, 2))
        });
        let load = |high: usize, below: i64| {
            let offset = (i * 16 + below) * self.a_pitch();
            let text = format!("ld.shared.b32 $0, [$1+{offset}];");
            e.ptx_values(&text, &[WORD], &[at[high]])[0]
        };
        [load(0, 0), load(0, 8), load(1, 0), load(1, 8)]
    }

    fn left_matrices(&self, from: Val, i: i64, step: i64) -> [Val; 4] {
        let e = self.e;
        let units = self.tile.k / 8;
        let row = e.add(self.warp[0], e.and(self.lane, e.i32(15)));
        let unit = e.add_const(e.shr(self.lane, 4), 2 * step);
        let at = e.add(from, place(self, row, unit, units, self.spec.a.elem));
        self.ldmatrix("", at, i * 16 * self.a_pitch())
    }

    /// Four pairs of f32, each rounded to a pair of the weight's type.
    fn left_f32(&self, from: Val, i: i64, step: i64) -> [Val; 4] {
        let e = self.e;
        let units = self.tile.k / 4;
        let row = e.add(self.warp[0], e.shr(self.lane, 2));
        let mut pair = e.and(self.lane, e.i32(3));
        if self.exchanged(step) {
            pair = e.xor(pair, e.i32(1));
        }
        // The first operand becomes the upper half.
        let cvt = |high: usize| match (high, self.order) {
            (1, Order::Turned) => format!("cvt.rn.{}x2.f32 $0, $1, $2;", self.spec.type_name()),
            _ => format!("cvt.rn.{}x2.f32 $0, $2, $1;", self.spec.type_name()),
        };
        let turned = |high: i64| {
            let unit = e.add_const(e.shr(pair, 1), 4 * step + 2 * high);
            let at = place(self, row, unit, units, Elem::F32);
            e.add(e.add(from, at), e.shl(e.and(pair, e.i32(1)), 3))
        };
        let at = [turned(0), turned(1)];
        let load = |high: usize, below: i64| {
            let offset = (i * 16 + below) * self.a_pitch();
            let text = format!("ld.shared.v2.f32 {{$0, $1}}, [$2+{offset}];");
            let pair = e.ptx_values(&text, &[Emitter::f32s(1); 2], &[at[high]]);
            e.ptx_pure(&cvt(high), &[WORD], &pair)[0]
        };
        [load(0, 0), load(0, 8), load(1, 0), load(1, 8)]
    }

    /// Blocks `2j` and `2j + 1` of eight columns at step `step`.
    pub(super) fn right(&self, from: Val, j: i64, step: i64) -> [[Val; 2]; 2] {
        let e = self.e;
        let (row8, matrix) = (e.and(self.lane, e.i32(7)), e.shr(self.lane, 3));
        let (low, high) = (e.and(matrix, e.i32(1)), e.shr(matrix, 1));
        let words = match self.spec.form {
            Form::Panels => {
                // Matrices: both halves of k for the first eight columns, then for the others.
                let panel = e.div_unsigned(self.warp[1], e.i32(PANEL));
                let row = match self.order {
                    Order::Plain => row8,
                    Order::Turned => e.xor(row8, e.add_const(low, 2 * (step % 2))),
                };
                let k = e.add_const(e.add(row, e.shl(low, 3)), 16 * step);
                let line = e.add(e.mul_const(panel, self.tile.k), k);
                let at = place(self, line, high, 2, self.spec.w_elem);
                self.ldmatrix(".trans", e.add(from, at), j * self.tile.k * 32)
            }
            Form::Rows(_) => {
                let k = e.add_const(e.add(row8, e.shl(low, 3)), 16 * step);
                let column = e.add_const(e.shr(self.warp[1], 3), 2 * j);
                let unit = e.add(column, high);
                let at = place(self, k, unit, self.tile.n / 8, self.spec.w_elem);
                self.ldmatrix(".trans", e.add(from, at), 0)
            }
            Form::Columns(_) => {
                let units = self.tile.k / 8;
                let column = e.add(self.warp[1], e.add(row8, e.shl(high, 3)));
                let unit = e.add_const(low, 2 * step);
                let at = place(self, column, unit, units, self.spec.w_elem);
                self.ldmatrix("", e.add(from, at), j * 16 * self.tile.k * 2)
            }
        };
        [[words[0], words[1]], [words[2], words[3]]]
    }

    fn ldmatrix(&self, trans: &str, at: Val, offset: i64) -> [Val; 4] {
        let text = format!(
            "ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{$0, $1, $2, $3}}, [$4+{offset}];"
        );
        let words = self.e.ptx_values(&text, &[WORD; 4], &[at]);
        [words[0], words[1], words[2], words[3]]
    }
}
