//! A rank's view of the job.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use ir::DType;

use super::{
    Cause, CollectiveError, Engine, Failure, Group, Mesh, Shards, call::Call, group::Core,
    log::FlightLog, process::machine, shards::digest, transport::Transport, watch::lock,
};

/// Limits, and where to report to.
#[derive(Clone)]
#[non_exhaustive]
pub struct Options {
    /// How long a rank waits for another one at any time: 25 s.
    pub deadline: Duration,
    /// After how long without a sign of life a rank is taken to have stopped, whether it is waited
    /// for or not: 20 s. Of other processes only.
    pub silence: Duration,
    /// How long the ranks may take to come together: 120 s.
    pub join_deadline: Duration,
    /// How many collectives the flight log holds: 64.
    pub log_entries: usize,
    /// By what the ranks talk, if not by what the launcher suggests.
    pub engine: Option<Engine>,
    /// Where the MPI part is, if not beside the program or where `BROLLY_MPI` says.
    pub mpi_library: Option<PathBuf>,
    /// Receives what is to be said when the job has failed: by default, standard error.
    pub report: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            deadline: Duration::from_secs(25),
            silence: Duration::from_secs(20),
            join_deadline: Duration::from_secs(120),
            log_entries: 64,
            engine: None,
            mpi_library: None,
            report: Arc::new(|text| eprint!("{text}")),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { deadline, silence, join_deadline, log_entries, engine, .. } = self;
        f.debug_struct("Options")
            .field("deadline", deadline)
            .field("silence", silence)
            .field("join_deadline", join_deadline)
            .field("log_entries", log_entries)
            .field("engine", engine)
            .finish_non_exhaustive()
    }
}

/// One rank of a job. When it is dropped, the rank has ended, or failed if it is panicking.
#[derive(Debug)]
pub struct World {
    shared: Arc<Shared>,
    groups: Mutex<BTreeMap<u64, Group>>,
}

/// What a rank's groups have in common.
pub(super) struct Shared {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) ranks: usize,
    pub(super) log: FlightLog,
    report: Arc<dyn Fn(&str) + Send + Sync>,
    has_reported: AtomicBool,
}

impl World {
    pub(super) fn new(transport: Arc<dyn Transport>, ranks: usize, options: &Options) -> World {
        let shared = Arc::new(Shared {
            transport,
            ranks,
            log: FlightLog::new(options.log_entries),
            report: options.report.clone(),
            has_reported: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&shared);
        let hook = move |failure: &Failure| {
            if let Some(shared) = weak.upgrade() {
                shared.report(failure);
            }
        };
        shared.transport.watch().add_hook(shared.rank(), Box::new(hook));
        World { shared, groups: Mutex::default() }
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.shared.rank()
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> usize {
        self.shared.ranks
    }

    /// Says which step it is, for reports.
    pub fn set_step(&self, step: u64) {
        self.shared.transport.watch().set_step(self.rank(), step);
    }

    /// All ranks.
    pub fn all(&self) -> Group {
        self.group_of("world", (0..self.ranks()).collect())
    }

    /// This rank and those that differ from it along `axes` alone.
    ///
    /// # Errors
    /// [`CollectiveError::Mesh`] if the mesh has another number of ranks, or no such axis.
    pub fn group(&self, mesh: &Mesh, axes: &[&str]) -> Result<Group, CollectiveError> {
        if mesh.ranks() != self.ranks() {
            let (wants, has) = (mesh.ranks(), self.ranks());
            let reason = format!("its axes want {wants} ranks, and the job has {has}");
            return Err(CollectiveError::Mesh(reason));
        }
        let members = mesh.members(self.rank(), axes)?;
        Ok(self.group_of(&axes.join("+"), members))
    }

    /// These ranks, this one among them, in ascending order; all of them use the same name.
    ///
    /// # Errors
    /// [`CollectiveError::Usage`] if the ranks are not in order, not there, or without this one.
    pub fn group_of_ranks(&self, name: &str, ranks: &[usize]) -> Result<Group, CollectiveError> {
        let is_there = ranks.last().is_some_and(|last| *last < self.ranks());
        let is_in_order = ranks.is_sorted_by(|a, b| a < b);
        if !is_there || !is_in_order || !ranks.contains(&self.rank()) {
            let (rank, size) = (self.rank(), self.ranks());
            let reason = format!("{ranks:?} is no group of rank {rank} of {size}");
            return Err(CollectiveError::Usage { op: "group", reason });
        }
        Ok(self.group_of(name, ranks.to_vec()))
    }

    /// Compares what all ranks have to hold alike, such as the digest of the schedule, at most 64
    /// bytes of it.
    ///
    /// # Errors
    /// [`CollectiveError::Differs`], the same on every rank, with the ranks that hold something
    /// else than most do, or than the first one if there is no most.
    pub fn agree(&self, what: &str, value: &[u8]) -> Result<(), CollectiveError> {
        const ROOM: usize = 64;
        if value.len() > ROOM {
            let reason = format!("{} bytes are more than {ROOM}; hash them", value.len());
            return Err(CollectiveError::Usage { op: "agree", reason });
        }
        let mut own = [0u8; ROOM + 1];
        own[..value.len()].copy_from_slice(value);
        own[ROOM] = u8::try_from(value.len()).unwrap_or(u8::MAX);
        let shards = Shards::even(own.len() * self.ranks(), self.ranks());
        let mut all = vec![0; shards.elements()];
        self.all().all_gather(DType::U8, &shards, &own, &mut all)?;
        let values: Vec<&[u8]> = all.chunks(own.len()).collect();
        let votes = |value: &[u8]| values.iter().filter(|other| **other == value).count();
        let most = values.iter().map(|value| votes(value)).max().unwrap_or(0);
        let usual = values.iter().find(|value| votes(value) == most);
        let differs = |rank: &usize| Some(&values[*rank]) != usual;
        let ranks: Vec<usize> = (0..values.len()).filter(differs).collect();
        if ranks.is_empty() {
            return Ok(());
        }
        // Who returns sooner and ends must not take the answer from those that are still at it.
        let _ = self.all().barrier();
        Err(CollectiveError::Differs { what: what.to_owned(), ranks })
    }

    /// This rank's number among those of its machine, which all ranks find out together.
    ///
    /// # Errors
    /// [`CollectiveError::Failed`] if the job has failed.
    pub fn local_rank(&self) -> Result<usize, CollectiveError> {
        let shards = Shards::even(self.ranks() * size_of::<u64>(), self.ranks());
        let mut all = vec![0; shards.elements()];
        let own = machine().to_le_bytes();
        self.all().all_gather(DType::U8, &shards, &own, &mut all)?;
        let (machines, _) = all.as_chunks();
        Ok(machines[..self.rank()].iter().filter(|machine| **machine == own).count())
    }

    /// Ends the job for all ranks, with this one to blame; returns what it fails by, which is an
    /// earlier failure if there was one.
    pub fn fail(&self, cause: Cause) -> CollectiveError {
        let transport = &self.shared.transport;
        let failure = transport.fail(transport.blame(self.rank(), cause));
        self.shared.surface(&failure);
        failure.into()
    }

    /// The failure that has ended the job, if one has.
    pub fn failure(&self) -> Option<Arc<Failure>> {
        self.shared.transport.watch().failure()
    }

    /// The last collectives of this rank, a line each.
    pub fn flight_log(&self) -> String {
        self.shared.log.text()
    }

    fn group_of(&self, name: &str, members: Vec<usize>) -> Group {
        let numbers = members.iter().flat_map(|&rank| (rank as u64).to_le_bytes());
        let id = digest(name.bytes().chain([0]).chain(numbers));
        let new = || {
            self.shared.transport.watch().name_group(id, name);
            Group::new(Core::new(self.shared.clone(), id, members))
        };
        lock(&self.groups).entry(id).or_insert_with(new).clone()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            self.fail(Cause::Panicked("see its standard error".into()));
        }
        self.shared.transport.end();
    }
}

impl Shared {
    pub(super) fn rank(&self) -> usize {
        self.transport.rank()
    }

    /// `run`, noted in the log and the watch.
    pub(super) fn record(
        &self,
        call: &Call,
        bytes: usize,
        run: impl FnOnce(&dyn Transport) -> Result<(), Arc<Failure>>,
    ) -> Result<(), CollectiveError> {
        let (watch, rank) = (self.transport.watch(), self.rank());
        if let Some(failure) = watch.failure() {
            return Err(self.surface(&failure));
        }
        let number = self.log.begin(call.step, watch.describe(call), bytes);
        watch.begin(rank, call);
        let result = run(&*self.transport);
        self.log.end(number, result.is_ok());
        match result {
            Ok(()) => watch.end(rank, call),
            Err(failure) => return Err(self.surface(&failure)),
        }
        Ok(())
    }

    /// The error of a failure; if this rank is the one to report it, that is done.
    pub(super) fn surface(&self, failure: &Arc<Failure>) -> CollectiveError {
        tracing::debug!(rank = self.rank(), %failure, "a rank has failed");
        failure.clone().into()
    }

    fn report(&self, failure: &Failure) {
        if !self.has_reported.swap(true, Relaxed) {
            let (rank, log) = (self.rank(), self.log.text());
            let text = format!("{failure}\nthe last collectives of rank {rank}:\n{log}");
            (self.report)(&text);
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { transport, ranks, .. } = self;
        let mut out = f.debug_struct("Shared");
        out.field("transport", transport).field("ranks", ranks).finish_non_exhaustive()
    }
}
