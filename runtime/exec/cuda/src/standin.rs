//! A driver without a device, for tests: streams, events, graphs and lifetimes are as CUDA has
//! them, and a [`Machine`] says what memory holds and what launches do.
//!
//! Work is done only when somebody waits for it, and then one stream as far ahead of the others as
//! events allow: what forgets to wait reads what is not there. What is released, or touched by the
//! host, while work that is not done uses it is a mistake; so is to use what has gone, or bytes
//! that nothing has written. Unless they are asked for, mistakes fail the test in the end.

mod cublaslt;
mod driver;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt::{self, Debug},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use crate::{
    DriverError, Facts, TensorMap,
    driver::{Answer, Function, MAP_BYTES, Module, Shape, StreamHandle, Value},
};

pub use self::cublaslt::Products;
use self::work::{Task, Work};

/// How long a device may take for what it is waited for.
const PATIENCE: Duration = Duration::from_secs(300);

/// What lies behind the driver: memory, and kernels by number.
pub trait Machine: Debug + Send {
    /// The address of so many new bytes.
    fn allocate(&mut self, bytes: u64) -> u64;

    /// Frees what begins at an address.
    fn free(&mut self, address: u64);

    /// Bytes of one allocation, where they were written.
    ///
    /// # Errors
    /// What a device would say.
    fn read(&mut self, from: u64, bytes: usize) -> Answer<Vec<Option<u8>>>;

    /// Writes to one allocation.
    fn write(&mut self, to: u64, data: &[u8]);

    /// Loads code.
    ///
    /// # Errors
    /// What a driver would say.
    fn load(&mut self, module: Module, image: &[u8]) -> Answer;

    /// Lets code go.
    fn unload(&mut self, _module: Module) {}

    /// A kernel of a module.
    ///
    /// # Errors
    /// What a driver would say.
    fn function(&mut self, module: Module, symbol: &str) -> Answer<Function>;

    /// Bytes of the kernel's parameters, in order.
    ///
    /// # Errors
    /// What a driver would say.
    fn param_sizes(&mut self, function: Function) -> Answer<Vec<usize>>;

    /// Allows so much dynamic shared memory.
    fn allow_shared(&mut self, _function: Function, _bytes: u32) {}

    /// A tensor map as this machine's kernels take it.
    ///
    /// # Errors
    /// What a driver would say.
    fn encode_map(&mut self, map: &TensorMap, address: u64) -> Answer<[u8; MAP_BYTES]>;

    /// Runs a kernel.
    ///
    /// # Errors
    /// What the device finds wrong.
    fn launch(&mut self, function: Function, shape: Shape, params: &[Value]) -> Answer;
}

/// Work of a stream in which other devices take part.
pub trait Meeting: Debug + Send + Sync {
    /// Does it, unless it has to wait.
    ///
    /// # Errors
    /// What the device finds wrong.
    fn attempt(&self, machine: &mut dyn Machine) -> Answer<bool>;

    /// The memory that it uses: addresses and bytes.
    fn places(&self) -> Vec<(u64, u64)>;

    /// Waits a moment, or until something moves.
    fn wait(&self);
}

/// Which stream goes ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ahead {
    /// That which was made first.
    #[default]
    First,
    /// That which was made last.
    Last,
}

/// Something that work uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Used {
    /// Memory from this address on.
    Memory(u64),
    /// Pinned memory of this number.
    Pinned(usize),
    /// A module.
    Module(usize),
    /// A graph.
    Graph(usize),
    /// An algorithm for products.
    Algorithm(usize),
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Kernels that ran, also those of graphs.
    pub launches: u64,
    /// Products, also those of graphs.
    pub products: u64,
    /// Graphs that were started.
    pub replays: u64,
    /// Meetings with other devices.
    pub meetings: u64,
    /// Copies from the host.
    pub uploads: u64,
    /// Copies to the host.
    pub downloads: u64,
    /// Waits for streams and events.
    pub waits: u64,
    /// Graphs that there are.
    pub graphs: usize,
}

/// The driver.
#[derive(Debug)]
pub struct StandIn<M: Machine> {
    facts: Facts,
    ahead: Ahead,
    machine: Mutex<M>,
    state: Mutex<State>,
    behind_wait: Mutex<Hook>,
}

/// What is called once.
#[derive(Default)]
struct Hook(Option<Box<dyn FnOnce() + Send>>);

impl Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hook").field(&self.0.is_some()).finish()
    }
}

#[derive(Debug, Default)]
struct State {
    next: usize,
    counts: Counts,
    memory: BTreeMap<u64, u64>,
    /// Bytes that something has written.
    pinned: HashMap<usize, Vec<Option<u8>>>,
    /// Modules of kernels.
    functions: HashMap<usize, usize>,
    alive: BTreeSet<Used>,
    streams: BTreeMap<usize, VecDeque<Arc<Task>>>,
    /// How often events were recorded, and how often that was come to.
    recorded: HashMap<usize, u64>,
    reached: HashMap<usize, u64>,
    captured: Option<Capture>,
    graphs: BTreeMap<usize, Vec<Arc<Task>>>,
    mistakes: Vec<String>,
    fails: bool,
}

#[derive(Debug)]
struct Capture {
    stream: usize,
    thread: ThreadId,
    work: Vec<Arc<Task>>,
}

impl<M: Machine> StandIn<M> {
    /// A driver before a machine.
    pub fn new(facts: Facts, machine: M, ahead: Ahead) -> StandIn<M> {
        let (state, behind_wait) = (Mutex::default(), Mutex::default());
        StandIn { facts, ahead, machine: Mutex::new(machine), state, behind_wait }
    }

    /// The machine, of which all work is done that somebody has waited for.
    pub fn machine(&self) -> MutexGuard<'_, M> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was done.
    pub fn counts(&self) -> Counts {
        let state = self.state();
        Counts { graphs: state.graphs.len(), ..state.counts }
    }

    /// Bytes that are allocated.
    pub fn allocated(&self) -> u64 {
        self.state().memory.values().sum()
    }

    /// What lives, beside streams and events.
    pub fn alive(&self) -> Vec<Used> {
        self.state().alive.iter().copied().collect()
    }

    /// What went wrong; whoever asks has to see to it.
    pub fn mistakes(&self) -> Vec<String> {
        std::mem::take(&mut self.state().mistakes)
    }

    /// Lets the device fail at the next wait.
    pub fn fail(&self) {
        self.state().fails = true;
    }

    /// Does something when the next wait for a stream has ended and whoever waits does not know it
    /// yet, as another thread may.
    pub fn behind_wait(&self, work: impl FnOnce() + Send + 'static) {
        self.hook().0 = Some(Box::new(work));
    }

    fn hook(&self) -> MutexGuard<'_, Hook> {
        self.behind_wait.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues what other devices take part in.
    ///
    /// # Panics
    /// While the stream's work is recorded.
    pub fn meet(&self, meeting: Arc<dyn Meeting>, stream: StreamHandle) {
        let mut state = self.state();
        let captured = state.captured.as_ref().map(|captured| captured.stream);
        assert!(captured != Some(stream.0), "devices meet between graphs");
        let places = meeting.places().into_iter();
        let uses = places.filter_map(|(start, bytes)| state.memory(start, bytes)).collect();
        state.queue(stream, Work::Meet(meeting), uses);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works until something is done.
    fn work_until(&self, is_done: impl Fn(&State) -> bool) -> Answer {
        let begun = Instant::now();
        loop {
            let mut state = self.state();
            if is_done(&state) {
                return match state.fails {
                    true => Err(fault("cuStreamSynchronize", "an illegal address")),
                    false => Ok(()),
                };
            }
            assert!(begun.elapsed() < PATIENCE, "nothing moves: {:?}", state.streams);
            let mut streams: Vec<usize> = state.streams.keys().copied().collect();
            if self.ahead == Ahead::Last {
                streams.reverse();
            }
            let mut waits = None;
            let has_worked = 'streams: {
                for stream in streams {
                    let Some(task) = state.streams[&stream].front().cloned() else { continue };
                    match self.attempt(&mut state, &task.work) {
                        Ok(false) => {
                            if let Work::Meet(meeting) = &task.work {
                                waits = Some(meeting.clone());
                            }
                            continue;
                        }
                        Ok(true) => drop(state.stream(stream).pop_front()),
                        Err(error) => {
                            // All that the device was to do is lost.
                            state.streams.values_mut().for_each(VecDeque::clear);
                            return Err(error);
                        }
                    }
                    break 'streams true;
                }
                false
            };
            drop(state);
            if !has_worked {
                waits.expect("streams wait for each other").wait();
            }
        }
    }
}

impl<M: Machine> Drop for StandIn<M> {
    fn drop(&mut self) {
        let mistakes = self.mistakes();
        assert!(thread::panicking() || mistakes.is_empty(), "{mistakes:#?}");
    }
}

/// An error after which a device does nothing more.
#[allow(clippy::needless_pass_by_value, reason = "errors and texts are given up to it")]
pub fn fault(call: &'static str, text: impl std::fmt::Display) -> DriverError {
    DriverError { call, code: 700, name: "FAULT".into(), text: text.to_string() }
}
