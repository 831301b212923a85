//! mbarriers: arrivals, transactions, phases.
//!
//! Copies that complete on an mbarrier land when a thread waits for a phase that lacks nothing but
//! them, or when no thread can go on otherwise. A wait may also fail for no reason, as a time-out
//! would make it.

use std::rc::Rc;

use super::memory::Place;
use super::warp::lanes;
use super::{At, Cta, Machine, Run};
use crate::clock::{Clock, Gather};
use crate::fault::{Blame, FaultKind, Trap, operand};
use crate::mods::Mod;
use crate::module::{Arg, Inst};
use crate::ops::Op;
use crate::shadow::{Author, Kind};
use crate::shared::Use;

/// Bytes that will land in the shared memory of the mbarrier's block.
#[derive(Clone, Debug)]
pub(super) struct Landing {
    pub(super) offset: usize,
    pub(super) data: Vec<u8>,
    pub(super) author: Author,
}

/// Something that an mbarrier waits for.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    /// By how much it lowers the transaction count.
    pub(super) bytes: u64,
    /// Whether it arrives.
    pub(super) arrives: bool,
    pub(super) line: u32,
    pub(super) landings: Vec<Landing>,
}

/// An mbarrier object.
#[derive(Clone, Debug)]
pub(super) struct Mbarrier {
    slot: usize,
    /// Arrivals of a phase.
    expected: u32,
    /// Arrivals that the current phase lacks.
    pub(super) pending: u32,
    transactions: i64,
    /// Phases that are complete.
    phase: u32,
    pub(super) gather: Gather,
    /// What is known when the last phase is complete.
    done: Rc<Clock>,
    pub(super) queue: Vec<Flight>,
    /// How many of the queue arrive.
    pub(super) arrivals_in_flight: u32,
    /// Who initialised it.
    author: usize,
    /// Whether the asynchronous proxy sees the initialisation.
    visible: bool,
}

const MAX_COUNT: u64 = (1 << 20) - 1;

impl Mbarrier {
    fn is_complete(&self) -> bool {
        self.pending == 0 && self.transactions == 0
    }

    /// Whether the copies in flight are all that the phase lacks.
    fn can_land(&self) -> bool {
        let bytes: u64 = self.queue.iter().map(|flight| flight.bytes).sum();
        !self.queue.is_empty()
            && self.pending == self.arrivals_in_flight
            && self.transactions == bytes as i64
    }
}

impl<'a> Machine<'a> {
    /// The block and offset of the mbarrier that operand `index` points to.
    pub(super) fn mbarrier_at(
        &self,
        at: At,
        lane: u32,
        inst: &Inst,
        index: usize,
    ) -> Run<(usize, u32)> {
        let address = self.source(at, lane, inst, index)?;
        let spaces = [Mod::Shared, Mod::SharedCta, Mod::SharedCluster];
        let place = if inst.mods.which(&spaces).is_some() {
            self.shared_place(at, address)
        } else {
            self.place(at, address, inst.mods)
        };
        let Place::Shared(cta, address) = place.lane(lane)? else {
            return operand("an mbarrier lies in shared memory").lane(lane);
        };
        let offset = self.ctas[cta].shared.offset(address, 8, 8).lane(lane)?;
        Ok((cta, offset as u32))
    }

    pub(super) fn mbarrier(&mut self, cta: usize, offset: u32) -> Run<&mut Mbarrier> {
        let block = &mut self.ctas[cta];
        let address = block.shared.base + offset;
        let reason = "there is no mbarrier";
        let missing = FaultKind::Mbarrier { address, reason };
        Ok(block.mbarriers.get_mut(&offset).ok_or(missing)?)
    }

    pub(super) fn mbarrier_life(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        for lane in lanes(mask) {
            let (cta, offset) = self.mbarrier_at(at, lane, inst, 0)?;
            let author = self.author(at, lane, inst);
            if inst.op == Op::MbarInval {
                self.mbarrier(cta, offset).lane(lane)?;
                let by = Use { author, kind: Kind::WRITE, view: &self.clocks[author.slot] };
                let block = &mut self.ctas[cta];
                block.mbarriers.remove(&offset);
                block.shared.drop_mbarrier(offset as usize, by).lane(lane)?;
                continue;
            }
            let count = self.source(at, lane, inst, 1)?;
            if !(1..=MAX_COUNT).contains(&count) {
                return operand(format!("mbarrier.init with count {count}")).lane(lane);
            }
            let by = Use { author, kind: Kind::WRITE, view: &self.clocks[author.slot] };
            let slot = self.next_slot;
            self.next_slot += 1;
            let block = &mut self.ctas[cta];
            block.shared.make_mbarrier(offset as usize, by).lane(lane)?;
            let mbarrier = Mbarrier {
                slot,
                expected: count as u32,
                pending: count as u32,
                transactions: 0,
                phase: 0,
                gather: Gather::default(),
                done: Rc::default(),
                queue: Vec::new(),
                arrivals_in_flight: 0,
                author: author.slot,
                visible: false,
            };
            block.mbarriers.insert(offset, mbarrier);
        }
        Ok(())
    }

    /// `fence.proxy.async` and `fence.mbarrier_init`.
    pub(super) fn proxy_fence(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        for lane in lanes(mask) {
            let slot = self.slot(at, lane);
            if inst.op == Op::FenceProxyAsync {
                self.clocks[slot].fence(&mut self.memo);
                continue;
            }
            for block in &mut self.ctas {
                let own = block.mbarriers.values_mut().filter(|it| it.author == slot);
                own.for_each(|mbarrier| mbarrier.visible = true);
            }
        }
        Ok(())
    }

    /// Checks that a thread, or a copy that it issues, may use an mbarrier.
    pub(super) fn use_mbarrier(
        &mut self,
        cta: usize,
        offset: u32,
        author: Author,
        asynchronous: bool,
    ) -> Run {
        let visible = self.mbarrier(cta, offset)?.visible;
        let kind = if asynchronous && !visible { Kind::ASYNC_WRITE } else { Kind::WRITE };
        let by = Use { author, kind: kind.strong(true), view: &self.clocks[author.slot] };
        self.ctas[cta].shared.use_mbarrier(offset as usize, by)?;
        Ok(())
    }

    pub(super) fn mbarrier_arrive(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        // `arrive` has a result first, be it `_`.
        let first = usize::from(!matches!(inst.args[0], Arg::Addr(..)));
        for lane in lanes(mask) {
            let (cta, offset) = self.mbarrier_at(at, lane, inst, first)?;
            let author = self.author(at, lane, inst);
            self.use_mbarrier(cta, offset, author, false).lane(lane)?;
            let amount = match inst.args.get(first + 1) {
                Some(arg) => u64::from(self.value(at, lane, arg)? as u32),
                None => 1,
            };
            let arrives = inst.op == Op::MbarArrive;
            let expects = inst.op == Op::MbarExpectTx || inst.has(Mod::ExpectTx);
            if expects {
                self.add_transactions(cta, offset, amount as i64).lane(lane)?;
            }
            if inst.op == Op::MbarCompleteTx {
                self.add_transactions(cta, offset, -(amount as i64)).lane(lane)?;
            }
            if arrives {
                let count = if expects { 1 } else { amount };
                let released = !inst.has(Mod::Relaxed);
                let clock = released.then(|| self.clocks[author.slot].clone());
                let no_complete = inst.has(Mod::NoComplete);
                let mbarrier = self.mbarrier(cta, offset).lane(lane)?;
                let phase = mbarrier.phase;
                let room = u64::from(mbarrier.pending - mbarrier.arrivals_in_flight);
                if count > room || count == 0 || (no_complete && count == room) {
                    let address = self.ctas[cta].shared.base + offset;
                    let reason = "more arrivals than the phase expects";
                    return Err(FaultKind::Mbarrier { address, reason }).lane(lane);
                }
                mbarrier.pending -= count as u32;
                if let Some(clock) = clock {
                    mbarrier.gather.add(&clock);
                    self.clocks[author.slot].advance();
                }
                if first == 1 {
                    self.set(at, lane, &inst.args[0], phase.into())?;
                }
            }
            self.complete_phase(cta, offset).lane(lane)?;
        }
        Ok(())
    }

    fn add_transactions(&mut self, cta: usize, offset: u32, bytes: i64) -> Run {
        let address = self.ctas[cta].shared.base + offset;
        let mbarrier = self.mbarrier(cta, offset)?;
        mbarrier.transactions += bytes;
        let count = mbarrier.transactions;
        if count.unsigned_abs() > MAX_COUNT {
            return Err(FaultKind::MbarrierTx { address, count }.into());
        }
        Ok(())
    }

    /// Begins the next phase if the current one lacks nothing.
    fn complete_phase(&mut self, cta: usize, offset: u32) -> Run {
        let mbarrier = self.mbarrier(cta, offset)?;
        if !mbarrier.is_complete() {
            return Ok(());
        }
        mbarrier.phase += 1;
        mbarrier.pending = mbarrier.expected;
        let (slot, phase, done) = (mbarrier.slot, mbarrier.phase, mbarrier.done.clone());
        mbarrier.gather.add_clock(&done);
        mbarrier.gather.raise(slot, phase);
        mbarrier.done = mbarrier.gather.take();
        self.idle_rounds = 0;
        let warps = self.ctas.iter_mut().flat_map(|block| &mut block.warps);
        warps.for_each(|warp| warp.parked = 0);
        Ok(())
    }

    /// Lands all that the current phase waits for, in any order.
    fn land(&mut self, cta: usize, offset: u32) -> Run {
        let mbarrier = self.mbarrier(cta, offset)?;
        let mut queue = std::mem::take(&mut mbarrier.queue);
        mbarrier.arrivals_in_flight = 0;
        let (slot, epoch) = (mbarrier.slot, mbarrier.phase + 1);
        while !queue.is_empty() {
            let flight = queue.swap_remove(self.rng.below(queue.len()));
            for landing in flight.landings {
                let to = Author { slot, epoch, line: landing.author.line };
                let shared = &mut self.ctas[cta].shared;
                shared.land_copy(landing.offset, &landing.data, landing.author, to);
            }
            let mbarrier = self.mbarrier(cta, offset)?;
            mbarrier.pending -= u32::from(flight.arrives);
            mbarrier.transactions -= flight.bytes as i64;
        }
        self.complete_phase(cta, offset)
    }

    pub(super) fn mbarrier_test(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        let times_out = self.rng.below(8) == 0;
        for lane in lanes(mask) {
            let (cta, offset) = self.mbarrier_at(at, lane, inst, 1)?;
            if cta != at.cta {
                return operand("a wait for another block's mbarrier").lane(lane);
            }
            let author = self.author(at, lane, inst);
            self.use_mbarrier(cta, offset, author, false).lane(lane)?;
            let awaited = self.source(at, lane, inst, 2)?;
            let parity = inst.has(Mod::Parity);
            if parity && awaited > 1 {
                return operand(format!("a phase parity of {awaited}")).lane(lane);
            }
            let is_over = |mbarrier: &Mbarrier| {
                let phase = u64::from(mbarrier.phase);
                if parity { phase & 1 != awaited } else { phase != awaited }
            };
            let mbarrier = self.mbarrier(cta, offset).lane(lane)?;
            if !is_over(mbarrier) && mbarrier.can_land() && self.rng.below(2) == 0 {
                self.land(cta, offset).lane(lane)?;
            }
            let mbarrier = self.mbarrier(cta, offset).lane(lane)?;
            let over = is_over(mbarrier);
            let done = mbarrier.done.clone();
            if over && !times_out {
                if !inst.has(Mod::Relaxed) {
                    self.clocks[author.slot].acquire(&done, &mut self.memo);
                }
            } else if !over {
                self.warp_mut(at).parked |= 1 << lane;
            }
            self.set(at, lane, &inst.args[0], u64::from(over && !times_out))?;
        }
        Ok(())
    }

    /// Lands copies for one mbarrier, if there is one that lacks only them.
    pub(super) fn land_some(&mut self) -> Result<bool, (usize, Trap)> {
        let mut candidates = Vec::new();
        for (cta, block) in self.ctas.iter().enumerate() {
            let ready = block.mbarriers.iter().filter(|(_, mbarrier)| mbarrier.can_land());
            candidates.extend(ready.map(|(offset, _)| (cta, *offset)));
        }
        if candidates.is_empty() {
            return Ok(false);
        }
        let (cta, offset) = candidates[self.rng.below(candidates.len())];
        self.land(cta, offset).map_err(|trap| (cta, trap))?;
        Ok(true)
    }

    /// Checks that nothing is in flight when a block ends.
    pub(super) fn check_exit(&mut self, cta: usize) -> Run {
        let block = &self.ctas[cta];
        let queues = block.mbarriers.values().flat_map(|it| &it.queue);
        let stores = block.warps.iter().flat_map(|warp| &warp.stores);
        let mut lines =
            queues.map(|flight| flight.line).chain(stores.filter_map(|it| it.in_flight()));
        match lines.next() {
            Some(copy_line) => Err(FaultKind::ExitInFlight { copy_line }.into()),
            None => Ok(()),
        }
    }
}

impl Cta {
    /// What mbarriers of which a phase is incomplete wait for.
    pub(super) fn stuck_mbarriers(&self) -> Vec<String> {
        let stuck = |(offset, it): (&u32, &Mbarrier)| {
            let address = self.shared.base + offset;
            let flying: u64 = it.queue.iter().map(|flight| flight.bytes).sum();
            let begun = it.pending < it.expected || it.transactions != 0 || flying > 0;
            begun.then(|| {
                format!(
                    "mbarrier {address:#x} lacks {} arrivals and {} bytes, {flying} are in flight",
                    it.pending, it.transactions
                )
            })
        };
        self.mbarriers.iter().filter_map(stuck).collect()
    }
}
