//! The state of a warp: registers and, for each lane, where it is and what it waits for.

use std::rc::Rc;

use super::async_copy::Copies;
use super::bulk::Stores;
use super::wgmma::Wgmma;
use crate::clock::Clock;
use crate::module::Kernel;

/// A mask of all lanes.
pub(super) const ALL: u32 = u32::MAX;

/// A warp. Lanes have their own program counters; those with the least one run first.
pub(super) struct Warp {
    /// By register, then lane.
    pub(super) regs: Vec<[u64; 32]>,
    /// Which lanes of a register were written.
    pub(super) defined: Vec<u32>,
    pub(super) pc: [usize; 32],
    /// The lanes that exist.
    pub(super) launched: u32,
    pub(super) exited: u32,
    /// Lanes that wait at a barrier of the block or cluster.
    pub(super) blocked: u32,
    /// Lanes at an instruction that others have to execute with them.
    pub(super) held: u32,
    /// Lanes that found an mbarrier's phase incomplete.
    pub(super) parked: u32,
    /// By lane.
    pub(super) local: Vec<Vec<Option<u8>>>,
    /// By lane.
    pub(super) copies: Vec<Copies>,
    /// By lane.
    pub(super) stores: Vec<Stores>,
    pub(super) wgmma: Wgmma,
    /// The phase of the cluster barrier at which a lane arrived.
    pub(super) cluster_arrival: [Option<u32>; 32],
    /// How often the warp acted collectively.
    pub(super) collective_epoch: u32,
    /// Lanes that executed a memory fence.
    pub(super) fenced: u32,
    /// Lanes that have waited for the grids before this one.
    pub(super) waited: u32,
    /// By lane: what relaxed reads saw published, for the next fence.
    pub(super) observed: Vec<Vec<Rc<Clock>>>,
}

impl Warp {
    pub(super) fn new(kernel: &Kernel, threads: u32, index: usize) -> Warp {
        let lanes = threads.saturating_sub(index as u32 * 32).min(32);
        Warp {
            regs: vec![[0; 32]; kernel.regs.len()],
            defined: vec![0; kernel.regs.len()],
            pc: [0; 32],
            launched: ALL >> (32 - lanes.clamp(1, 32)),
            exited: 0,
            blocked: 0,
            held: 0,
            parked: 0,
            local: vec![Vec::new(); 32],
            copies: vec![Copies::default(); 32],
            stores: vec![Stores::default(); 32],
            wgmma: Wgmma::new(kernel.regs.len()),
            cluster_arrival: [None; 32],
            collective_epoch: 0,
            fenced: 0,
            waited: 0,
            observed: vec![Vec::new(); 32],
        }
    }

    /// The lanes that exist and have not exited.
    pub(super) fn live(&self) -> u32 {
        self.launched & !self.exited
    }

    /// The lanes that can execute their next instruction on their own.
    pub(super) fn ready(&self) -> u32 {
        self.live() & !(self.blocked | self.held | self.parked)
    }

    /// Whether a step of the warp does something, be it to find a fault.
    pub(super) fn is_runnable(&self) -> bool {
        self.ready() != 0 || (self.held != 0 && self.blocked | self.parked == 0)
    }

    /// The lanes at `pc` that are at no barrier.
    pub(super) fn group(&self, pc: usize) -> u32 {
        let candidates = self.live() & !self.blocked;
        lanes(candidates).filter(|lane| self.pc[*lane as usize] == pc).fold(0, |m, l| m | 1 << l)
    }
}

/// The lanes of a mask, in order.
pub(super) fn lanes(mut mask: u32) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane)
    })
}
