//! Reading and writing operands.

use super::warp::lanes;
use super::{At, Machine, Run};
use crate::fault::{Blame, FaultKind, operand};
use crate::module::{Arg, Inst, RegId, Special, Symbol};

/// Where the windows of generic addresses begin.
pub(super) const SHARED_WINDOW: u64 = 0x7f00_0000_0000;
pub(super) const LOCAL_WINDOW: u64 = 0x7e00_0000_0000;
pub(super) const PARAM_WINDOW: u64 = 0x7d00_0000_0000;
/// The size of a window.
pub(super) const WINDOW: u64 = 1 << 32;
/// A block of rank `r` has its shared memory at `(r + 1) << RANK_SHIFT` for the others.
pub(super) const RANK_SHIFT: u32 = 24;

impl Machine<'_> {
    /// The value of a scalar operand in a lane.
    pub(super) fn value(&self, at: At, lane: u32, arg: &Arg) -> Run<u64> {
        match arg {
            Arg::Reg(reg) => self.register(at, lane, *reg),
            Arg::NotReg(reg) => Ok(self.register(at, lane, *reg)? & 1 ^ 1),
            Arg::Imm(value) => Ok(*value),
            Arg::Special(special) => Ok(self.special(at, lane, *special)),
            Arg::Sym(symbol, offset) => Ok(self.symbol(*symbol).wrapping_add_signed(*offset)),
            Arg::Addr(base, offset) => Ok(self.value(at, lane, base)?.wrapping_add_signed(*offset)),
            _ => operand("a scalar operand is needed"),
        }
    }

    fn register(&self, at: At, lane: u32, reg: RegId) -> Run<u64> {
        let warp = self.warp(at);
        if warp.defined[reg] >> lane & 1 == 0 {
            let register = self.kernel.regs[reg].name.clone();
            return Err(FaultKind::UninitialisedRegister { register }).lane(lane);
        }
        Ok(warp.regs[reg][lane as usize])
    }

    pub(super) fn symbol(&self, symbol: Symbol) -> u64 {
        let shared = u64::from(self.ctas[0].shared.base);
        match symbol {
            Symbol::Param(offset) | Symbol::Local(offset) => offset,
            Symbol::Shared(offset) => shared + offset,
            Symbol::DynamicShared => shared + self.kernel.dynamic_offset,
            Symbol::Global(index) => self.variables.get(index).copied().unwrap_or(0),
        }
    }

    /// Operand `index`, which has to be there.
    pub(super) fn arg<'i>(&self, inst: &'i Inst, index: usize) -> Run<&'i Arg> {
        match inst.args.get(index) {
            Some(arg) => Ok(arg),
            None => operand(format!("{} lacks operand {index}", inst.name)),
        }
    }

    /// Operand `index` in a lane.
    pub(super) fn source(&self, at: At, lane: u32, inst: &Inst, index: usize) -> Run<u64> {
        self.value(at, lane, self.arg(inst, index)?)
    }

    /// Operand `index`, which has to be the same in all lanes of the mask.
    pub(super) fn uniform(&self, at: At, mask: u32, inst: &Inst, index: usize) -> Run<u64> {
        let mut found = None;
        for lane in lanes(mask) {
            let value = self.source(at, lane, inst, index)?;
            if found.is_some_and(|found| found != value) {
                let reason = format!("operand {index} of {} differs between lanes", inst.name);
                return operand(reason).lane(lane);
            }
            found = Some(value);
        }
        Ok(found.unwrap_or(0))
    }

    /// Writes a scalar result.
    pub(super) fn set(&mut self, at: At, lane: u32, arg: &Arg, value: u64) -> Run {
        match arg {
            Arg::Reg(reg) => {
                let value = self.kernel.regs[*reg].ty.truncate(value);
                let warp = self.warp_mut(at);
                warp.regs[*reg][lane as usize] = value;
                warp.defined[*reg] |= 1 << lane;
                Ok(())
            }
            Arg::Sink => Ok(()),
            _ => operand("a register is needed as result"),
        }
    }

    /// Sets the first operand to a function of the others, lane by lane.
    pub(super) fn map(
        &mut self,
        at: At,
        mask: u32,
        inst: &Inst,
        compute: impl Fn([u64; 4]) -> Run<u64>,
    ) -> Run {
        for lane in lanes(mask) {
            let mut values = [0; 4];
            for (value, arg) in values.iter_mut().zip(&inst.args[1..]) {
                *value = self.value(at, lane, arg)?;
            }
            let result = compute(values).lane(lane)?;
            self.set(at, lane, &inst.args[0], result)?;
        }
        Ok(())
    }

    fn special(&self, at: At, lane: u32, special: Special) -> u64 {
        let block = self.launch.block;
        let cta = &self.ctas[at.cta];
        let cluster = self.launch.cluster;
        let thread = at.warp as u32 * 32 + lane;
        let bit = 1u32 << lane;
        let value = match special {
            Special::Tid(axis) => {
                [thread % block[0], thread / block[0] % block[1], thread / (block[0] * block[1])]
                    [axis]
            }
            Special::Ntid(axis) => block[axis],
            Special::Ctaid(axis) => cta.id[axis],
            Special::Nctaid(axis) => self.launch.grid[axis],
            Special::ClusterId(axis) => cta.id[axis] / cluster[axis],
            Special::NclusterId(axis) => self.launch.grid[axis] / cluster[axis],
            Special::ClusterCtaid(axis) => cta.id[axis] % cluster[axis],
            Special::ClusterNctaid(axis) => cluster[axis],
            Special::ClusterCtarank => at.cta as u32,
            Special::ClusterNctarank => self.ctas.len() as u32,
            Special::IsExplicitCluster => u32::from(self.ctas.len() > 1),
            Special::LaneId => lane,
            Special::WarpId => at.warp as u32,
            Special::NwarpId => 64,
            Special::SmId | Special::GridId => 0,
            Special::NsmId => 1,
            Special::LaneMaskEq => bit,
            Special::LaneMaskLt => bit - 1,
            Special::LaneMaskLe => bit | (bit - 1),
            Special::LaneMaskGt => !(bit | (bit - 1)),
            Special::LaneMaskGe => !(bit - 1),
            Special::Clock | Special::Clock64 | Special::GlobalTimer => return self.steps,
            Special::DynamicSharedBytes => self.launch.dynamic_shared,
            Special::TotalSharedBytes => {
                self.kernel.dynamic_offset as u32 + self.launch.dynamic_shared
            }
        };
        value.into()
    }
}
