//! The machine that runs the blocks of one cluster, an instruction of a warp at a time.

mod async_copy;
mod atomic;
mod barrier;
mod bits;
mod bulk;
mod collective;
mod convert;
mod descriptor;
mod float;
mod integer;
mod matrix;
mod mbarrier;
mod memory;
mod mma;
mod moves;
mod operand;
mod schedule;
mod warp;
mod wgmma;

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use crate::clock::{Clock, Memo, ThreadClock};
use crate::fault::{Blame, FaultKind, Trap};
use crate::global::Global;
use crate::launch::{Launch, Report};
use crate::module::{Inst, Kernel};
use crate::ops::Op;
use crate::rng::Rng;
use crate::shadow::Author;
use crate::shared::Shared;
use barrier::{Barrier, ClusterBarrier};
use mbarrier::Mbarrier;
use warp::Warp;

/// A block that runs.
pub(crate) struct Cta {
    pub(crate) id: [u32; 3],
    pub(crate) shared: Shared,
    warps: Vec<Warp>,
    barriers: Vec<Barrier>,
    /// By offset in shared memory.
    mbarriers: BTreeMap<u32, Mbarrier>,
    /// By warpgroup: the lines and operands of what its warps did together.
    warpgroups: Vec<Vec<(u32, [u64; 2])>>,
}

/// A cluster of blocks that runs.
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) launch: &'a Launch,
    pub(crate) global: &'a mut Global,
    /// Where the variables of the module lie in global memory.
    pub(crate) variables: &'a [u64],
    /// Parameter space.
    pub(crate) params: &'a [u8],
    pub(crate) report: &'a mut Report,
    pub(crate) rng: Rng,
    ctas: Vec<Cta>,
    /// By slot.
    clocks: Vec<ThreadClock>,
    memo: Memo,
    /// The first slot that no mbarrier has.
    next_slot: usize,
    steps: u64,
    /// How often nothing could run since a barrier or phase was last complete.
    idle_rounds: u32,
    cluster_barrier: ClusterBarrier,
    /// What releases of atomic locations published.
    published: HashMap<u64, Rc<Clock>>,
    uses_wgmma: bool,
}

/// The parts of a machine that the launch brings.
pub(crate) struct Setup<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) launch: &'a Launch,
    pub(crate) global: &'a mut Global,
    pub(crate) variables: &'a [u64],
    pub(crate) params: &'a [u8],
    pub(crate) report: &'a mut Report,
    /// The address of the first byte of shared memory.
    pub(crate) shared_base: u32,
}

/// A warp of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct At {
    cta: usize,
    warp: usize,
}

type Run<T = ()> = Result<T, Trap>;

const fn verb(writes: bool) -> &'static str {
    if writes { "written" } else { "read" }
}

impl<'a> Machine<'a> {
    /// A machine for the blocks `ids`, which form a cluster.
    pub(crate) fn new(setup: Setup<'a>, ids: &[[u32; 3]], seed: u64) -> Machine<'a> {
        let Setup { kernel, launch, global, variables, params, report, shared_base } = setup;
        let threads: u32 = launch.block.iter().product();
        let warps = threads.div_ceil(32) as usize;
        let shared = (kernel.dynamic_offset.max(kernel.shared_bytes)
            + u64::from(launch.dynamic_shared)) as usize;
        let cta = |id: &[u32; 3]| Cta {
            id: *id,
            shared: Shared::new(shared, shared_base),
            warps: (0..warps).map(|warp| Warp::new(kernel, threads, warp)).collect(),
            barriers: vec![Barrier::default(); 16],
            mbarriers: BTreeMap::new(),
            warpgroups: vec![Vec::new(); warps.div_ceil(4)],
        };
        let all_warps = warps * ids.len();
        let all_threads = all_warps * 32;
        let clock = |slot: usize| {
            let warp = all_threads + slot / 32;
            ThreadClock::new(slot, warp, warp + all_warps)
        };
        Machine {
            kernel,
            launch,
            global,
            variables,
            params,
            report,
            rng: Rng::new(seed),
            ctas: ids.iter().map(cta).collect(),
            clocks: (0..all_threads).map(clock).collect(),
            memo: Memo::default(),
            next_slot: all_threads + 2 * all_warps,
            steps: 0,
            idle_rounds: 0,
            cluster_barrier: ClusterBarrier::default(),
            published: HashMap::new(),
            uses_wgmma: kernel.code.iter().any(|inst| inst.op == Op::Wgmma),
        }
    }

    fn warp(&self, at: At) -> &Warp {
        &self.ctas[at.cta].warps[at.warp]
    }

    fn warp_mut(&mut self, at: At) -> &mut Warp {
        &mut self.ctas[at.cta].warps[at.warp]
    }

    /// The slot of a thread.
    fn slot(&self, at: At, lane: u32) -> usize {
        (at.cta * self.ctas[at.cta].warps.len() + at.warp) * 32 + lane as usize
    }

    /// The slot by which others know what the warp did collectively.
    fn warp_slot(&self, at: At) -> usize {
        self.clocks.len() + self.slot(at, 0) / 32
    }

    /// Checks that a lane may touch an allocation of global memory now.
    fn may_touch(&mut self, at: At, lane: u32, address: u64, writes: bool) -> Run {
        let Some(early) = &self.launch.early else { return Ok(()) };
        let is_early = || self.global.base_of(address).is_some_and(|base| early.contains(&base));
        if self.ctas[at.cta].warps[at.warp].waited >> lane & 1 == 1 || (!writes && is_early()) {
            return Ok(());
        }
        let what = format!("global address {address:#x} is {}", verb(writes));
        Err(FaultKind::BeforeWait { what }).lane(lane)
    }

    fn author(&self, at: At, lane: u32, inst: &Inst) -> Author {
        let slot = self.slot(at, lane);
        Author { slot, epoch: self.clocks[slot].epoch(), line: inst.line }
    }

    /// Executes an instruction for the lanes of `mask`, whose program counters are advanced.
    fn execute(&mut self, at: At, mask: u32, inst: &'a Inst) -> Run {
        match inst.op {
            Op::Mov => self.mov(at, mask, inst),
            Op::Cvta | Op::Isspacep | Op::Mapa | Op::GetCtaRank => self.address(at, mask, inst),
            Op::Cvt => self.convert(at, mask, inst),
            Op::Selp | Op::Slct | Op::Prmt => self.select(at, mask, inst),
            Op::Add
            | Op::Sub
            | Op::Mul
            | Op::Mad
            | Op::Div
            | Op::Min
            | Op::Max
            | Op::Abs
            | Op::Neg
                if !inst.ty().is_float() =>
            {
                self.integer(at, mask, inst)
            }
            Op::Rem | Op::Sad | Op::Dp4a | Op::Dp2a => self.integer(at, mask, inst),
            Op::Add | Op::Sub | Op::Mul | Op::Mad | Op::Fma | Op::Div | Op::Min | Op::Max => {
                self.float(at, mask, inst)
            }
            Op::Abs | Op::Neg | Op::Copysign | Op::Sqrt | Op::Rsqrt | Op::Rcp => {
                self.float(at, mask, inst)
            }
            Op::Ex2 | Op::Lg2 | Op::Sin | Op::Cos | Op::Tanh | Op::Testp => {
                self.float(at, mask, inst)
            }
            Op::And | Op::Or | Op::Xor | Op::Not | Op::Cnot | Op::Shl | Op::Shr | Op::Shf => {
                self.bits(at, mask, inst)
            }
            Op::Bfe | Op::Bfi | Op::Bfind | Op::Clz | Op::Popc | Op::Brev | Op::Lop3 => {
                self.bits(at, mask, inst)
            }
            Op::Setp | Op::Set => self.compare(at, mask, inst),
            Op::Ld => self.load(at, mask, inst),
            Op::St => self.store(at, mask, inst),
            Op::Atom | Op::Red => self.atomic(at, mask, inst),
            Op::Nop => Ok(()),
            Op::GridWait => {
                self.warp_mut(at).waited |= mask;
                Ok(())
            }
            Op::CreatePolicy => self.map(at, mask, inst, |_| Ok(0)),
            Op::Fence => self.fence(at, mask),
            Op::Bra => self.branch(at, mask, inst),
            Op::Exit | Op::Ret => self.exit(at, mask),
            Op::Trap => Err(FaultKind::Trap.into()),
            Op::BarSync | Op::BarArrive => self.bar(at, mask, inst),
            Op::WarpSync => self.warp_sync(at, mask),
            Op::Vote | Op::Match | Op::ActiveMask | Op::Elect => self.vote(at, mask, inst),
            Op::Shfl => self.shuffle(at, mask, inst),
            Op::Redux => self.reduce(at, mask, inst),
            Op::CpAsync => self.cp_async(at, mask, inst),
            Op::CpCommit => self.cp_commit(at, mask),
            Op::CpWait => self.cp_wait(at, mask, inst),
            Op::CpMbarrierArrive => self.cp_mbarrier_arrive(at, mask, inst),
            Op::Ldmatrix => self.ldmatrix(at, inst),
            Op::Stmatrix => self.stmatrix(at, inst),
            Op::Movmatrix => self.movmatrix(at, inst),
            Op::Mma => self.mma(at, inst),
            Op::MbarInit | Op::MbarInval => self.mbarrier_life(at, mask, inst),
            Op::MbarArrive | Op::MbarExpectTx | Op::MbarCompleteTx => {
                self.mbarrier_arrive(at, mask, inst)
            }
            Op::MbarTest => self.mbarrier_test(at, mask, inst),
            Op::FenceProxyAsync | Op::FenceMbarrierInit => self.proxy_fence(at, mask, inst),
            Op::ClusterArrive | Op::ClusterWait => self.cluster_bar(at, mask, inst),
            Op::Bulk | Op::BulkTensor => self.bulk(at, mask, inst),
            Op::BulkCommit => self.bulk_commit(at, mask),
            Op::BulkWait => self.bulk_wait(at, mask, inst),
            Op::Wgmma | Op::WgmmaFence | Op::WgmmaCommit | Op::WgmmaWait | Op::SetMaxNReg => {
                self.wgmma(at, inst)
            }
        }
    }
}
