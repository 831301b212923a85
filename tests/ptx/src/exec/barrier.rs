//! Barriers of blocks and clusters, and what happens when threads exit.
//!
//! A barrier without a count expects all warps that have a thread which has not exited.

use std::rc::Rc;

use super::warp::lanes;
use super::{At, Cta, Machine, Run};
use crate::clock::{Clock, Gather};
use crate::fault::{Blame, FaultKind};
use crate::mods::Mod;
use crate::module::Inst;
use crate::ops::Op;

/// One of the sixteen barriers of a block.
#[derive(Clone, Default)]
pub(super) struct Barrier {
    /// Threads that arrived; whole warps count 32.
    arrived: u32,
    /// The count that the participants gave.
    expected: Option<u32>,
    /// Warps and lanes that wait.
    waiting: Vec<(usize, u32)>,
    gather: Gather,
}

/// The barrier of a cluster.
#[derive(Default)]
pub(super) struct ClusterBarrier {
    arrived: u32,
    phase: u32,
    gather: Gather,
    done: Rc<Clock>,
}

impl<'a> Machine<'a> {
    pub(super) fn bar(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        let id = self.uniform(at, mask, inst, 0)? as u32;
        let wrong = |reason: String| Err(FaultKind::Barrier { id, reason }.into());
        if id >= 16 {
            return wrong("there are 16 barriers".to_owned());
        }
        let count = match inst.args.get(1) {
            Some(_) => Some(self.uniform(at, mask, inst, 1)? as u32),
            None => None,
        };
        if let Some(count) = count
            && (count == 0 || !count.is_multiple_of(32) || count > 1024)
        {
            return wrong(format!("the thread count {count} is no multiple of 32 up to 1024"));
        }
        let whole = mask == self.warp(at).live();
        let threads = if whole { 32 } else { mask.count_ones() };
        let barrier = &mut self.ctas[at.cta].barriers[id as usize];
        if barrier.arrived > 0 && barrier.expected != count {
            let show = |count: Option<u32>| count.map_or("all".to_owned(), |n| n.to_string());
            let (own, other) = (show(count), show(barrier.expected));
            return wrong(format!("expects {own} threads, others expect {other}"));
        }
        barrier.expected = count;
        barrier.arrived += threads;
        self.ctas[at.cta].warps[at.warp].blocked |= if inst.op == Op::BarSync { mask } else { 0 };
        for lane in lanes(mask) {
            let slot = self.slot(at, lane);
            self.ctas[at.cta].barriers[id as usize].gather.add(&self.clocks[slot]);
            self.clocks[slot].advance();
        }
        if inst.op == Op::BarSync {
            self.ctas[at.cta].barriers[id as usize].waiting.push((at.warp, mask));
        }
        self.complete_barrier(at.cta, id)
    }

    /// Lets the threads of a barrier go if all have come.
    fn complete_barrier(&mut self, cta: usize, id: u32) -> Run {
        let block = &mut self.ctas[cta];
        let all = block.live_warps() * 32;
        let barrier = &mut block.barriers[id as usize];
        let expected = barrier.expected.unwrap_or(all);
        if barrier.arrived == 0 || barrier.arrived < expected {
            return Ok(());
        }
        if barrier.arrived > expected {
            let reason = format!("{} threads came, {expected} are expected", barrier.arrived);
            return Err(FaultKind::Barrier { id, reason }.into());
        }
        let mut done = std::mem::take(barrier);
        self.idle_rounds = 0;
        let clock = done.gather.take();
        for (warp, mask) in done.waiting {
            self.ctas[cta].warps[warp].blocked &= !mask;
            for lane in lanes(mask) {
                let slot = self.slot(At { cta, warp }, lane);
                self.clocks[slot].acquire(&clock, &mut self.memo);
            }
        }
        Ok(())
    }

    pub(super) fn warp_sync(&mut self, at: At, mask: u32) -> Run {
        let mut gather = Gather::default();
        for lane in lanes(mask) {
            gather.add(&self.clocks[self.slot(at, lane)]);
        }
        let clock = gather.take();
        for lane in lanes(mask) {
            let slot = self.slot(at, lane);
            self.clocks[slot].acquire(&clock, &mut self.memo);
            self.clocks[slot].advance();
        }
        Ok(())
    }

    pub(super) fn exit(&mut self, at: At, mask: u32) -> Run {
        // A grid that waits for this one has to have waited for all before.
        if self.launch.early.is_some() && mask & !self.warp(at).waited != 0 {
            return Err(FaultKind::BeforeWait { what: "the end of a thread".into() }.into());
        }
        self.warp_mut(at).exited |= mask;
        for id in 0..16 {
            if self.ctas[at.cta].barriers[id as usize].expected.is_none() {
                self.complete_barrier(at.cta, id)?;
            }
        }
        self.complete_cluster_barrier();
        Ok(())
    }

    pub(super) fn cluster_bar(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        let id = 16;
        for lane in lanes(mask) {
            let slot = self.slot(at, lane);
            let phase = self.cluster_barrier.phase;
            let arrival = self.warp(at).cluster_arrival[lane as usize];
            match (inst.op, arrival) {
                (Op::ClusterArrive, None) => {
                    self.cluster_barrier.arrived += 1;
                    if !inst.has(Mod::Relaxed) {
                        self.cluster_barrier.gather.add(&self.clocks[slot]);
                        self.clocks[slot].advance();
                    }
                    self.warp_mut(at).cluster_arrival[lane as usize] = Some(phase);
                }
                (Op::ClusterArrive, Some(_)) => {
                    let reason = "a thread arrives twice at the cluster's barrier".to_owned();
                    return Err(FaultKind::Barrier { id, reason }).lane(lane);
                }
                (_, None) => {
                    let reason = "a thread waits for the cluster without arriving".to_owned();
                    return Err(FaultKind::Barrier { id, reason }).lane(lane);
                }
                (_, Some(arrived)) if arrived < phase => self.leave_cluster_barrier(at, lane),
                (_, Some(_)) => self.warp_mut(at).blocked |= 1 << lane,
            }
        }
        self.complete_cluster_barrier();
        Ok(())
    }

    fn leave_cluster_barrier(&mut self, at: At, lane: u32) {
        let slot = self.slot(at, lane);
        let done = self.cluster_barrier.done.clone();
        self.clocks[slot].acquire(&done, &mut self.memo);
        let warp = self.warp_mut(at);
        warp.cluster_arrival[lane as usize] = None;
        warp.blocked &= !(1 << lane);
    }

    fn complete_cluster_barrier(&mut self) {
        let live = |cta: &Cta| cta.warps.iter().map(|warp| warp.live().count_ones()).sum::<u32>();
        let expected: u32 = self.ctas.iter().map(live).sum();
        let barrier = &mut self.cluster_barrier;
        if barrier.arrived == 0 || barrier.arrived < expected {
            return;
        }
        barrier.arrived = 0;
        barrier.phase += 1;
        barrier.done = barrier.gather.take();
        for cta in 0..self.ctas.len() {
            for warp in 0..self.ctas[cta].warps.len() {
                let at = At { cta, warp };
                let waits = |lane: &u32| self.warp(at).cluster_arrival[*lane as usize].is_some();
                let waiting: Vec<u32> = lanes(self.warp(at).blocked).filter(waits).collect();
                waiting.into_iter().for_each(|lane| self.leave_cluster_barrier(at, lane));
            }
        }
    }
}

impl Cta {
    fn live_warps(&self) -> u32 {
        self.warps.iter().filter(|warp| warp.live() != 0).count() as u32
    }
}
