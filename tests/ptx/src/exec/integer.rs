//! Integer arithmetic, and comparisons of all types.

use super::float::flush;
use super::warp::lanes;
use super::{At, Machine, Run};
use crate::fault::{Blame, operand};
use crate::mods::{Mod, Mods};
use crate::module::{Arg, Inst};
use crate::numeric::widen;
use crate::ops::Op;
use crate::ty::Ty;

impl Machine<'_> {
    pub(super) fn integer(&mut self, at: At, mask: u32, inst: &Inst) -> Run {
        let (ty, op, mods) = (inst.ty(), inst.op, inst.mods);
        let second = inst.ty.get(1).copied().unwrap_or(ty);
        if let Some(half) = ty.half() {
            return self.map(at, mask, inst, |[a, b, ..]| {
                let each = |shift: u32| {
                    let (x, y) = (half.extend(a >> shift), half.extend(b >> shift));
                    let result = match op {
                        Op::Add => x + y,
                        Op::Min => x.min(y),
                        Op::Max => x.max(y),
                        _ => return operand("no instruction on pairs of integers"),
                    };
                    Ok(half.truncate(result as u64) << shift)
                };
                Ok(each(0)? | each(16)?)
            });
        }
        self.map(at, mask, inst, |[a, b, c, _]| {
            let (x, y) = (ty.extend(a), ty.extend(b));
            let saturate = |value: i128| {
                let clamped = value.clamp(i32::MIN.into(), i32::MAX.into());
                if mods.has(Mod::Sat) { clamped } else { value }
            };
            let product = || {
                // The full product of unsigned 64-bit values needs all of 128 bits.
                let product = x.wrapping_mul(y);
                match mods.has(Mod::Hi) {
                    true if ty.is_signed() => product >> ty.bits(),
                    true => (product as u128 >> ty.bits()) as i128,
                    false => product,
                }
            };
            let result = match op {
                Op::Add => saturate(x + y),
                Op::Sub => saturate(x - y),
                // A wide result has twice the bits: do not cut it.
                Op::Mul if mods.has(Mod::Wide) => return Ok(product() as u64),
                Op::Mul => product(),
                Op::Mad if mods.has(Mod::Wide) => {
                    return Ok((product() as u64).wrapping_add(c));
                }
                Op::Mad => saturate(product().wrapping_add(ty.extend(c))),
                Op::Div | Op::Rem if y == 0 => return operand("division by zero"),
                Op::Div => x / y,
                Op::Rem => x % y,
                Op::Min => x.min(y),
                Op::Max => x.max(y),
                Op::Abs => x.abs(),
                Op::Neg => -x,
                Op::Sad => ty.extend(c) + (x - y).abs(),
                Op::Dp4a => {
                    let byte = |ty: Ty, value: u64, index: u32| {
                        let byte = value >> (8 * index);
                        if ty.is_signed() { Ty::S8.extend(byte) } else { Ty::U8.extend(byte) }
                    };
                    let products = (0..4).map(|index| byte(ty, a, index) * byte(second, b, index));
                    i128::from(c as u32) + products.sum::<i128>()
                }
                Op::Dp2a => {
                    let word = |index: u32| {
                        let word = a >> (16 * index);
                        if ty.is_signed() { Ty::S16.extend(word) } else { Ty::U16.extend(word) }
                    };
                    let high = u32::from(mods.has(Mod::Hi)) * 2;
                    let byte = |index: u32| {
                        let byte = b >> (8 * (index + high));
                        if second.is_signed() { Ty::S8.extend(byte) } else { Ty::U8.extend(byte) }
                    };
                    i128::from(c as u32) + word(0) * byte(0) + word(1) * byte(1)
                }
                _ => return operand("no integer instruction"),
            };
            Ok(ty.truncate(result as u64))
        })
    }

    pub(super) fn compare(&mut self, at: At, mask: u32, inst: &Inst) -> Run {
        let ty = if inst.op == Op::Set { inst.ty.get(1) } else { inst.ty.first() };
        let ty = ty.copied().unwrap_or(Ty::B32);
        let combine = inst.mods.which(&[Mod::And, Mod::Or, Mod::Xor]);
        for lane in lanes(mask) {
            let (a, b) = (self.source(at, lane, inst, 1)?, self.source(at, lane, inst, 2)?);
            let third = match combine {
                Some(_) => Some(self.source(at, lane, inst, 3)? & 1 != 0),
                None => None,
            };
            let joined = |holds: bool| match (combine, third) {
                (Some(Mod::And), Some(third)) => holds & third,
                (Some(Mod::Or), Some(third)) => holds | third,
                (Some(_), Some(third)) => holds ^ third,
                _ => holds,
            };
            if let Some(half) = ty.half() {
                let low = joined(compare(a, b, half, inst.mods).lane(lane)?);
                let high = joined(compare(a >> 16, b >> 16, half, inst.mods).lane(lane)?);
                match (&inst.args[0], inst.op) {
                    (Arg::Pair(first, second), Op::Setp) => {
                        self.set(at, lane, first, low.into())?;
                        self.set(at, lane, second, high.into())?;
                    }
                    (to, Op::Set) => {
                        let one = truth(inst.ty().half().unwrap_or(inst.ty()));
                        let bits = (u64::from(low) * one) | (u64::from(high) * one) << 16;
                        self.set(at, lane, to, bits)?;
                    }
                    _ => return operand("setp on pairs sets two predicates"),
                }
                continue;
            }
            let holds = compare(a, b, ty, inst.mods).lane(lane)?;
            match (&inst.args[0], inst.op) {
                (Arg::Pair(first, second), Op::Setp) => {
                    self.set(at, lane, first, joined(holds).into())?;
                    self.set(at, lane, second, joined(!holds).into())?;
                }
                (to, Op::Setp) => self.set(at, lane, to, joined(holds).into())?,
                (to, _) => {
                    self.set(at, lane, to, u64::from(joined(holds)) * truth(inst.ty()))?;
                }
            }
        }
        Ok(())
    }
}

/// What `set` writes where the comparison holds.
fn truth(ty: Ty) -> u64 {
    match ty {
        Ty::F32 => 0x3f80_0000,
        Ty::F16 => 0x3c00,
        Ty::Bf16 => 0x3f80,
        _ => 0xffff_ffff,
    }
}

fn compare(a: u64, b: u64, ty: Ty, mods: Mods) -> Run<bool> {
    const RELATIONS: [Mod; 18] = [
        Mod::Eq,
        Mod::Ne,
        Mod::Lt,
        Mod::Le,
        Mod::Gt,
        Mod::Ge,
        Mod::Lo,
        Mod::Ls,
        Mod::Hi,
        Mod::Hs,
        Mod::Equ,
        Mod::Neu,
        Mod::Ltu,
        Mod::Leu,
        Mod::Gtu,
        Mod::Geu,
        Mod::Num,
        Mod::Nan,
    ];
    let Some(relation) = mods.which(&RELATIONS) else {
        return operand("a comparison without a relation");
    };
    if ty.is_float() {
        let (a, b) = (ty.truncate(a), ty.truncate(b));
        let (a, b) = if mods.has(Mod::Ftz) { (flush(a, ty), flush(b, ty)) } else { (a, b) };
        let (x, y) = (widen(a, ty), widen(b, ty));
        let unordered = x.is_nan() || y.is_nan();
        return Ok(match relation {
            Mod::Eq => x == y,
            Mod::Ne => !unordered && x != y,
            Mod::Lt => x < y,
            Mod::Le => x <= y,
            Mod::Gt => x > y,
            Mod::Ge => x >= y,
            Mod::Equ => unordered || x == y,
            Mod::Neu => x != y,
            Mod::Ltu => unordered || x < y,
            Mod::Leu => unordered || x <= y,
            Mod::Gtu => unordered || x > y,
            Mod::Geu => unordered || x >= y,
            Mod::Num => !unordered,
            Mod::Nan => unordered,
            _ => return operand("no relation of floats"),
        });
    }
    let (x, y) = (ty.extend(a), ty.extend(b));
    Ok(match relation {
        Mod::Eq => x == y,
        Mod::Ne => x != y,
        Mod::Lt | Mod::Lo => x < y,
        Mod::Le | Mod::Ls => x <= y,
        Mod::Gt | Mod::Hi => x > y,
        Mod::Ge | Mod::Hs => x >= y,
        _ => return operand("no relation of integers"),
    })
}
