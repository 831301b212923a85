//! Chunks of eight bits, integers or e4m3: they are copied as they are, with their scales, and
//! become bf16, which holds them exactly, before they are multiplied. Scales stay out of the
//! products. Weights times scales may be as small as f16 is not, so that f16, to which `sm_90a`
//! converts e4m3 by itself, is no type for them.

use ir::DType;

use super::{
    super::{CHUNK, WORD, tile::Tile},
    Chunks, GROUP, Memory, Place, padded, place,
};
use crate::emit::{Cmp, Elem, Ty, Val};

/// Tables of `a & b | c`.
const AND_OR: u8 = 0xea;
/// Two of 2^120 and of -0 in bf16.
const RAISE: u32 = 0x7b80_7b80;
const NOTHING: u32 = 0x8000_8000;

/// Scales of a chunk.
#[derive(Clone, Copy)]
pub(in super::super) enum Scales {
    OfKeys,
    OfValues,
}

impl Chunks<'_> {
    /// Whether keys and values are codes.
    pub(in super::super) const fn codes(&self) -> bool {
        self.quantized.is_some()
    }

    /// As [`Self::fetch_keys`], of codes, and the scales of both keys and values.
    pub(super) fn code_keys(&self, tile: Tile, first: Val, keys: Val, entries: &[Val], to: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let (Memory::Paged { k, block, .. }, Some(quantized)) = (&self.memory, &self.quantized)
        else {
            unreachable!("codes are in blocks");
        };
        let (size, rows) = (self.sizes.key, padded(self.sizes.key));
        let begin = cx.scale(tile.head, &k.strides[1]);
        let slot = |key: Val| e.cast(e.rem_unsigned(key, e.i32(*block)), Elem::I64);
        self.share(rows, |(thread, behind), place_of| {
            let Place { group, within, .. } = place_of;
            let key = e.add(first, e.mul_const(group, GROUP));
            let mut inside = e.cmp(Cmp::Lt, key, keys);
            let mut row = within;
            if rows > size {
                inside = e.and(inside, e.cmp(Cmp::Lt, row, e.i32(size)));
                row = e.min(row, e.i32(size - 1));
            }
            let entry = e.cast(self.pick(entries, place_of), Elem::I64);
            let at = cx.offset(begin, entry, &k.strides[0]);
            let at = cx.offset(at, e.cast(row, Elem::I64), &k.strides[2]);
            let from = e.at(k.base, Elem::I8, e.add(at, slot(key)));
            let to = e.add(to, e.shl(e.add_const(thread, behind), 4));
            self.copy(to, from, inside);
        });
        // Four scales a thread: of keys, then of values.
        let thread = e.thread();
        for (i, view) in (0..).zip(&quantized.scales) {
            let unit = e.add_const(thread, -CHUNK / 4 * i);
            let mine = e.cmp(Cmp::Eq, e.div_unsigned(thread, e.i32(CHUNK / 4)), e.i32(i));
            e.if_then(mine, || {
                let key = e.add(first, e.shl(unit, 2));
                let group = e.shr(unit, 2);
                let place_of = Place { group, known: None, within: unit };
                let entry = e.cast(self.pick(entries, place_of), Elem::I64);
                let at = cx.offset(cx.scale(entry, &view.strides[0]), tile.head, &view.strides[1]);
                let from = e.at(view.base, Elem::F32, e.add(at, slot(key)));
                let to = e.add_const(to, self.scales_of_stage());
                self.copy(e.add(to, e.shl(thread, 4)), from, e.cmp(Cmp::Lt, key, keys));
            });
        }
    }

    const fn scales_of_stage(&self) -> i64 {
        CHUNK * (padded(self.sizes.key) + padded(self.sizes.value))
    }

    /// Scales of keys `key` and the next one of the chunk in a stage.
    pub(in super::super) fn scales(&self, which: Scales, stage: Val, key: Val) -> [Val; 2] {
        let e = &self.cx.e;
        let first = match which {
            Scales::OfKeys => 0,
            Scales::OfValues => 4 * CHUNK,
        };
        let at = e.add_const(e.add(self.shared, stage), self.scales_of_stage() + first);
        let at = e.add(at, e.shl(key, 2));
        let ty = Ty::Scalar(Elem::F32);
        let both = e.ptx_values("ld.shared.v2.f32 {$0, $1}, [$2];", &[ty; 2], &[at]);
        [both[0], both[1]]
    }

    /// Makes operands of the keys in a stage.
    pub(in super::super) fn widen_keys(&self, stage: Val) {
        let e = &self.cx.e;
        let Some(quantized) = &self.quantized else { return };
        let from = e.add(self.shared, stage);
        self.share(padded(self.sizes.key), |(thread, behind), _| {
            let unit = e.add_const(thread, behind);
            let words = self.words(e.add(from, e.shl(unit, 4)));
            for half in 0..2 {
                let at = e.add(quantized.work, place(e, unit, e.i32(half), 2));
                self.put(at, &words[4 * usize::try_from(half).expect("two")..][..4]);
            }
        });
    }

    /// Makes operands of the values in a stage.
    pub(in super::super) fn widen_values(&self, stage: Val) {
        let e = &self.cx.e;
        let Some(quantized) = &self.quantized else { return };
        let from = e.add_const(e.add(self.shared, stage), self.values_of_stage());
        let to = e.add_const(quantized.work, self.key_bytes());
        let units = padded(self.sizes.value) / 16;
        self.share(GROUP * units, |(thread, behind), _| {
            let index = e.add_const(thread, behind);
            let words = self.words(e.add(from, e.shl(index, 4)));
            let (row, unit) =
                (e.div_unsigned(index, e.i32(units)), e.rem_unsigned(index, e.i32(units)));
            // Lanes four apart write to other banks first.
            let turn = e.and(e.shr(unit, 2), e.i32(1));
            let turned = e.cmp(Cmp::Ne, turn, e.i32(0));
            for half in 0..2 {
                let target = e.add(e.shl(unit, 1), e.xor(turn, e.i32(half)));
                let at = e.add(to, place(e, row, target, 2 * units));
                let half = usize::try_from(half).expect("two");
                let (these, those) = (&words[4 * half..][..4], &words[4 - 4 * half..][..4]);
                let pairs = these.iter().zip(those);
                let words = pairs.map(|(these, those)| e.select(turned, *those, *these));
                self.put(at, &words.collect::<Vec<Val>>());
            }
        });
    }

    fn put(&self, at: Val, words: &[Val]) {
        let operands: Vec<Val> = [at].into_iter().chain(words.iter().copied()).collect();
        self.cx.e.ptx("st.shared.v4.b32 [$0], {$1, $2, $3, $4};", &operands);
    }

    /// Sixteen codes as eight words of bf16.
    ///
    /// Of integers, bf16 holds seven bits below 128: the eighth, the sign, is what the subtracted
    /// 128 or 256 is. A number of e4m3 has its bits where those of bf16 are when it is shifted, but
    /// for the sign, which is all of a second byte, and exponents that are smaller by 120.
    fn words(&self, at: Val) -> Vec<Val> {
        let e = &self.cx.e;
        let text = "ld.shared.v4.b32 {$0, $1, $2, $3}, [$4];";
        let raw = e.ptx_values(text, &[WORD; 4], &[at]);
        let word = |bits: u32| e.i32(bits.cast_signed().into());
        let logic = |a: Val, b: u32, c: u32| {
            let text = format!("lop3.b32 $0, $1, $2, $3, {AND_OR};");
            e.ptx_pure(&text, &[WORD], &[a, word(b), word(c)])[0]
        };
        let fma =
            |operands: [Val; 3]| e.ptx_pure("fma.rn.bf16x2 $0, $1, $2, $3;", &[WORD], &operands)[0];
        let floats = self.dtype() == DType::F8E4M3;
        let pair = |raw: Val, bytes: [&str; 2]| {
            let text = format!("prmt.b32 $0, $1, 0, {};", bytes[usize::from(floats)]);
            let both = e.ptx_pure(&text, &[WORD], &[raw])[0];
            if floats {
                let small = e.and(e.shl(both, 4), word(0x87f0_87f0));
                return fma([small, word(RAISE), word(NOTHING)]);
            }
            let raised = logic(both, 0x007f_007f, 0x4300_4300);
            let less = logic(both, 0x0080_0080, 0x4300_4300);
            fma([less, word(0xbf80_bf80), raised])
        };
        let halves =
            |raw: &Val| [pair(*raw, ["0x4140", "0x9180"]), pair(*raw, ["0x4342", "0xb3a2"])];
        raw.iter().flat_map(halves).collect()
    }
}
