//! Floating-point formats: exact widening to f64, and narrowing with one rounding.
//!
//! A result that f64 cannot hold exactly is first rounded to odd (Boldo & Melquiond 2008,
//! doi:10.1109/TC.2007.70819), after which narrowing to a format with at most 51 bits gives the
//! correctly rounded value in every mode.

use crate::mods::{Mod, Mods};
use crate::ty::Ty;

/// How a result is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// To nearest, ties to even.
    Nearest,
    /// To nearest, ties away from zero.
    Away,
    Zero,
    Down,
    Up,
}

impl Rounding {
    /// The mode that the qualifiers name; to nearest if they name none.
    pub(crate) fn of(mods: Mods) -> Rounding {
        match mods.which(&[Mod::Rz, Mod::Rm, Mod::Rp, Mod::Rna]) {
            Some(Mod::Rz) => Rounding::Zero,
            Some(Mod::Rm) => Rounding::Down,
            Some(Mod::Rp) => Rounding::Up,
            Some(Mod::Rna) => Rounding::Away,
            _ => Rounding::Nearest,
        }
    }
}

/// Exponent bits, significand bits, and the bits of the largest finite value and of the NaN.
struct Format {
    exponent: u32,
    significand: u32,
    largest: u64,
    infinity: u64,
    nan: u64,
}

fn format(ty: Ty) -> Format {
    let (exponent, significand, largest, infinity, nan) = match ty {
        Ty::F16 | Ty::F16x2 => (5, 10, 0x7bff, 0x7c00, 0x7fff),
        Ty::Bf16 | Ty::Bf16x2 => (8, 7, 0x7f7f, 0x7f80, 0x7fff),
        Ty::Tf32 => (8, 10, 0x3_fbff, 0x3_fc00, 0x3_ffff),
        Ty::E5m2 | Ty::E5m2x2 => (5, 2, 0x7b, 0x7c, 0x7f),
        // E4M3 has no infinity: what overflows becomes NaN.
        Ty::E4m3 | Ty::E4m3x2 => (4, 3, 0x7e, 0x7f, 0x7f),
        _ => (8, 23, 0x7f7f_ffff, 0x7f80_0000, 0x7fff_ffff),
    };
    Format { exponent, significand, largest, infinity, nan }
}

/// The value that the low bits of `bits` hold.
pub(crate) fn widen(bits: u64, ty: Ty) -> f64 {
    match ty {
        Ty::F64 => return f64::from_bits(bits),
        Ty::F32 => return f64::from(f32::from_bits(bits as u32)),
        Ty::Bf16 => return f64::from(f32::from_bits((bits as u32) << 16)),
        // A tf32 is an f32 whose low 13 bits do not count.
        Ty::Tf32 => return f64::from(f32::from_bits(bits as u32 & !0x1fff)),
        _ => {}
    }
    let Format { exponent, significand, largest, infinity, .. } = format(ty);
    let magnitude = bits & ((1 << (exponent + significand)) - 1);
    let value = if magnitude > largest {
        if magnitude == infinity && infinity != 0x7f { f64::INFINITY } else { f64::NAN }
    } else {
        let bias = (1 << (exponent - 1)) - 1;
        let field = (magnitude >> significand) as i32;
        let fraction = (magnitude & ((1 << significand) - 1)) as f64;
        let scale = |power: i32| f64::from_bits(((power + 1023) as u64) << 52);
        if field == 0 {
            fraction * scale(1 - bias - significand as i32)
        } else {
            (fraction + scale(significand as i32)) * scale(field - bias - significand as i32)
        }
    };
    if bits >> (exponent + significand) & 1 != 0 { -value } else { value }
}

/// The bits of the value of `ty` that `value` rounds to. With `saturate`, what is too large becomes
/// the largest finite value.
pub(crate) fn narrow(value: f64, ty: Ty, rounding: Rounding, saturate: bool) -> u64 {
    if ty == Ty::F64 {
        return value.to_bits();
    }
    let Format { exponent, significand, largest, infinity, nan } = format(ty);
    let sign = u64::from(value.is_sign_negative()) << (exponent + significand);
    let tf32 = |bits: u64| if ty == Ty::Tf32 { bits << 13 } else { bits };
    if value.is_nan() {
        return tf32(nan);
    }
    let negative = value.is_sign_negative();
    let overflow = {
        let to_largest = match rounding {
            Rounding::Zero => true,
            Rounding::Down => !negative,
            Rounding::Up => negative,
            Rounding::Nearest | Rounding::Away => false,
        };
        if saturate || (to_largest && value.is_finite()) { largest } else { infinity }
    };
    if value.is_infinite() {
        return tf32(sign | overflow);
    }
    let bits = value.to_bits() & (u64::MAX >> 1);
    let (field, mut mantissa) = ((bits >> 52) as i32, bits & ((1 << 52) - 1));
    if field != 0 {
        mantissa |= 1 << 52;
    }
    let power = field.max(1) - 1023;
    let least = 1 - ((1 << (exponent - 1)) - 1);
    let drop = (52 - significand as i32 + (least - power).max(0)).min(63) as u32;
    let (mut kept, lost) = (mantissa >> drop, mantissa & ((1 << drop) - 1));
    let half = 1u64 << (drop - 1);
    kept += u64::from(match rounding {
        Rounding::Nearest => lost > half || (lost == half && kept & 1 != 0),
        Rounding::Away => lost >= half,
        Rounding::Zero => false,
        Rounding::Down => negative && lost > 0,
        Rounding::Up => !negative && lost > 0,
    });
    let magnitude = kept + (((power - least).max(0) as u64) << significand);
    tf32(sign | if magnitude > largest { overflow } else { magnitude })
}

/// `a + b` as a rounded sum and its exact error (Knuth's two-sum).
pub(crate) fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let virtual_b = sum - a;
    (sum, (a - (sum - virtual_b)) + (b - virtual_b))
}

/// Rounds `sum + error` to odd, where `sum` is its nearest f64.
pub(crate) fn to_odd(sum: f64, error: f64) -> f64 {
    if error == 0.0 || !sum.is_finite() || error.is_nan() {
        return sum;
    }
    let toward_zero = (error < 0.0) != (sum < 0.0);
    f64::from_bits((sum.to_bits() - u64::from(toward_zero)) | 1)
}

/// `a * b + c`, rounded to odd, for operands of at most 24 significant bits.
pub(crate) fn fma_odd(a: f64, b: f64, c: f64) -> f64 {
    let (sum, error) = two_sum(a * b, c);
    to_odd(sum, error)
}

/// An integer, rounded to odd.
pub(crate) fn integer_odd(value: i128) -> f64 {
    let nearest = value as f64;
    to_odd(nearest, (value - nearest as i128) as f64)
}

/// Whether the bits are a subnormal value.
pub(crate) fn is_subnormal(bits: u64, ty: Ty) -> bool {
    let (exponent, significand) = match ty {
        Ty::F64 => (11, 52),
        _ => {
            let format = format(ty);
            (format.exponent, format.significand)
        }
    };
    bits & ((1 << significand) - 1) != 0 && (bits >> significand) & ((1 << exponent) - 1) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    const NEAREST: Rounding = Rounding::Nearest;

    #[test]
    fn every_half_survives_a_round_trip() {
        for bits in 0..=u16::MAX {
            let wide = widen(bits.into(), Ty::F16);
            let expected = f16::from_bits(bits).to_f64();
            assert!(wide == expected || (wide.is_nan() && expected.is_nan()), "{bits:#x}");
            if !wide.is_nan() {
                assert_eq!(narrow(wide, Ty::F16, NEAREST, false), bits.into());
            }
            let wide = widen(bits.into(), Ty::Bf16);
            if !wide.is_nan() {
                assert_eq!(narrow(wide, Ty::Bf16, NEAREST, false), bits.into());
            }
        }
        for bits in 0..=0xffu64 {
            for ty in [Ty::E4m3, Ty::E5m2] {
                let wide = widen(bits, ty);
                if !wide.is_nan() {
                    assert_eq!(narrow(wide, ty, NEAREST, false), bits, "{ty:?}");
                }
            }
        }
    }

    #[test]
    fn narrowing_agrees_with_half_and_with_the_hardware() {
        let mut state = 1u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let single = f32::from_bits((state >> 32) as u32);
            if single.is_nan() {
                continue;
            }
            let wide = f64::from(single);
            assert_eq!(
                narrow(wide, Ty::F16, NEAREST, false) as u16,
                f16::from_f32(single).to_bits()
            );
            let expected = bf16::from_f32(single).to_bits();
            assert_eq!(narrow(wide, Ty::Bf16, NEAREST, false) as u16, expected);
            let double = f64::from_bits(state);
            if !double.is_nan() {
                assert_eq!(
                    narrow(double, Ty::F32, NEAREST, false) as u32,
                    (double as f32).to_bits()
                );
            }
        }
    }

    #[test]
    fn directed_modes_bracket_the_value() {
        let third = 1.0 / 3.0;
        let down = widen(narrow(third, Ty::F32, Rounding::Down, false), Ty::F32);
        let up = widen(narrow(third, Ty::F32, Rounding::Up, false), Ty::F32);
        assert!(down < third && third < up);
        assert_eq!(narrow(-third, Ty::F32, Rounding::Zero, false) as u32, (-down as f32).to_bits());
        assert_eq!(narrow(1e30, Ty::F16, Rounding::Zero, false), 0x7bff);
        assert_eq!(narrow(1e30, Ty::F16, Rounding::Up, false), 0x7c00);
    }

    #[test]
    fn fused_multiply_add_rounds_once() {
        let mut state = 7u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            f32::from_bits(0x3f00_0000 | (state >> 40) as u32 & 0x80ff_ffff)
        };
        for _ in 0..100_000 {
            let (a, b, c) = (draw(), draw(), draw());
            let odd = fma_odd(a.into(), b.into(), c.into());
            assert_eq!(narrow(odd, Ty::F32, NEAREST, false) as u32, a.mul_add(b, c).to_bits());
        }
    }

    #[test]
    fn e4m3_has_no_infinity() {
        assert_eq!(narrow(448.0, Ty::E4m3, NEAREST, true), 0x7e);
        assert_eq!(narrow(1e6, Ty::E4m3, NEAREST, true), 0x7e);
        assert_eq!(narrow(1e6, Ty::E4m3, NEAREST, false), 0x7f);
        assert_eq!(widen(0x7e, Ty::E4m3), 448.0);
        assert_eq!(widen(0x01, Ty::E4m3), 0.001_953_125);
    }
}
