//! Element by element reductions in the order of ranks.
//!
//! Ranks are folded one after the other, from the first to the last, whatever comes in first. bf16
//! and f16 are widened once, folded in f32 and rounded once. So an element depends on nothing but
//! the ranks' values of it: not on the transport, the shards or the chunks.

use half::{f16, slice::HalfBitsSliceExt, slice::HalfFloatSliceExt};
use ir::DType;

/// What becomes of the ranks' values of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// The sum; integers wrap.
    Sum,
    /// The largest value; NaN if any is NaN, and of equal ones the first.
    Max,
    /// The smallest value; NaN if any is NaN, and of equal ones the first.
    Min,
    /// 1 if no value is 0, else 0; of integers and booleans.
    And,
    /// 0 if all values are 0, else 1; of integers and booleans.
    Or,
}

impl Reduce {
    pub(super) const ALL: [Reduce; 5] =
        [Reduce::Sum, Reduce::Max, Reduce::Min, Reduce::And, Reduce::Or];

    pub(super) fn name(self) -> &'static str {
        match self {
            Reduce::Sum => "sum",
            Reduce::Max => "max",
            Reduce::Min => "min",
            Reduce::And => "and",
            Reduce::Or => "or",
        }
    }

    /// Why a type cannot be reduced so, if it cannot.
    pub(super) fn refuses(self, dtype: DType) -> Option<String> {
        let is_known = match dtype {
            DType::F64 | DType::F32 | DType::Bf16 | DType::F16 => {
                matches!(self, Reduce::Sum | Reduce::Max | Reduce::Min)
            }
            DType::I64 | DType::I32 | DType::U8 => true,
            DType::Bool => self != Reduce::Sum,
            _ => false,
        };
        (!is_known).then(|| format!("there is no {} of {}", self.name(), dtype.name()))
    }
}

/// The fold of one chunk.
pub(super) struct Fold {
    reduce: Reduce,
    wide: Wide,
}

/// The values so far.
enum Wide {
    F64(Vec<f64>),
    F32(Vec<f32>),
    Bf16(Vec<f32>),
    /// The values, and room to widen a chunk.
    F16(Vec<f32>, Vec<u16>, Vec<f32>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    U8(Vec<u8>),
}

impl Fold {
    /// For a pair that [`Reduce::refuses`] does not.
    pub(super) fn new(reduce: Reduce, dtype: DType) -> Fold {
        let wide = match dtype {
            DType::F64 => Wide::F64(Vec::new()),
            DType::F32 => Wide::F32(Vec::new()),
            DType::Bf16 => Wide::Bf16(Vec::new()),
            DType::F16 => Wide::F16(Vec::new(), Vec::new(), Vec::new()),
            DType::I64 => Wide::I64(Vec::new()),
            DType::I32 => Wide::I32(Vec::new()),
            _ => Wide::U8(Vec::new()),
        };
        Fold { reduce, wide }
    }

    /// Begins a chunk with the first rank's values.
    pub(super) fn first(&mut self, bytes: &[u8]) {
        let is_logical = matches!(self.reduce, Reduce::And | Reduce::Or);
        match &mut self.wide {
            Wide::F64(wide) => start(wide, bytes, f64::from_ne_bytes),
            Wide::F32(wide) => start(wide, bytes, f32::from_ne_bytes),
            Wide::Bf16(wide) => start(wide, bytes, widen_bf16),
            Wide::F16(wide, narrow, _) => widen_f16(bytes, narrow, wide),
            Wide::I64(wide) if is_logical => {
                start(wide, bytes, |b| i64::from(i64::from_ne_bytes(b) != 0));
            }
            Wide::I64(wide) => start(wide, bytes, i64::from_ne_bytes),
            Wide::I32(wide) if is_logical => {
                start(wide, bytes, |b| i32::from(i32::from_ne_bytes(b) != 0));
            }
            Wide::I32(wide) => start(wide, bytes, i32::from_ne_bytes),
            Wide::U8(wide) if is_logical => start(wide, bytes, |[b]: [u8; 1]| u8::from(b != 0)),
            Wide::U8(wide) => start(wide, bytes, |[b]: [u8; 1]| b),
        }
    }

    /// Takes in the next rank's values of the same chunk.
    pub(super) fn next(&mut self, bytes: &[u8]) {
        let reduce = self.reduce;
        match &mut self.wide {
            Wide::F64(wide) => fold_floats(reduce, wide, bytes, f64::from_ne_bytes),
            Wide::F32(wide) => fold_floats(reduce, wide, bytes, f32::from_ne_bytes),
            Wide::Bf16(wide) => fold_floats(reduce, wide, bytes, widen_bf16),
            Wide::F16(wide, narrow, room) => {
                widen_f16(bytes, narrow, room);
                let room = bytemuck::cast_slice(room.as_slice());
                fold_floats(reduce, wide, room, f32::from_ne_bytes);
            }
            Wide::I64(wide) => {
                fold_ints(reduce, wide, bytes, i64::from_ne_bytes, i64::wrapping_add);
            }
            Wide::I32(wide) => {
                fold_ints(reduce, wide, bytes, i32::from_ne_bytes, i32::wrapping_add);
            }
            Wide::U8(wide) => fold_ints(reduce, wide, bytes, |[b]: [u8; 1]| b, u8::wrapping_add),
        }
    }

    /// Writes the result, which is as long as the chunk.
    pub(super) fn write(&mut self, out: &mut [u8]) {
        match &mut self.wide {
            Wide::F64(wide) => store(wide, out, f64::to_ne_bytes),
            Wide::F32(wide) => store(wide, out, f32::to_ne_bytes),
            Wide::Bf16(wide) => store(wide, out, narrow_bf16),
            Wide::F16(wide, narrow, _) => {
                narrow.resize(wide.len(), 0);
                narrow.reinterpret_cast_mut::<f16>().convert_from_f32_slice(wide);
                store(narrow, out, u16::to_ne_bytes);
            }
            Wide::I64(wide) => store(wide, out, i64::to_ne_bytes),
            Wide::I32(wide) => store(wide, out, i32::to_ne_bytes),
            Wide::U8(wide) => out.copy_from_slice(wide),
        }
    }
}

fn start<W: Copy, const N: usize>(wide: &mut Vec<W>, bytes: &[u8], load: impl Fn([u8; N]) -> W) {
    wide.clear();
    wide.extend(bytes.as_chunks::<N>().0.iter().map(|&b| load(b)));
}

fn fold<W: Copy, const N: usize>(
    wide: &mut [W],
    bytes: &[u8],
    load: impl Fn([u8; N]) -> W,
    combine: impl Fn(W, W) -> W,
) {
    for (value, &next) in wide.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = combine(*value, load(next));
    }
}

fn fold_floats<W, const N: usize>(
    reduce: Reduce,
    wide: &mut [W],
    bytes: &[u8],
    load: impl Fn([u8; N]) -> W,
) where
    W: Copy + PartialOrd + std::ops::Add<Output = W>,
{
    // What differs from itself is NaN.
    #[allow(clippy::eq_op, reason = "the test for NaN that works for both widths")]
    let is_nan = |x: W| x != x;
    match reduce {
        Reduce::Max => {
            fold(wide, bytes, load, |a, b| if b > a || is_nan(b) { b } else { a });
        }
        Reduce::Min => {
            fold(wide, bytes, load, |a, b| if b < a || is_nan(b) { b } else { a });
        }
        _ => fold(wide, bytes, load, |a, b| a + b),
    }
}

fn fold_ints<W: Copy + Ord + From<bool>, const N: usize>(
    reduce: Reduce,
    wide: &mut [W],
    bytes: &[u8],
    load: impl Fn([u8; N]) -> W,
    add: impl Fn(W, W) -> W,
) {
    let [zero, one] = [W::from(false), W::from(true)];
    match reduce {
        Reduce::Sum => fold(wide, bytes, load, add),
        Reduce::Max => fold(wide, bytes, load, W::max),
        Reduce::Min => fold(wide, bytes, load, W::min),
        Reduce::And => fold(wide, bytes, load, |a, b| if b == zero { zero } else { a }),
        Reduce::Or => fold(wide, bytes, load, |a, b| if b == zero { a } else { one }),
    }
}

fn store<W: Copy, const N: usize>(wide: &[W], out: &mut [u8], narrow: impl Fn(W) -> [u8; N]) {
    for (out, &value) in out.as_chunks_mut::<N>().0.iter_mut().zip(wide) {
        *out = narrow(value);
    }
}

fn widen_bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_ne_bytes(bytes)) << 16)
}

/// To nearest, ties to even; written so that it becomes vector code.
#[allow(clippy::cast_possible_truncation, reason = "the upper half is what is wanted")]
fn narrow_bf16(value: f32) -> [u8; 2] {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if value.is_nan() { quiet as u16 } else { rounded as u16 }).to_ne_bytes()
}

fn widen_f16(bytes: &[u8], narrow: &mut Vec<u16>, wide: &mut Vec<f32>) {
    start(narrow, bytes, u16::from_ne_bytes);
    wide.resize(narrow.len(), 0.0);
    narrow.reinterpret_cast::<f16>().convert_to_f32_slice(wide);
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn folded(reduce: Reduce, dtype: DType, ranks: &[&[u8]]) -> Vec<u8> {
        let mut fold = Fold::new(reduce, dtype);
        fold.first(ranks[0]);
        ranks[1..].iter().for_each(|bytes| fold.next(bytes));
        let mut out = vec![0; ranks[0].len()];
        fold.write(&mut out);
        out
    }

    #[test]
    fn bf16_rounds_as_half_does() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let expected = bf16::from_f32(value).to_bits();
                assert_eq!(u16::from_ne_bytes(narrow_bf16(value)), expected, "{value:e}");
            }
        }
    }

    #[test]
    fn halves_are_summed_in_f32_and_rounded_once() {
        let halves = |values: &[f32]| -> Vec<u8> {
            values.iter().flat_map(|&v| bf16::from_f32(v).to_ne_bytes()).collect()
        };
        // In bf16, 256 + 1 is 256; in f32 the ones add up.
        let ranks = [halves(&[256.0]), halves(&[1.0]), halves(&[1.0])];
        let ranks: Vec<&[u8]> = ranks.iter().map(Vec::as_slice).collect();
        assert_eq!(folded(Reduce::Sum, DType::Bf16, &ranks), halves(&[258.0]));
        let halves = |v: f32| f16::from_f32(v).to_ne_bytes().to_vec();
        let ranks = [halves(2048.0), halves(1.0), halves(1.0)];
        let ranks: Vec<&[u8]> = ranks.iter().map(Vec::as_slice).collect();
        assert_eq!(folded(Reduce::Sum, DType::F16, &ranks), halves(2050.0));
    }

    #[test]
    fn a_nan_wins_wherever_it_is() {
        let bytes = |v: f32| v.to_ne_bytes();
        for reduce in [Reduce::Max, Reduce::Min, Reduce::Sum] {
            for at in 0..3 {
                let ranks: Vec<[u8; 4]> =
                    (0..3).map(|i| bytes(if i == at { f32::NAN } else { 1.0 })).collect();
                let ranks: Vec<&[u8]> = ranks.iter().map(<[u8; 4]>::as_slice).collect();
                let out = folded(reduce, DType::F32, &ranks);
                assert!(f32::from_ne_bytes(out.try_into().unwrap()).is_nan());
            }
        }
    }

    #[test]
    fn logic_gives_zero_or_one() {
        let ranks: [&[u8]; 2] = [&[0, 0, 7, 7], &[0, 9, 0, 9]];
        assert_eq!(folded(Reduce::And, DType::U8, &ranks), [0, 0, 0, 1]);
        assert_eq!(folded(Reduce::Or, DType::U8, &ranks), [0, 1, 1, 1]);
        assert_eq!(folded(Reduce::And, DType::U8, &ranks[..1]), [0, 0, 1, 1]);
    }

    #[test]
    fn integers_wrap() {
        let (most, one) = (i32::MAX.to_ne_bytes(), 1i32.to_ne_bytes());
        let sum = folded(Reduce::Sum, DType::I32, &[&most, &one]);
        assert_eq!(sum, i32::MIN.to_ne_bytes());
    }

    #[test]
    fn what_has_no_meaning_is_refused() {
        assert!(Reduce::And.refuses(DType::F32).unwrap().contains("no and of f32"));
        assert!(Reduce::Sum.refuses(DType::F8E4M3).is_some());
        assert!(Reduce::Sum.refuses(DType::Bool).is_some());
        assert!(Reduce::Max.refuses(DType::Bf16).is_none());
    }
}
