//! Which warp runs next, and which of its lanes.
//!
//! Warps are picked at random and run for a few instructions. In a warp, the lanes with the least
//! program counter go first, so that diverged lanes meet again; now and then others do, so that
//! lanes that spin do not starve those they wait for. An instruction that needs lanes which are
//! elsewhere holds those that reached it until the others come. When no warp can go on,
//! asynchronous copies land; if there are none, that is a deadlock.

use super::warp::lanes;
use super::{At, Cta, Machine, Run};
use crate::fault::{Blame, Fault, FaultKind, Trap};
use crate::module::{Arg, Inst};
use crate::ops::Op;

/// Which lanes have to execute an instruction together.
enum Needs {
    /// Any.
    Nobody,
    /// All that have not exited.
    Live,
    /// All of the warp.
    Warp,
    /// Those of the mask that this operand holds.
    Mask(usize),
}

fn needs(inst: &Inst) -> Needs {
    match inst.op {
        Op::BarSync | Op::BarArrive if inst.name.starts_with("bar.") => Needs::Live,
        Op::BarSync | Op::BarArrive | Op::ClusterArrive | Op::ClusterWait
            if inst.has(crate::mods::Mod::Aligned) =>
        {
            Needs::Live
        }
        Op::Ldmatrix | Op::Stmatrix | Op::Movmatrix | Op::Mma => Needs::Warp,
        Op::Wgmma | Op::WgmmaFence | Op::WgmmaCommit | Op::WgmmaWait | Op::SetMaxNReg => {
            Needs::Warp
        }
        Op::WarpSync => Needs::Mask(0),
        Op::Elect => Needs::Mask(1),
        Op::Vote | Op::Match | Op::Redux => Needs::Mask(2),
        Op::Shfl => Needs::Mask(4),
        _ => Needs::Nobody,
    }
}

/// How often waits are tried again while nothing else happens.
const MAX_IDLE_ROUNDS: u32 = 64;

impl<'a> Machine<'a> {
    /// Runs the cluster until all its threads exited.
    pub(crate) fn run(&mut self) -> Result<(), Fault> {
        loop {
            let mut runnable = Vec::new();
            for (cta, block) in self.ctas.iter().enumerate() {
                let warps = block.warps.iter().enumerate().filter(|(_, warp)| warp.is_runnable());
                runnable.extend(warps.map(|(warp, _)| At { cta, warp }));
            }
            if runnable.is_empty() {
                if self.ctas.iter().all(Cta::is_done) {
                    return self.finish();
                }
                let landed = self.land_some();
                if landed.map_err(|(cta, trap)| self.fault(cta, 0, 0, trap))? {
                    continue;
                }
                // Who polls may have something else to do.
                self.idle_rounds += 1;
                let warps = self.ctas.iter_mut().flat_map(|block| &mut block.warps);
                let parked = warps.fold(0, |all, warp| all | std::mem::take(&mut warp.parked));
                if parked == 0 || self.idle_rounds > MAX_IDLE_ROUNDS {
                    return Err(self.deadlock());
                }
                continue;
            }
            let at = runnable[self.rng.below(runnable.len())];
            for _ in 0..=self.rng.below(16) {
                if !self.warp(at).is_runnable() {
                    break;
                }
                self.step(at)?;
            }
        }
    }

    fn step(&mut self, at: At) -> Result<(), Fault> {
        let warp = self.warp(at);
        let mut from = warp.ready();
        if from == 0 {
            from = warp.held;
        }
        let place = |lane: u32| warp.pc[lane as usize];
        let mut pc = lanes(from).map(place).min().unwrap_or(0);
        let diverged = lanes(from).any(|lane| place(lane) != pc);
        if diverged && self.rng.below(64) == 0 {
            let nth = self.rng.below(from.count_ones() as usize);
            let warp = self.warp(at);
            pc = lanes(from).nth(nth).map_or(pc, |lane| warp.pc[lane as usize]);
        }
        let Some(inst) = self.kernel.code.get(pc) else {
            let group = self.warp(at).group(pc);
            return self.exit(at, group).map_err(|trap| self.fault(at.cta, at.warp, 0, trap));
        };
        self.steps += 1;
        if self.steps > self.launch.max_steps {
            let trap = FaultKind::StepLimit(self.launch.max_steps).into();
            return Err(self.fault(at.cta, at.warp, inst.line, trap));
        }
        self.instruction(at, pc, inst).map_err(|trap| self.fault(at.cta, at.warp, inst.line, trap))
    }

    fn instruction(&mut self, at: At, pc: usize, inst: &'a Inst) -> Run {
        let mut group = self.warp(at).group(pc);
        let mut mask = group;
        if let Some(guard) = inst.guard {
            for lane in lanes(group) {
                let holds = self.value(at, lane, &Arg::Reg(guard.reg))? & 1 != 0;
                if holds == guard.negated {
                    mask &= !(1 << lane);
                }
            }
        }
        if let Needs::Mask(operand) = needs(inst) {
            // Lanes with another member mask form a group of their own.
            let others = self.other_members(at, mask, inst, operand)?;
            mask &= !others;
            group &= !others;
        }
        if mask != 0 && !self.is_complete(at, mask, group, inst)? {
            let warp = self.warp_mut(at);
            if warp.ready() & !group == 0 && (warp.blocked | warp.parked) & !group == 0 {
                let missing = warp.launched & !group;
                return Err(FaultKind::Divergent { missing }.into());
            }
            warp.held |= group;
            warp.parked &= !group;
            return Ok(());
        }
        let warp = self.warp_mut(at);
        warp.held &= !group;
        warp.parked &= !group;
        for lane in lanes(group) {
            warp.pc[lane as usize] = pc + 1;
        }
        if mask == 0 {
            return Ok(());
        }
        if self.uses_wgmma {
            self.touch(at, inst)?;
        }
        *self.report.instructions.entry(inst.name).or_insert(0) += 1;
        self.execute(at, mask, inst)
    }

    /// Whether all lanes that have to execute an instruction together are there.
    fn is_complete(&mut self, at: At, mask: u32, group: u32, inst: &Inst) -> Run<bool> {
        let warp = self.warp(at);
        let (live, launched) = (warp.live(), warp.launched);
        let needed = match needs(inst) {
            Needs::Nobody => return Ok(true),
            Needs::Live => live,
            Needs::Warp if launched != u32::MAX => {
                return Err(FaultKind::Divergent { missing: !launched }.into());
            }
            Needs::Warp => launched,
            Needs::Mask(operand) => {
                let first = mask.trailing_zeros();
                self.source(at, first, inst, operand)? as u32 & launched
            }
        };
        let missing = needed & !mask;
        if missing & (group | !live) != 0 {
            return Err(FaultKind::Divergent { missing }.into());
        }
        Ok(missing == 0)
    }

    /// The lanes of a mask whose member mask differs from that of the first one.
    fn other_members(&self, at: At, mask: u32, inst: &Inst, operand: usize) -> Run<u32> {
        let (mut first, mut others) = (None, 0);
        for lane in lanes(mask) {
            let members = self.source(at, lane, inst, operand)? as u32;
            if members >> lane & 1 == 0 {
                let reason = format!("member mask {members:#x} lacks the lane that executes it");
                return Err(FaultKind::Operand(reason)).lane(lane);
            }
            if *first.get_or_insert(members) != members {
                others |= 1 << lane;
            }
        }
        Ok(others)
    }

    pub(super) fn branch(&mut self, at: At, mask: u32, inst: &Inst) -> Run {
        let Some(Arg::Target(target)) = inst.args.first() else { return Ok(()) };
        let warp = self.warp_mut(at);
        lanes(mask).for_each(|lane| warp.pc[lane as usize] = *target);
        Ok(())
    }

    fn fault(&self, cta: usize, warp: usize, line: u32, trap: Trap) -> Fault {
        Fault {
            kind: trap.kind,
            cta: self.ctas[cta].id,
            thread: trap.lane.map(|lane| warp as u32 * 32 + lane),
            line: trap.line.unwrap_or(line),
        }
    }

    fn finish(&mut self) -> Result<(), Fault> {
        for cta in 0..self.ctas.len() {
            self.check_exit(cta).map_err(|trap| self.fault(cta, 0, 0, trap))?;
        }
        Ok(())
    }

    fn deadlock(&self) -> Fault {
        let mut waiting = Vec::new();
        let mut place = (0, 0, 0);
        for (cta, block) in self.ctas.iter().enumerate() {
            for (index, warp) in block.warps.iter().enumerate() {
                let Some(lane) = lanes(warp.live()).next() else { continue };
                let next = self.kernel.code.get(warp.pc[lane as usize]);
                let line = next.map_or(0, |inst| inst.line);
                let what = if warp.parked != 0 { "an mbarrier" } else { "a barrier" };
                if waiting.is_empty() {
                    place = (cta, index, line);
                }
                if waiting.len() < 8 {
                    waiting.push(format!("CTA {cta} warp {index} at {what} before line {line}"));
                }
            }
            waiting.extend(block.stuck_mbarriers());
        }
        let trap = FaultKind::Deadlock(waiting.join("; ")).into();
        self.fault(place.0, place.1, place.2, trap)
    }
}

impl Cta {
    fn is_done(&self) -> bool {
        self.warps.iter().all(|warp| warp.live() == 0)
    }
}
