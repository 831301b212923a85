//! `cp.async`: its data is there when the thread waited for its group, not before.

use std::collections::VecDeque;

use super::mbarrier::{Flight, Landing};
use super::memory::{Place, Traffic};
use super::warp::lanes;
use super::{At, Machine, Run};
use crate::fault::{Blame, FaultKind, operand};
use crate::mods::Mod;
use crate::module::{Arg, Inst};
use crate::shadow::{Author, Kind};
use crate::shared::Use;
use crate::ty::Ty;

/// A copy that is in flight.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    pub(super) offset: usize,
    pub(super) data: [u8; 16],
    pub(super) bytes: usize,
    pub(super) author: Author,
}

/// The copies of a thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Copies {
    /// Not in a group yet.
    open: Vec<Copy>,
    groups: VecDeque<Vec<Copy>>,
}

impl<'a> Machine<'a> {
    pub(super) fn cp_async(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        let bytes = self.uniform(at, mask, inst, 2)? as usize;
        let fits = if inst.has(Mod::Cg) { bytes == 16 } else { matches!(bytes, 4 | 8 | 16) };
        if !fits {
            return operand(format!("cp.async of {bytes} bytes"));
        }
        let hints = usize::from(inst.has(Mod::L2CacheHint));
        let extra = inst.args[3..].first().filter(|_| inst.args.len() > 3 + hints);
        let (mut reads, mut writes) = (Traffic::default(), Traffic::default());
        for lane in lanes(mask) {
            let to = self.source(at, lane, inst, 0)?;
            let Place::Shared(cta, address) = self.shared_place(at, to).lane(lane)? else {
                return operand("cp.async writes to shared memory");
            };
            if cta != at.cta {
                return operand("cp.async writes to its own block").lane(lane);
            }
            let from = self.source(at, lane, inst, 1)?;
            let given = match extra {
                None => bytes,
                Some(arg) => {
                    let value = self.value(at, lane, arg)?;
                    let is_pred = |reg: usize| self.kernel.regs[reg].ty == Ty::Pred;
                    match arg {
                        // A predicate says to ignore the source.
                        Arg::Reg(reg) | Arg::NotReg(reg) if is_pred(*reg) => {
                            if value & 1 != 0 {
                                0
                            } else {
                                bytes
                            }
                        }
                        _ => value as u32 as usize,
                    }
                }
            };
            if given > bytes {
                return operand(format!("cp.async of {given} of {bytes} bytes")).lane(lane);
            }
            let mut data = [0; 16];
            if given > 0 {
                if !from.is_multiple_of(bytes as u64) {
                    let (address, align) = (from, bytes as u64);
                    return Err(FaultKind::Misaligned { space: "global", address, align })
                        .lane(lane);
                }
                self.may_touch(at, lane, from, false)?;
                data[..given].copy_from_slice(self.global.read(from, given).lane(lane)?);
                reads.add(Place::Global(from));
            }
            let author = self.author(at, lane, inst);
            let by = Use { author, kind: Kind::WRITE, view: &self.clocks[author.slot] };
            let shared = &mut self.ctas[at.cta].shared;
            let offset = shared.offset(address, bytes, bytes).lane(lane)?;
            shared.begin_copy(offset, bytes, by).lane(lane)?;
            let copies = &mut self.ctas[at.cta].warps[at.warp].copies[lane as usize];
            copies.open.push(Copy { offset, data, bytes, author });
            writes.add(Place::Shared(cta, address));
        }
        self.account(&reads, bytes, false);
        self.account(&writes, bytes, true);
        Ok(())
    }

    pub(super) fn cp_commit(&mut self, at: At, mask: u32) -> Run {
        let warp = self.warp_mut(at);
        for lane in lanes(mask) {
            let copies = &mut warp.copies[lane as usize];
            let group = std::mem::take(&mut copies.open);
            copies.groups.push_back(group);
        }
        Ok(())
    }

    pub(super) fn cp_wait(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        let keep = match inst.args.first() {
            Some(_) => self.uniform(at, mask, inst, 0)? as usize,
            None => 0,
        };
        let all = inst.args.is_empty();
        for lane in lanes(mask) {
            let slot = self.slot(at, lane);
            let epoch = self.clocks[slot].epoch();
            let block = &mut self.ctas[at.cta];
            let copies = &mut block.warps[at.warp].copies[lane as usize];
            let mut landed = Vec::new();
            while copies.groups.len() > keep {
                landed.extend(copies.groups.pop_front().into_iter().flatten());
            }
            if all {
                landed.append(&mut copies.open);
            }
            for copy in landed {
                let to = Author { slot, epoch, ..copy.author };
                block.shared.land_copy(copy.offset, &copy.data[..copy.bytes], copy.author, to);
            }
        }
        Ok(())
    }

    /// The thread's copies make an mbarrier progress when they have landed.
    pub(super) fn cp_mbarrier_arrive(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        for lane in lanes(mask) {
            let (cta, offset) = self.mbarrier_at(at, lane, inst, 0)?;
            let copies = &mut self.ctas[at.cta].warps[at.warp].copies[lane as usize];
            let mut copied: Vec<Copy> = copies.groups.iter_mut().flat_map(std::mem::take).collect();
            copied.append(&mut copies.open);
            let landing = |copy: Copy| Landing {
                offset: copy.offset,
                data: copy.data[..copy.bytes].to_vec(),
                author: copy.author,
            };
            let landings = copied.into_iter().map(landing).collect();
            let author = self.author(at, lane, inst);
            let clock = self.clocks[author.slot].clone();
            let mbarrier = self.mbarrier(cta, offset)?;
            mbarrier.pending += u32::from(!inst.has(Mod::NoInc));
            mbarrier.arrivals_in_flight += 1;
            if mbarrier.arrivals_in_flight > mbarrier.pending {
                let address = self.ctas[cta].shared.base + offset;
                let reason = "more arrivals than the phase expects";
                return Err(FaultKind::Mbarrier { address, reason }).lane(lane);
            }
            mbarrier.gather.add(&clock);
            mbarrier.queue.push(Flight { bytes: 0, arrives: true, line: inst.line, landings });
            self.clocks[author.slot].advance();
        }
        Ok(())
    }
}
