//! `mov`, `selp`, `slct`, `prmt`, and conversions between address spaces.

use super::operand::{LOCAL_WINDOW, PARAM_WINDOW, RANK_SHIFT, SHARED_WINDOW, WINDOW};
use super::warp::lanes;
use super::{At, Machine, Run};
use crate::fault::operand;
use crate::mods::Mod;
use crate::module::{Arg, Inst};
use crate::ops::Op;
use crate::ty::Ty;

impl Machine<'_> {
    pub(super) fn mov(&mut self, at: At, mask: u32, inst: &Inst) -> Run {
        let (to, from) = (self.arg(inst, 0)?, self.arg(inst, 1)?);
        for lane in lanes(mask) {
            match (to, from) {
                (Arg::Vec(parts), from) => {
                    let value = self.value(at, lane, from)?;
                    let bits = inst.ty().bits() / parts.len().max(1) as u32;
                    for (index, part) in parts.iter().enumerate() {
                        self.set(at, lane, part, value >> (bits * index as u32))?;
                    }
                }
                (to, Arg::Vec(parts)) => {
                    let bits = inst.ty().bits() / parts.len().max(1) as u32;
                    let mut value = 0;
                    for (index, part) in parts.iter().enumerate() {
                        let low = u64::MAX >> (64 - bits.clamp(1, 64));
                        value |= (self.value(at, lane, part)? & low) << (bits * index as u32);
                    }
                    self.set(at, lane, to, value)?;
                }
                (Arg::Reg(to), Arg::Reg(from)) => {
                    // Copies of registers that nothing wrote are no use of them.
                    let bits = self.kernel.regs[*to].ty;
                    let warp = self.warp_mut(at);
                    let defined = warp.defined[*from] >> lane & 1;
                    warp.regs[*to][lane as usize] = bits.truncate(warp.regs[*from][lane as usize]);
                    warp.defined[*to] = warp.defined[*to] & !(1 << lane) | defined << lane;
                }
                (to, from) => {
                    let value = self.value(at, lane, from)?;
                    self.set(at, lane, to, inst.ty().truncate(value))?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn select(&mut self, at: At, mask: u32, inst: &Inst) -> Run {
        let (ty, second) = (inst.ty(), inst.ty.get(1).copied());
        match inst.op {
            Op::Selp => {
                // Only the selected operand is used.
                for lane in lanes(mask) {
                    let chosen = if self.source(at, lane, inst, 3)? & 1 != 0 { 1 } else { 2 };
                    let value = self.source(at, lane, inst, chosen)?;
                    self.set(at, lane, &inst.args[0], value)?;
                }
                Ok(())
            }
            Op::Slct => self.map(at, mask, inst, |[a, b, c, _]| {
                let first = match second {
                    Some(Ty::F32) => f32::from_bits(c as u32) >= 0.0,
                    _ => c as i32 >= 0,
                };
                Ok(ty.truncate(if first { a } else { b }))
            }),
            _ => {
                let mods = inst.mods;
                self.map(at, mask, inst, |[a, b, c, _]| {
                    let mode = [Mod::F4e, Mod::B4e, Mod::Rc8, Mod::Ecl, Mod::Ecr, Mod::Rc16];
                    Ok(permute(a as u32, b as u32, c as u32, mods.which(&mode)).into())
                })
            }
        }
    }

    pub(super) fn address(&mut self, at: At, mask: u32, inst: &Inst) -> Run {
        let spaces = [
            (Mod::Shared, SHARED_WINDOW),
            (Mod::SharedCta, SHARED_WINDOW),
            (Mod::SharedCluster, SHARED_WINDOW),
            (Mod::Local, LOCAL_WINDOW),
            (Mod::Param, PARAM_WINDOW),
            (Mod::ParamEntry, PARAM_WINDOW),
        ];
        let window = spaces.iter().find(|(space, _)| inst.has(*space)).map(|(_, window)| *window);
        let ranks = self.ctas.len() as u64;
        let own = at.cta as u64;
        let (op, to) = (inst.op, inst.has(Mod::To));
        let is_own_only = inst.has(Mod::Shared) || inst.has(Mod::SharedCta);
        self.map(at, mask, inst, |[a, b, ..]| match (op, window) {
            (Op::Cvta, None) => Ok(a),
            (Op::Cvta, Some(window)) if to => match a.checked_sub(window) {
                Some(offset) if offset < WINDOW => Ok(offset),
                _ => operand(format!("cvta: {a:#x} is not in that state space")),
            },
            (Op::Cvta, Some(window)) => Ok(window + a % WINDOW),
            (Op::Isspacep, None) => Ok((a < PARAM_WINDOW).into()),
            (Op::Isspacep, Some(window)) => {
                let offset = a.wrapping_sub(window);
                Ok((offset < if is_own_only { 1 << RANK_SHIFT } else { WINDOW }).into())
            }
            (Op::Mapa, _) if b >= ranks => operand(format!("mapa: no block of rank {b}")),
            (Op::Mapa, Some(_)) => Ok((a % (1 << RANK_SHIFT)) | (b + 1) << RANK_SHIFT),
            (Op::Mapa, None) => Ok(SHARED_WINDOW | (a % (1 << RANK_SHIFT)) | (b + 1) << RANK_SHIFT),
            _ => {
                let rank = (a % WINDOW) >> RANK_SHIFT;
                Ok(if rank == 0 { own } else { rank - 1 })
            }
        })
    }
}

/// `prmt`: each byte of the result is one of the eight bytes of `b:a`.
fn permute(a: u32, b: u32, control: u32, mode: Option<Mod>) -> u32 {
    let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let c = control & 3;
    let picks: [u32; 4] = match mode {
        Some(Mod::F4e) => [c, c + 1, c + 2, c + 3],
        Some(Mod::B4e) => [c, (c + 7) % 8, (c + 6) % 8, (c + 5) % 8],
        Some(Mod::Rc8) => [c; 4],
        Some(Mod::Ecl) => [c, c.max(1), c.max(2), 3],
        Some(Mod::Ecr) => [0, c.min(1), c.min(2), c],
        Some(Mod::Rc16) => [c % 2 * 2, c % 2 * 2 + 1, c % 2 * 2, c % 2 * 2 + 1],
        _ => [control & 15, control >> 4 & 15, control >> 8 & 15, control >> 12 & 15],
    };
    let pick = |selector: u32| {
        let byte = bytes[(selector & 7) as usize];
        // The high bit asks for the byte's sign in all its bits.
        if selector & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte }
    };
    u32::from_le_bytes(picks.map(pick))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prmt_modes_follow_the_tables_of_the_isa() {
        let (a, b) = (0x8322_1100, 0x7766_5544);
        assert_eq!(permute(a, b, 0x7531, None), 0x7755_8311);
        assert_eq!(permute(a, b, 0x000b, None), 0x0000_00ff);
        assert_eq!(permute(a, b, 1, Some(Mod::F4e)), 0x4483_2211);
        assert_eq!(permute(a, b, 1, Some(Mod::B4e)), 0x6677_0011);
        assert_eq!(permute(a, b, 2, Some(Mod::Rc8)), 0x2222_2222);
        assert_eq!(permute(a, b, 2, Some(Mod::Ecl)), 0x8322_2222);
        assert_eq!(permute(a, b, 2, Some(Mod::Ecr)), 0x2222_1100);
        assert_eq!(permute(a, b, 1, Some(Mod::Rc16)), 0x8322_8322);
    }
}
