//! What is known of every rank, and the one failure that ends the job for all of them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Cause, Failure, call::Call, process::Process};

/// Told of the failure, once.
pub(super) type Hook = Box<dyn Fn(&Failure) + Send + Sync>;

/// Shared by all that a process does for its ranks.
pub(super) struct Watch {
    pub(super) deadline: Duration,
    ranks: Vec<Rank>,
    group_names: Mutex<BTreeMap<u64, String>>,
    failure: OnceLock<Arc<Failure>>,
    hooks: Mutex<Vec<(usize, Hook)>>,
}

/// What is known of a rank.
#[derive(Default)]
struct Rank {
    step: AtomicU64,
    has_ended: AtomicBool,
    state: Mutex<State>,
}

/// What a rank tells of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) step: u64,
    /// Its last collective.
    pub(super) place: Option<String>,
    /// The ranks that it waits for now.
    pub(super) waits_for: Vec<usize>,
    /// Which process it is.
    #[serde(default)]
    process: Option<Process>,
    #[serde(skip)]
    last: Option<(Call, bool)>,
}

impl Watch {
    pub(super) fn new(ranks: usize, deadline: Duration) -> Watch {
        Watch {
            deadline,
            ranks: (0..ranks).map(|_| Rank::default()).collect(),
            group_names: Mutex::default(),
            failure: OnceLock::new(),
            hooks: Mutex::default(),
        }
    }

    pub(super) fn set_step(&self, rank: usize, step: u64) {
        self.ranks[rank].step.store(step, Relaxed);
    }

    pub(super) fn step(&self, rank: usize) -> u64 {
        self.ranks[rank].step.load(Relaxed)
    }

    pub(super) fn name_group(&self, group: u64, name: &str) {
        lock(&self.group_names).insert(group, name.to_owned());
    }

    pub(super) fn describe(&self, call: &Call) -> String {
        match lock(&self.group_names).get(&call.group) {
            Some(name) => format!("{call} of group `{name}`"),
            None => format!("{call} of a group unknown here"),
        }
    }

    pub(super) fn begin(&self, rank: usize, call: &Call) {
        lock(&self.ranks[rank].state).last = Some((*call, false));
    }

    pub(super) fn end(&self, rank: usize, call: &Call) {
        lock(&self.ranks[rank].state).last = Some((*call, true));
    }

    /// Notes that `rank` waits for `other` until the result is dropped.
    pub(super) fn waiting(&self, rank: usize, other: usize) -> Waiting<'_> {
        lock(&self.ranks[rank].state).waits_for.push(other);
        Waiting { watch: self, rank, other }
    }

    /// What a rank in this process is at.
    pub(super) fn state(&self, rank: usize) -> State {
        let mut state = lock(&self.ranks[rank].state).clone();
        state.step = self.step(rank);
        state.process = Process::own();
        if state.last.is_some() {
            state.place = Some(self.place(rank));
        }
        state
    }

    /// The process of a rank that has told of it, and has not said that it ends.
    pub(super) fn process(&self, rank: usize) -> Option<Process> {
        lock(&self.ranks[rank].state).process.filter(|_| !self.has_ended(rank))
    }

    /// Takes in what a rank in another process is at.
    pub(super) fn learn(&self, rank: usize, state: State) {
        self.set_step(rank, state.step);
        *lock(&self.ranks[rank].state) = state;
    }

    /// `in` or `after` its last collective.
    pub(super) fn place(&self, rank: usize) -> String {
        let state = lock(&self.ranks[rank].state).clone();
        match state.last {
            Some((call, false)) => format!("in {}", self.describe(&call)),
            Some((call, true)) => format!("after {}", self.describe(&call)),
            None => state.place.unwrap_or_else(|| "before its first collective".into()),
        }
    }

    /// Who keeps `rank` waiting, or `rank` itself: the one that waits for nobody.
    pub(super) fn culprit(&self, rank: usize) -> usize {
        let mut at = rank;
        for _ in 0..self.ranks.len() {
            let next = lock(&self.ranks[at].state).waits_for.first().copied();
            match next.filter(|&next| next < self.ranks.len()) {
                Some(next) => at = next,
                None => return at,
            }
        }
        rank
    }

    pub(super) fn set_ended(&self, rank: usize) {
        self.ranks[rank].has_ended.store(true, Relaxed);
    }

    pub(super) fn has_ended(&self, rank: usize) -> bool {
        self.ranks[rank].has_ended.load(Relaxed)
    }

    /// The failure, if there is one.
    pub(super) fn failure(&self) -> Option<Arc<Failure>> {
        self.failure.get().cloned()
    }

    /// That nobody came in time to what `by` is at, with `rank` the one that it misses.
    pub(super) fn late(&self, by: usize, rank: usize, place: String, waited: Duration) -> Failure {
        let rank = self.culprit(rank);
        let seen = format!("at step {}, {}", self.step(rank), self.place(rank));
        let cause = Cause::Late { waited_ms: millis(waited), seen };
        Failure { rank, noticed_by: by, step: self.step(by), place, cause }
    }

    /// Makes it the failure of the job unless there is one; returns which it is, and whether it is
    /// new.
    pub(super) fn raise(&self, failure: Failure) -> (Arc<Failure>, bool) {
        let mut is_new = false;
        let failure = self.failure.get_or_init(|| {
            is_new = true;
            Arc::new(failure)
        });
        (failure.clone(), is_new)
    }

    /// Has the hook of `rank` told of the failure.
    pub(super) fn add_hook(&self, rank: usize, hook: Hook) {
        lock(&self.hooks).push((rank, hook));
    }

    /// Tells who noticed, if it is in this process, and else all that are.
    pub(super) fn tell(&self, failure: &Failure) {
        let hooks = lock(&self.hooks);
        let is_here = hooks.iter().any(|(rank, _)| *rank == failure.noticed_by);
        for (rank, hook) in hooks.iter() {
            if *rank == failure.noticed_by || !is_here {
                hook(failure);
            }
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("failure", &self.failure).finish_non_exhaustive()
    }
}

/// A wait that goes on.
pub(super) struct Waiting<'a> {
    watch: &'a Watch,
    rank: usize,
    other: usize,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.watch.ranks[self.rank].state);
        if let Some(at) = state.waits_for.iter().rposition(|&other| other == self.other) {
            state.waits_for.remove(at);
        }
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Nothing that is done under these locks leaves things half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
