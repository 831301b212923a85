//! Bitwise instructions.

use super::{At, Machine, Run};
use crate::fault::operand;
use crate::mods::Mod;
use crate::module::Inst;
use crate::ops::Op;

impl Machine<'_> {
    pub(super) fn bits(&mut self, at: At, mask: u32, inst: &Inst) -> Run {
        let (ty, op, bits) = (inst.ty(), inst.op, inst.ty().bits());
        let (wraps, is_left) = (inst.has(Mod::Wrap), inst.has(Mod::Left));
        let shift_amount = inst.has(Mod::ShiftAmt);
        self.map(at, mask, inst, |[a, b, c, d]| {
            let (x, y) = (ty.truncate(a), ty.truncate(b));
            let amount = b as u32;
            Ok(match op {
                Op::And => x & y,
                Op::Or => x | y,
                Op::Xor => x ^ y,
                Op::Not => ty.truncate(!x),
                Op::Cnot => (x == 0).into(),
                Op::Shl => ty.truncate(if amount < bits { x << amount } else { 0 }),
                Op::Shr => ty.truncate((ty.extend(a) >> amount.min(bits)) as u64),
                Op::Shf => {
                    let c = c as u32;
                    let amount = if wraps { c & 31 } else { c.min(32) };
                    let pair = (y & 0xffff_ffff) << 32 | x;
                    if is_left { pair << amount >> 32 } else { pair >> amount & 0xffff_ffff }
                }
                Op::Bfe => extract(a, b as u32 & 0xff, c as u32 & 0xff, bits, ty.is_signed()),
                Op::Bfi => {
                    let (from, count) = (c as u32 & 0xff, d as u32 & 0xff);
                    if from >= bits || count == 0 {
                        y
                    } else {
                        let field = ty.truncate(low_bits(count.min(64)) << from);
                        y & !field | ty.truncate(x << from) & field
                    }
                }
                Op::Bfind => {
                    let value = ty.extend(a);
                    let value = ty.truncate(if value < 0 { !value } else { value } as u64);
                    match value.checked_ilog2() {
                        None => 0xffff_ffff,
                        Some(top) if shift_amount => (bits - 1 - top).into(),
                        Some(top) => top.into(),
                    }
                }
                Op::Clz => (x.leading_zeros() - (64 - bits)).into(),
                Op::Popc => x.count_ones().into(),
                Op::Brev => x.reverse_bits() >> (64 - bits),
                Op::Lop3 => lop3(a as u32, b as u32, c as u32, d as u32).into(),
                _ => return operand("no bitwise instruction"),
            })
        })
    }
}

fn low_bits(count: u32) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// `bfe`: bits that lie beyond the value are its sign, or zero.
fn extract(value: u64, from: u32, count: u32, bits: u32, signed: bool) -> u64 {
    let kept = low_bits(bits);
    let value = value & kept;
    let top = (from + count).saturating_sub(1).min(bits - 1);
    let sign = signed && count > 0 && value >> top & 1 != 0;
    let field = low_bits(count.min(bits.saturating_sub(from)));
    let low = if from < bits { value >> from & field } else { 0 };
    if sign { kept & (low | !field) } else { low }
}

fn lop3(a: u32, b: u32, c: u32, table: u32) -> u32 {
    (0..8).filter(|row| table >> row & 1 != 0).fold(0, |result, row| {
        let pick = |value: u32, bit: u32| if row >> bit & 1 != 0 { value } else { !value };
        result | pick(a, 2) & pick(b, 1) & pick(c, 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lop3_uses_the_table_of_the_isa() {
        let (a, b, c) = (0xf0f0_1234, 0xcccc_5678, 0xaaaa_9abc);
        assert_eq!(lop3(a, b, c, 0xf0 & 0xcc & 0xaa), a & b & c);
        assert_eq!(lop3(a, b, c, 0xf0 | 0xcc & 0xaa), a | b & c);
        assert_eq!(lop3(a, b, c, 0xf0 ^ 0xcc ^ 0xaa), a ^ b ^ c);
    }

    #[test]
    fn bfe_fills_with_the_sign() {
        assert_eq!(extract(0xf0, 4, 4, 32, false), 0xf);
        assert_eq!(extract(0xf0, 4, 4, 32, true), 0xffff_ffff);
        assert_eq!(extract(0x8000_0000, 28, 8, 32, true), 0xffff_fff8);
        assert_eq!(extract(0x8000_0000, 28, 8, 32, false), 8);
        assert_eq!(extract(5, 0, 0, 32, true), 0);
    }
}
