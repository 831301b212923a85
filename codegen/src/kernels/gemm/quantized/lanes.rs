//! What a lane does with a group of a panel: integers to operands, blocks to sums.
//!
//! The layout is that of `quantize_weight` in lanes: see `ir`.

use super::super::Gemm;
use crate::emit::{Elem, Emitter, Ty, Val};

pub(super) const WORD: Ty = Ty::Scalar(Elem::I32);
/// Bytes of scales before a group's integers.
pub(super) const SCALES: i64 = 64;

/// Tables of `a & b | c` and of `a & b ^ c`.
const AND_OR: u8 = 0xea;
const AND_XOR: u8 = 0x6a;

/// A lane's part of the integers of a group, and of its scales.
#[derive(Clone, Copy)]
pub(super) struct Lane<'a> {
    /// Four words for four bits, eight for eight.
    pub(super) words: &'a [Val],
    /// Of both columns, a word for each block.
    pub(super) scales: [Val; 2],
}

/// Emission of the arithmetic.
pub(super) struct Lanes<'a> {
    pub(super) e: &'a Emitter,
    pub(super) spec: &'a Gemm,
    pub(super) bits: u32,
}

impl<'a> Lanes<'a> {
    pub(super) fn new(e: &'a Emitter, spec: &'a Gemm) -> Self {
        Lanes { e, spec, bits: spec.bits.expect("a quantised weight") }
    }

    /// Bytes of a group of a panel.
    pub(super) fn group_bytes(&self) -> i64 {
        SCALES + 128 * i64::from(self.bits)
    }

    /// Sixteen-byte loads of a lane for a group, 512 bytes apart.
    pub(super) fn loads(&self) -> i64 {
        i64::from(self.bits) / 4
    }

    /// Scales of both columns for a block, in f32.
    pub(super) fn scales(&self, lane: Lane<'_>, block: usize) -> [Val; 2] {
        let text = "{\n.reg .b16 low, high;\nmov.b32 {low, high}, $2;\ncvt.f32.f16 $0, \
                    low;\ncvt.f32.f16 $1, high;\n}";
        let scales = self.e.ptx_pure(text, &[Emitter::f32s(1); 2], &[lane.scales[block]]);
        [scales[0], scales[1]]
    }

    /// The left operands of both products of a block.
    pub(super) fn left(&self, lane: Lane<'_>, block: usize) -> [[Val; 4]; 2] {
        [0, 1].map(|product| match self.bits {
            4 => self.nibbles(lane.words[2 * block + product]),
            _ => {
                let at = 4 * block + 2 * product;
                let ([a, b], [c, d]) = (self.bytes(lane.words[at]), self.bytes(lane.words[at + 1]));
                [a, b, c, d]
            }
        })
    }

    /// Eight integers of four bits: word `i` of the operand has half-bytes `i` and `i + 4`.
    ///
    /// Put into the low bits of 128 in bf16, of 1024 in f16, an integer adds itself.
    fn nibbles(&self, word: Val) -> [Val; 4] {
        let half = self.spec.w_elem == Elem::F16;
        [0, 4, 8, 12].map(|shift| {
            let moved = if shift == 0 { word } else { self.e.shr(word, shift) };
            if half {
                let raised = self.logic(AND_OR, moved, 0x000f_000f, 0x6400_6400);
                self.sub_f16(raised, 0x6408_6408)
            } else {
                let raised = self.logic(AND_OR, moved, 0x000f_000f, 0x4300_4300);
                self.fma_bf16(raised, 0x3f80_3f80, self.word(0xc308_c308))
            }
        })
    }

    /// Four integers of eight bits: two words of the operand, of bytes 0 and 2 and of 1 and 3.
    ///
    /// bf16 holds seven bits below 128: the eighth, the sign, is what the subtracted 128 or 256 is.
    fn bytes(&self, word: Val) -> [Val; 2] {
        let e = self.e;
        let half = self.spec.w_elem == Elem::F16;
        [0, 8].map(|shift| {
            let moved = if shift == 0 { word } else { e.shr(word, shift) };
            if half {
                let raised = self.logic(AND_XOR, moved, 0x00ff_00ff, 0x6480_6480);
                self.sub_f16(raised, 0x6480_6480)
            } else {
                let raised = self.logic(AND_OR, moved, 0x007f_007f, 0x4300_4300);
                let less = self.logic(AND_OR, moved, 0x0080_0080, 0x4300_4300);
                self.fma_bf16(less, 0xbf80_bf80, raised)
            }
        })
    }

    fn word(&self, bits: u32) -> Val {
        self.e.i32(bits.cast_signed().into())
    }

    /// A table's function of three words, as one instruction: of `and` and `or` with constants the
    /// assembler makes two.
    fn logic(&self, table: u8, a: Val, b: u32, c: u32) -> Val {
        let text = format!("lop3.b32 $0, $1, $2, $3, {table};");
        self.e.ptx_pure(&text, &[WORD], &[a, self.word(b), self.word(c)])[0]
    }

    fn sub_f16(&self, a: Val, b: u32) -> Val {
        self.e.ptx_pure("sub.rn.f16x2 $0, $1, $2;", &[WORD], &[a, self.word(b)])[0]
    }

    fn fma_bf16(&self, a: Val, b: u32, c: Val) -> Val {
        self.e.ptx_pure("fma.rn.bf16x2 $0, $1, $2, $3;", &[WORD], &[a, self.word(b), c])[0]
    }

    /// Adds a block of sixteen columns and eight rows to four sums: of the first column's two rows,
    /// then of the second's.
    pub(super) fn block(
        &self,
        left: &[[Val; 4]; 2],
        x: &[Val],
        scales: [Val; 2],
        sums: &mut [Val],
    ) {
        let e = self.e;
        let mut block = vec![e.f32(0.0); 4];
        let name = self.spec.type_name();
        let text = format!(
            "mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32 {{$0, $1, $2, $3}}, {{$8, $9, \
             $10, $11}}, {{$12, $13}}, {{$0, $1, $2, $3}};"
        );
        for (left, x) in left.iter().zip(x.chunks_exact(2)) {
            let operands: Vec<Val> = left.iter().chain(x).copied().collect();
            block = e.ptx_update(&text, &block, &operands);
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = e.fma(block[i], scales[i / 2], *sum);
        }
    }

    /// Two f32 as a word of two of the operands' type, the first one low.
    pub(super) fn round(&self, pair: &[Val]) -> Val {
        let text = format!("cvt.rn.{}x2.f32 $0, $2, $1;", self.spec.type_name());
        self.e.ptx_pure(&text, &[WORD], pair)[0]
    }

    /// A lane's sums of panels and blocks of eight rows, as pairs of columns of one of its rows.
    pub(super) fn pairs(&self, sums: &[&[Val]], row: usize) -> Vec<[Val; 2]> {
        sums.iter().map(|sums| [sums[row], sums[2 + row]]).collect()
    }
}
