//! Ranks that meet each other, one collective after the other.

use std::{
    collections::BTreeMap,
    marker::PhantomData,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, ThreadId},
    time::Duration,
};

use ir::DType;

use super::{
    CollectiveError, Reduce, Shards,
    call::{Call, Op},
    started::Worker,
    watch::lock,
    world::Shared,
};

/// How often a rank that waits for its own collectives looks whether the job has failed.
const GLANCE: Duration = Duration::from_millis(50);

/// Some ranks of a job, this one among them.
///
/// All members call the same collectives in the same order. What was started before is done before:
/// a collective begins when those of the same group that this rank asked for earlier have ended.
/// Groups do not wait for each other.
#[derive(Clone, Debug)]
pub struct Group(pub(super) Arc<Core>);

#[derive(Debug)]
pub(super) struct Core {
    pub(super) shared: Arc<Shared>,
    id: u64,
    /// As ranks of the job, ascending.
    pub(super) members: Vec<usize>,
    /// This rank's place among them.
    pub(super) index: usize,
    line: Mutex<Line>,
    moved: Condvar,
    seq: AtomicU64,
    sent: Mutex<BTreeMap<usize, u64>>,
    received: Mutex<BTreeMap<usize, u64>>,
    pub(super) worker: Worker,
}

#[derive(Debug, Default)]
struct Line {
    next: u64,
    current: u64,
    /// Whose turn it is.
    holder: Option<ThreadId>,
}

/// A place in the line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket(u64);

/// The right to run collectives of a group now.
#[derive(Debug)]
pub struct Turn<'a> {
    pub(super) core: &'a Core,
    /// Stays on its thread.
    thread: PhantomData<*const ()>,
}

impl Group {
    pub(super) fn new(core: Core) -> Group {
        Group(Arc::new(core))
    }

    /// Number of members.
    pub fn size(&self) -> usize {
        self.0.members.len()
    }

    /// This rank's place among the members.
    pub fn index(&self) -> usize {
        self.0.index
    }

    /// The members as ranks of the job, ascending: the order in which they are reduced.
    pub fn members(&self) -> &[usize] {
        &self.0.members
    }

    /// Says which step this rank is at, for reports.
    pub fn set_step(&self, step: u64) {
        self.0.shared.transport.watch().set_step(self.0.shared.rank(), step);
    }

    /// Waits until the collectives that were started before have ended.
    ///
    /// # Errors
    /// [`CollectiveError::Failed`]; [`CollectiveError::Usage`] on a thread that has the turn.
    pub fn turn(&self) -> Result<Turn<'_>, CollectiveError> {
        self.0.check_reentry("turn")?;
        self.0.turn(self.0.ticket())
    }

    /// [`Turn::all_reduce`], now.
    ///
    /// # Errors
    /// As there.
    pub fn all_reduce(
        &self,
        reduce: Reduce,
        dtype: DType,
        data: &mut [u8],
    ) -> Result<(), CollectiveError> {
        self.turn()?.all_reduce(reduce, dtype, data)
    }

    /// [`Turn::reduce_scatter`], now.
    ///
    /// # Errors
    /// As there.
    pub fn reduce_scatter(
        &self,
        reduce: Reduce,
        dtype: DType,
        shards: &Shards,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<(), CollectiveError> {
        self.turn()?.reduce_scatter(reduce, dtype, shards, input, output)
    }

    /// [`Turn::all_gather`], now.
    ///
    /// # Errors
    /// As there.
    pub fn all_gather(
        &self,
        dtype: DType,
        shards: &Shards,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<(), CollectiveError> {
        self.turn()?.all_gather(dtype, shards, input, output)
    }

    /// [`Turn::all_to_all`], now.
    ///
    /// # Errors
    /// As there.
    pub fn all_to_all(
        &self,
        dtype: DType,
        (sent, input): (&Shards, &[u8]),
        (received, output): (&Shards, &mut [u8]),
    ) -> Result<(), CollectiveError> {
        self.turn()?.all_to_all(dtype, (sent, input), (received, output))
    }

    /// [`Turn::broadcast`], now.
    ///
    /// # Errors
    /// As there.
    pub fn broadcast(&self, root: usize, data: &mut [u8]) -> Result<(), CollectiveError> {
        self.turn()?.broadcast(root, data)
    }

    /// [`Turn::barrier`], now.
    ///
    /// # Errors
    /// As there.
    pub fn barrier(&self) -> Result<(), CollectiveError> {
        self.turn()?.barrier()
    }
}

impl Core {
    pub(super) fn new(shared: Arc<Shared>, id: u64, members: Vec<usize>) -> Core {
        let index = members.iter().position(|&rank| rank == shared.rank()).unwrap_or(0);
        Core {
            shared,
            id,
            members,
            index,
            line: Mutex::default(),
            moved: Condvar::new(),
            seq: AtomicU64::new(0),
            sent: Mutex::default(),
            received: Mutex::default(),
            worker: Worker::default(),
        }
    }

    /// A place at the end of the line.
    pub(super) fn ticket(&self) -> Ticket {
        let mut line = lock(&self.line);
        line.next += 1;
        Ticket(line.next - 1)
    }

    /// Waits for its turn.
    pub(super) fn turn(&self, ticket: Ticket) -> Result<Turn<'_>, CollectiveError> {
        let Ticket(place) = ticket;
        let mut line = lock(&self.line);
        while line.current != place {
            // After a failure nobody waits to be let on, so the line may stand still.
            if let Some(failure) = self.shared.transport.watch().failure() {
                return Err(self.shared.surface(&failure));
            }
            let wait = self.moved.wait_timeout(line, GLANCE);
            line = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        line.holder = Some(thread::current().id());
        drop(line);
        Ok(Turn { core: self, thread: PhantomData })
    }

    /// Refuses to wait for what waits for this thread.
    pub(super) fn check_reentry(&self, op: &'static str) -> Result<(), CollectiveError> {
        if lock(&self.line).holder != Some(thread::current().id()) {
            return Ok(());
        }
        let reason = "called while this thread has the turn of the same group".into();
        Err(CollectiveError::Usage { op, reason })
    }

    /// The next collective of the group.
    pub(super) fn call(&self, op: Op, dtype: DType, elements: usize, layout: u64) -> Call {
        let seq = self.seq.fetch_add(1, Relaxed) + 1;
        self.numbered(seq, op, dtype, elements, layout)
    }

    /// The next message to a rank of the job.
    pub(super) fn call_to(&self, rank: usize, bytes: usize) -> Call {
        self.numbered(self.next_to(rank), Op::Send, DType::U8, bytes, 0)
    }

    /// A message that goes between devices.
    pub(super) fn announcement(&self, seq: u64, bytes: u64, digest: u64) -> Call {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.numbered(seq, Op::Send, DType::U8, bytes, digest)
    }

    /// The number of the next message to a rank of the job.
    pub(super) fn next_to(&self, rank: usize) -> u64 {
        advance(&self.sent, rank)
    }

    /// The number of the next message from a rank of the job.
    pub(super) fn next_from(&self, rank: usize) -> u64 {
        advance(&self.received, rank)
    }

    /// A message from a rank of the job.
    pub(super) fn call_from(&self, seq: u64, bytes: usize) -> Call {
        self.numbered(seq, Op::Send, DType::U8, bytes, 0)
    }

    fn numbered(&self, seq: u64, op: Op, dtype: DType, elements: usize, layout: u64) -> Call {
        let step = self.shared.transport.watch().step(self.shared.rank());
        Call { group: self.id, seq, op, dtype, elements: elements as u64, layout, step }
    }
}

fn advance(numbers: &Mutex<BTreeMap<usize, u64>>, rank: usize) -> u64 {
    let mut numbers = lock(numbers);
    let number = numbers.entry(rank).or_default();
    *number += 1;
    *number
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut line = lock(&self.core.line);
        line.current += 1;
        line.holder = None;
        drop(line);
        self.core.moved.notify_all();
    }
}
