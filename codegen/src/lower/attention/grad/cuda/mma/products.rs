//! Products of a warp by `mma.sync.m16n8k16`, whose operands come from shared memory.
//!
//! Sums of 16 x 8 lie in lanes as the parts of a left operand do, so they go from one product to
//! the next in registers, rounded to the type of the operands.

use super::{Block, WORD, shared::Matrix};
use crate::emit::{Elem, Val};

impl Block<'_> {
    pub(super) fn ldmatrix(&self, trans: &str, at: Val) -> [Val; 4] {
        let text =
            format!("ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{$0, $1, $2, $3}}, [$4];");
        let words = self.cx.e.ptx_values(&text, &[WORD; 4], &[at]);
        [words[0], words[1], words[2], words[3]]
    }

    pub(super) fn bits(&self) -> [Val; 2] {
        let e = &self.cx.e;
        [3, 4].map(|n| e.and(e.shr(self.lane, n), e.i32(1)))
    }

    /// The warp's rows at step `step` over their elements.
    pub(super) fn left(&self, matrix: Matrix, step: i64) -> [Val; 4] {
        let e = &self.cx.e;
        let row = e.add(self.first, e.and(self.lane, e.i32(15)));
        self.ldmatrix("", self.unit_of_step(matrix, row, self.bits()[1], step))
    }

    /// Rows of the other side from `16 j` on, as columns, at step `step` over their elements.
    pub(super) fn right_rows(&self, matrix: Matrix, j: i64, step: i64) -> [[Val; 2]; 2] {
        let (e, [low, high]) = (&self.cx.e, self.bits());
        let row = e.add(e.and(self.lane, e.i32(7)), e.shl(high, 3));
        let at = self.unit_of_step(matrix, row, low, step);
        let words = self.ldmatrix("", e.add_const(at, 32 * j * matrix.size));
        [[words[0], words[1]], [words[2], words[3]]]
    }

    /// Elements of the other side from `16 j` on, at step `step` over its rows.
    pub(super) fn right_columns(&self, matrix: Matrix, j: i64, step: i64) -> [[Val; 2]; 2] {
        let (e, [low, high]) = (&self.cx.e, self.bits());
        let row = e.add(e.and(self.lane, e.i32(7)), e.shl(low, 3));
        let at = self.unit_of_step(matrix, row, high, j);
        let words = self.ldmatrix(".trans", e.add_const(at, 32 * step * matrix.size));
        [[words[0], words[1]], [words[2], words[3]]]
    }

    pub(super) fn multiply(&self, left: &[Val; 4], right: [Val; 2], sums: &mut [Val]) {
        let name = self.name();
        let text = format!(
            "mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32 {{$0, $1, $2, $3}}, {{$8, $9, \
             $10, $11}}, {{$12, $13}}, {{$0, $1, $2, $3}};"
        );
        let operands: Vec<Val> = left.iter().copied().chain(right).collect();
        sums.copy_from_slice(&self.cx.e.ptx_update(&text, sums, &operands));
    }

    pub(super) fn zeros(&self, columns: i64) -> Vec<Val> {
        vec![self.cx.e.f32(0.0); usize::try_from(columns / 2).expect("few")]
    }

    /// Products of the warp's rows and those of a chunk: four a block of eight of those.
    pub(super) fn scores(&self, own: Matrix, other: Matrix) -> Vec<Val> {
        let mut sums = self.zeros(self.plan.chunk);
        for step in 0..own.size / 16 {
            let left = self.left(own, step);
            for (j, sums) in (0..).zip(sums.chunks_exact_mut(8)) {
                let right = self.right_rows(other, j, step);
                for (right, sums) in right.into_iter().zip(sums.chunks_exact_mut(4)) {
                    self.multiply(&left, right, sums);
                }
            }
        }
        sums
    }

    /// Adds products of weights of a chunk's rows, and those rows.
    pub(super) fn add(&self, weights: &[[Val; 4]], other: Matrix, sums: &[Val]) -> Vec<Val> {
        let mut sums = sums.to_vec();
        for (step, left) in (0..).zip(weights) {
            for (j, sums) in (0..).zip(sums.chunks_exact_mut(8)) {
                let right = self.right_columns(other, j, step);
                for (right, sums) in right.into_iter().zip(sums.chunks_exact_mut(4)) {
                    self.multiply(left, right, sums);
                }
            }
        }
        sums
    }

    /// Sums as left operands, rounded.
    pub(super) fn rounded(&self, sums: &[Val]) -> Vec<[Val; 4]> {
        let text = format!("cvt.rn.{}x2.f32 $0, $2, $1;", self.name());
        let pair = |pair: &[Val]| self.cx.e.ptx_pure(&text, &[WORD], pair)[0];
        let of = |g: &[Val]| [0, 2, 4, 6].map(|i| pair(&g[i..i + 2]));
        sums.chunks_exact(8).map(of).collect()
    }

    pub(super) fn name(&self) -> &'static str {
        if self.elem() == Elem::F16 { "f16" } else { "bf16" }
    }
}
