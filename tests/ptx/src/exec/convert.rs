//! `cvt`.

use super::float::flush;
use super::warp::lanes;
use super::{At, Machine, Run};
use crate::fault::{Blame, operand};
use crate::mods::{Mod, Mods};
use crate::module::{Arg, Inst};
use crate::numeric::{Rounding, integer_odd, narrow, widen};
use crate::ty::Ty;

impl Machine<'_> {
    pub(super) fn convert(&mut self, at: At, mask: u32, inst: &Inst) -> Run {
        let [to, from] = inst.ty[..] else { return operand("cvt needs two types") };
        let mods = inst.mods;
        for lane in lanes(mask) {
            let first = self.source(at, lane, inst, 1)?;
            let result = match (to.half(), from.half()) {
                // The first operand goes to the upper half.
                (Some(half), None) => {
                    let second = self.source(at, lane, inst, 2)?;
                    let high = convert(first, from, half, mods).lane(lane)?;
                    high << half.bits() | convert(second, from, half, mods).lane(lane)?
                }
                (Some(to), Some(from)) => {
                    let low = convert(first, from, to, mods).lane(lane)?;
                    convert(first >> from.bits(), from, to, mods).lane(lane)? << to.bits() | low
                }
                (None, Some(_)) => return operand("cvt of a pair gives a pair").lane(lane),
                (None, None) => {
                    let result = convert(first, from, to, mods).lane(lane)?;
                    // A narrow result in a wide register is extended by its sign.
                    if to.is_signed() { to.extend(result) as u64 } else { result }
                }
            };
            let to: &Arg = self.arg(inst, 0)?;
            self.set(at, lane, to, result)?;
        }
        Ok(())
    }
}

fn convert(bits: u64, from: Ty, to: Ty, mods: Mods) -> Run<u64> {
    let bits = from.truncate(bits);
    let bits = if mods.has(Mod::Ftz) && from.is_float() { flush(bits, from) } else { bits };
    match (from.is_float(), to.is_float()) {
        (false, false) => {
            let value = from.extend(bits);
            let value = if mods.has(Mod::Sat) { clamp(value, to) } else { value };
            Ok(to.truncate(value as u64))
        }
        (false, true) => finish(integer_odd(from.extend(bits)), to, mods),
        (true, false) => {
            let value = widen(bits, from);
            let Some(value) = to_integer(value, mods) else {
                return operand("cvt from a float to an integer needs a rounding");
            };
            // Too large values are clamped, NaN becomes zero.
            Ok(to.truncate(clamp(value as i128, to) as u64))
        }
        (true, true) => {
            let value = widen(bits, from);
            finish(to_integer(value, mods).unwrap_or(value), to, mods)
        }
    }
}

/// Rounds to an integer, if the qualifiers say how.
fn to_integer(value: f64, mods: Mods) -> Option<f64> {
    Some(match mods.which(&[Mod::Rni, Mod::Rzi, Mod::Rmi, Mod::Rpi])? {
        Mod::Rni => value.round_ties_even(),
        Mod::Rzi => value.trunc(),
        Mod::Rmi => value.floor(),
        _ => value.ceil(),
    })
}

fn finish(value: f64, to: Ty, mods: Mods) -> Run<u64> {
    // The conversions to eight bits are defined with saturation only.
    let saturate = mods.has(Mod::Satfinite) || to.bits() == 8;
    let value = match value {
        value if mods.has(Mod::Sat) => {
            if value > 0.0 {
                value.min(1.0)
            } else {
                0.0
            }
        }
        value if mods.has(Mod::Relu) && value <= 0.0 => 0.0,
        value => value,
    };
    let result = narrow(value, to, Rounding::of(mods), saturate);
    Ok(if mods.has(Mod::Ftz) { flush(result, to) } else { result })
}

fn clamp(value: i128, to: Ty) -> i128 {
    let bits = to.bits();
    if to.is_signed() {
        value.clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        value.clamp(0, (1 << bits) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cvt(bits: u64, from: Ty, to: Ty, mods: &[Mod]) -> u64 {
        let mut set = Mods::default();
        mods.iter().for_each(|item| set.insert(*item));
        convert(bits, from, to, set).unwrap()
    }

    fn single(value: f32) -> u64 {
        value.to_bits().into()
    }

    #[test]
    fn floats_to_integers_clamp_and_round() {
        let to_s32 = |value, mode| cvt(single(value), Ty::F32, Ty::S32, &[mode]) as i32;
        assert_eq!(to_s32(2.5, Mod::Rni), 2);
        assert_eq!(to_s32(-2.5, Mod::Rzi), -2);
        assert_eq!(to_s32(-2.5, Mod::Rmi), -3);
        assert_eq!(to_s32(2.1, Mod::Rpi), 3);
        assert_eq!(to_s32(1e20, Mod::Rzi), i32::MAX);
        assert_eq!(to_s32(f32::NAN, Mod::Rzi), 0);
        assert_eq!(cvt(single(-3.0), Ty::F32, Ty::U32, &[Mod::Rzi]), 0);
        assert_eq!(cvt(single(300.0), Ty::F32, Ty::S8, &[Mod::Rni]), 127);
    }

    #[test]
    fn integers_round_once() {
        for value in [u64::MAX, u64::MAX - 1023, (1 << 53) + 1, 0x8000_0080_0000_0001] {
            let found = cvt(value, Ty::U64, Ty::F32, &[Mod::Rn]);
            assert_eq!(found as u32, (value as f32).to_bits());
            let found = cvt(value, Ty::S64, Ty::F32, &[Mod::Rn]);
            assert_eq!(found as u32, (value as i64 as f32).to_bits());
        }
        assert_eq!(cvt(0xffff_ffff, Ty::S32, Ty::S64, &[]), u64::MAX);
        assert_eq!(cvt(0x1ff, Ty::S32, Ty::S8, &[Mod::Sat]), 0x7f);
        assert_eq!(cvt(0x1ff, Ty::S32, Ty::U8, &[]), 0xff);
    }

    #[test]
    fn tf32_rounds_away_and_keeps_ten_bits() {
        let tie = f32::from_bits(0x3f80_1000);
        assert_eq!(cvt(single(tie), Ty::F32, Ty::Tf32, &[Mod::Rna]), 0x3f80_2000);
    }

    #[test]
    fn relu_and_saturation_of_halves() {
        assert_eq!(cvt(single(-1.0), Ty::F32, Ty::F16, &[Mod::Rn, Mod::Relu]), 0);
        assert_eq!(cvt(single(1e6), Ty::F32, Ty::F16, &[Mod::Rn, Mod::Satfinite]), 0x7bff);
        assert_eq!(cvt(single(1e6), Ty::F32, Ty::F16, &[Mod::Rn]), 0x7c00);
        assert_eq!(cvt(single(500.0), Ty::F32, Ty::E4m3, &[Mod::Rn, Mod::Satfinite]), 0x7e);
    }
}
