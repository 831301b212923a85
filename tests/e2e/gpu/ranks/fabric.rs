//! What stands for NCCL between emulated devices: it moves bytes when the streams come to it, and
//! compares what the ranks mean.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Duration,
};

use ::cuda::{
    driver::{Answer, StreamHandle},
    nccl::{CommHandle, ID_BYTES, Nccl, NcclAnswer, NcclError, Sum, UniqueId},
    standin::{self, Machine, fault},
};
use ir::DType;

use crate::gpu::driver::Driver;

/// Between all devices.
#[derive(Debug, Default)]
pub(super) struct Fabric {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ids: u64,
    comms: HashMap<UniqueId, Comm>,
    /// By whom, for whom, of which communicator.
    mail: HashMap<Way, VecDeque<Mail>>,
    /// Mail so far.
    sent: u64,
    /// Where ranks did not mean the same.
    faults: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Comm {
    joined: BTreeSet<usize>,
    aborted: BTreeSet<usize>,
}

/// What a rank sends one other, in an order of their own.
const MESSAGE: &str = "message";

/// Communicator, by whom, for whom.
type Way = (UniqueId, usize, usize);

#[derive(Debug)]
struct Mail {
    number: u64,
    /// Which meeting of the communicator it is of, 0 of a message, which its place in the order of
    /// a pair's tells; and what kind.
    of: (u64, &'static str),
    data: Vec<u8>,
}

/// What a rank does in a meeting.
#[derive(Clone, Debug)]
enum Part {
    Send { peer: usize, from: u64, bytes: usize },
    Recv { peer: usize, to: u64, bytes: usize },
    Gather { from: u64, to: u64, bytes: usize },
    Add { from: u64, to: u64, sum: Sum, scatters: bool },
}

/// A rank's parts of a meeting.
#[derive(Debug)]
pub(super) struct Meeting {
    id: UniqueId,
    ranks: usize,
    rank: usize,
    seq: u64,
    parts: Vec<Part>,
    progress: Mutex<Progress>,
    fabric: Arc<Fabric>,
}

/// How far a rank is with its parts.
#[derive(Debug, Default)]
struct Progress {
    sent: Option<Vec<Sent>>,
    has_received: bool,
}

/// Mail that a rank has sent, and where it lies.
#[derive(Debug)]
struct Sent {
    way: Way,
    number: u64,
    kind: &'static str,
    from: u64,
    data: Vec<u8>,
}

impl Fabric {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Where ranks did not mean the same.
    pub(super) fn faults(&self) -> Vec<String> {
        self.state().faults.iter().cloned().collect()
    }
}

impl standin::Meeting for Meeting {
    /// Meets, if all have come: what is sent must have been taken too.
    fn attempt(&self, machine: &mut dyn Machine) -> Answer<bool> {
        let mut progress = self.progress.lock().unwrap();
        if progress.sent.is_none() {
            progress.sent = Some(self.send(machine)?);
        }
        if self.fabric.state().comms[&self.id].aborted.contains(&self.rank) {
            return Ok(true);
        }
        if !progress.has_received {
            progress.has_received = self.receive(machine)?;
        }
        let state = self.fabric.state();
        let is_taken = |Sent { way, number, .. }: &Sent| {
            !state.mail[way].iter().any(|mail| mail.number == *number)
        };
        let is_done = progress.has_received && progress.sent.iter().flatten().all(is_taken);
        drop(state);
        for Sent { way, kind, from, data, .. } in progress.sent.iter().flatten() {
            // A device may read what it sends until the end.
            if is_done && *kind == MESSAGE && read(machine, *from, data.len())? != *data {
                let fault = format!("what rank {} sends rank {} has changed", way.1, way.2);
                self.fabric.state().faults.insert(fault);
            }
        }
        Ok(is_done)
    }

    fn places(&self) -> Vec<(u64, u64)> {
        let mut places = Vec::new();
        for part in &self.parts {
            let (ends, bytes) = match *part {
                Part::Send { from: end, bytes, .. } | Part::Recv { to: end, bytes, .. } => {
                    ([end; 2], [bytes; 2])
                }
                Part::Gather { from, to, bytes } => ([from, to], [bytes, bytes * self.ranks]),
                Part::Add { from, to, sum, scatters } => {
                    let own = sum.elements * sum.dtype.size();
                    ([from, to], [self.added(sum, scatters), own])
                }
            };
            places.extend(ends.into_iter().zip(bytes.map(|bytes| bytes as u64)));
        }
        places
    }

    fn wait(&self) {
        let state = self.fabric.state();
        let _ = self.fabric.moved.wait_timeout(state, Duration::from_millis(5)).unwrap();
    }
}

fn read(machine: &mut dyn Machine, from: u64, bytes: usize) -> Answer<Vec<u8>> {
    let written: Option<Vec<u8>> = machine.read(from, bytes)?.into_iter().collect();
    written.ok_or_else(|| fault("a meeting", "of what nothing has written"))
}

impl Meeting {
    fn send(&self, machine: &mut dyn Machine) -> Answer<Vec<Sent>> {
        let mut sent = Vec::new();
        for (peer, kind, from, bytes) in self.sends() {
            let data = read(machine, from, bytes)?;
            let way = (self.id, self.rank, peer);
            let mut state = self.fabric.state();
            state.sent += 1;
            let number = state.sent;
            let mail = Mail { number, of: (self.seq_of(kind), kind), data: data.clone() };
            state.mail.entry(way).or_default().push_back(mail);
            sent.push(Sent { way, number, kind, from, data });
        }
        self.fabric.moved.notify_all();
        Ok(sent)
    }

    /// Takes what comes, if all is there.
    fn receive(&self, machine: &mut dyn Machine) -> Answer<bool> {
        let mut state = self.fabric.state();
        let receives = self.receives();
        // Several of one rank come one after the other.
        let mut seen: HashMap<usize, usize> = HashMap::new();
        for (peer, kind, bytes) in &receives {
            let at = seen.entry(*peer).or_default();
            let mail = state.mail.get(&(self.id, *peer, self.rank));
            let Some(mail) = mail.and_then(|mail| mail.get(*at)) else { return Ok(false) };
            *at += 1;
            let wanted = (self.seq_of(kind), *kind, *bytes);
            let found = (mail.of.0, mail.of.1, mail.data.len());
            if wanted != found {
                // Devices that do not mean the same wait for ever.
                let rank = self.rank;
                let fault = format!("rank {rank} wants {wanted:?}, rank {peer} sends {found:?}");
                state.faults.insert(fault);
                return Ok(false);
            }
        }
        let mut mail = Vec::new();
        for (peer, ..) in &receives {
            let of_peer = state.mail.get_mut(&(self.id, *peer, self.rank)).unwrap();
            mail.push(of_peer.pop_front().unwrap().data);
        }
        drop(state);
        self.take(mail, machine)?;
        self.fabric.moved.notify_all();
        Ok(true)
    }

    fn seq_of(&self, kind: &str) -> u64 {
        if kind == MESSAGE { 0 } else { self.seq }
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let rank = self.rank;
        (0..self.ranks).filter(move |peer| *peer != rank)
    }

    /// To whom, of which kind, from where, how many bytes.
    fn sends(&self) -> Vec<(usize, &'static str, u64, usize)> {
        let mut sends = Vec::new();
        for part in &self.parts {
            match part {
                Part::Send { peer, from, bytes } => sends.push((*peer, MESSAGE, *from, *bytes)),
                Part::Recv { .. } => {}
                Part::Gather { from, bytes, .. } => {
                    sends.extend(self.others().map(|peer| (peer, "gather", *from, *bytes)));
                }
                Part::Add { from, sum, scatters, .. } => {
                    let bytes = self.added(*sum, *scatters);
                    sends.extend(self.others().map(|peer| (peer, "sum", *from, bytes)));
                }
            }
        }
        sends
    }

    /// Of whom, of which kind, how many bytes.
    fn receives(&self) -> Vec<(usize, &'static str, usize)> {
        let mut receives = Vec::new();
        for part in &self.parts {
            match part {
                Part::Send { .. } => {}
                Part::Recv { peer, bytes, .. } => receives.push((*peer, MESSAGE, *bytes)),
                Part::Gather { bytes, .. } => {
                    receives.extend(self.others().map(|peer| (peer, "gather", *bytes)));
                }
                Part::Add { sum, scatters, .. } => {
                    let bytes = self.added(*sum, *scatters);
                    receives.extend(self.others().map(|peer| (peer, "sum", bytes)));
                }
            }
        }
        receives
    }

    /// Bytes that each rank has of a sum.
    fn added(&self, sum: Sum, scatters: bool) -> usize {
        sum.elements * sum.dtype.size() * if scatters { self.ranks } else { 1 }
    }

    /// Puts what came in its place.
    fn take(&self, mail: Vec<Vec<u8>>, machine: &mut dyn Machine) -> Answer {
        let mut mail = mail.into_iter();
        for part in &self.parts {
            match part {
                Part::Send { .. } => {}
                Part::Recv { to, .. } => machine.write(*to, &mail.next().unwrap()),
                Part::Gather { from, to, bytes } => {
                    let place = |rank: usize| to + (rank * bytes) as u64;
                    let own = read(machine, *from, *bytes)?;
                    machine.write(place(self.rank), &own);
                    for peer in self.others() {
                        machine.write(place(peer), &mail.next().unwrap());
                    }
                }
                Part::Add { from, to, sum, scatters } => {
                    let bytes = self.added(*sum, *scatters);
                    let own = read(machine, *from, bytes)?;
                    let all = (0..self.ranks).map(|rank| match rank == self.rank {
                        true => own.clone(),
                        false => mail.next().unwrap(),
                    });
                    let added = add(&all.collect::<Vec<_>>());
                    let own = if *scatters { bytes / self.ranks } else { bytes };
                    let start = if *scatters { own * self.rank } else { 0 };
                    machine.write(*to, &added[start..start + own]);
                }
            }
        }
        Ok(())
    }
}

/// The sum of vectors of f32 from the last to the first.
fn add(all: &[Vec<u8>]) -> Vec<u8> {
    let numbers = |bytes: &Vec<u8>| -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()
    };
    let mut sum = vec![0.0f32; all[0].len() / 4];
    for bytes in all.iter().rev() {
        sum.iter_mut().zip(numbers(bytes)).for_each(|(sum, x)| *sum += x);
    }
    sum.into_iter().flat_map(f32::to_ne_bytes).collect()
}

/// NCCL as one device has it.
#[derive(Debug)]
pub(super) struct Emulated {
    fabric: Arc<Fabric>,
    device: Arc<Driver>,
    state: Mutex<Own>,
}

#[derive(Debug, Default)]
struct Own {
    /// By handle: id, ranks, this one, meetings.
    comms: Vec<(UniqueId, usize, usize, u64)>,
    group: Option<Vec<(CommHandle, StreamHandle, Part)>>,
}

impl Emulated {
    pub(super) fn new(fabric: Arc<Fabric>, device: Arc<Driver>) -> Emulated {
        Emulated { fabric, device, state: Mutex::default() }
    }

    fn add(&self, comm: CommHandle, stream: StreamHandle, part: Part) -> NcclAnswer {
        let mut own = self.state.lock().unwrap();
        own.group.as_mut().expect("calls in a group").push((comm, stream, part));
        Ok(())
    }

    fn id(&self, comm: CommHandle) -> (UniqueId, usize, usize) {
        let (id, ranks, rank, _) = self.state.lock().unwrap().comms[comm.0];
        (id, ranks, rank)
    }
}

fn refused(text: &str) -> NcclError {
    NcclError { call: "emulated", text: text.into() }
}

impl Nccl for Emulated {
    fn unique_id(&self) -> NcclAnswer<UniqueId> {
        let mut state = self.fabric.state();
        state.ids += 1;
        let mut id = [0; ID_BYTES];
        id[..8].copy_from_slice(&state.ids.to_le_bytes());
        Ok(id)
    }

    fn init_rank(&self, ranks: usize, id: &UniqueId, rank: usize) -> NcclAnswer<CommHandle> {
        let is_new = self.fabric.state().comms.entry(*id).or_default().joined.insert(rank);
        if !is_new || rank >= ranks {
            return Err(refused("a rank is there twice"));
        }
        let mut own = self.state.lock().unwrap();
        own.comms.push((*id, ranks, rank, 0));
        Ok(CommHandle(own.comms.len() - 1))
    }

    fn is_ready(&self, comm: CommHandle) -> NcclAnswer<bool> {
        let (id, ranks, _) = self.id(comm);
        let state = self.fabric.state();
        Ok(state.comms[&id].joined.len() == ranks)
    }

    fn group_start(&self) -> NcclAnswer {
        self.state.lock().unwrap().group = Some(Vec::new());
        Ok(())
    }

    fn group_end(&self) -> NcclAnswer {
        let mut own = self.state.lock().unwrap();
        let calls = own.group.take().expect("a group");
        let Some((comm, stream, _)) = calls.first().cloned() else { return Ok(()) };
        assert!(calls.iter().all(|(c, s, _)| (*c, *s) == (comm, stream)));
        let (id, ranks, rank, meetings) = &mut own.comms[comm.0];
        *meetings += 1;
        let parts = calls.into_iter().map(|(.., part)| part).collect();
        let (id, ranks, rank, seq) = (*id, *ranks, *rank, *meetings);
        let fabric = self.fabric.clone();
        let progress = Mutex::default();
        let meeting = Meeting { id, ranks, rank, seq, parts, progress, fabric };
        self.device.meet(Arc::new(meeting), stream);
        Ok(())
    }

    fn send(
        &self,
        comm: CommHandle,
        from: u64,
        bytes: usize,
        peer: usize,
        stream: StreamHandle,
    ) -> NcclAnswer {
        self.add(comm, stream, Part::Send { peer, from, bytes })
    }

    fn recv(
        &self,
        comm: CommHandle,
        to: u64,
        bytes: usize,
        peer: usize,
        stream: StreamHandle,
    ) -> NcclAnswer {
        self.add(comm, stream, Part::Recv { peer, to, bytes })
    }

    fn all_gather(
        &self,
        comm: CommHandle,
        from: u64,
        to: u64,
        bytes: usize,
        stream: StreamHandle,
    ) -> NcclAnswer {
        self.add(comm, stream, Part::Gather { from, to, bytes })
    }

    fn all_reduce(
        &self,
        comm: CommHandle,
        from: u64,
        to: u64,
        sum: Sum,
        stream: StreamHandle,
    ) -> NcclAnswer {
        assert_eq!(sum.dtype, DType::F32);
        self.add(comm, stream, Part::Add { from, to, sum, scatters: false })
    }

    fn reduce_scatter(
        &self,
        comm: CommHandle,
        from: u64,
        to: u64,
        sum: Sum,
        stream: StreamHandle,
    ) -> NcclAnswer {
        assert_eq!(sum.dtype, DType::F32);
        self.add(comm, stream, Part::Add { from, to, sum, scatters: true })
    }

    fn finalize(&self, _: CommHandle) -> NcclAnswer {
        Ok(())
    }

    fn destroy(&self, comm: CommHandle) -> NcclAnswer {
        let (id, _, rank) = self.id(comm);
        let is_aborted = self.fabric.state().comms[&id].aborted.contains(&rank);
        assert!(!is_aborted, "an aborted communicator is gone");
        Ok(())
    }

    fn abort(&self, comm: CommHandle) -> NcclAnswer {
        let (id, _, rank) = self.id(comm);
        self.fabric.state().comms.get_mut(&id).unwrap().aborted.insert(rank);
        self.fabric.moved.notify_all();
        Ok(())
    }
}
