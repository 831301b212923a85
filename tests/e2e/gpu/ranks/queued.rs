//! A device that does what its streams were given only when somebody waits for it, and then one
//! stream as far ahead of the other as events allow: what forgets to wait reads what is not there.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use ::cuda::{
    Facts, TensorMap,
    driver::{
        Answer, Driver, EventHandle, Function, GraphHandle, MAP_BYTES, Module, Pinned, Shape,
        StreamHandle, Value,
    },
};

use super::fabric::{Fabric, Meeting};

/// How long a device may take for what it is waited for.
const PATIENCE: Duration = Duration::from_secs(300);

/// Which stream goes ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ahead {
    First,
    Last,
}

/// Work of a stream.
#[derive(Clone, Debug)]
enum Work {
    Launch { function: Function, shape: Shape, params: Vec<Value> },
    Copy { to: u64, from: u64, bytes: u64 },
    Fill { to: u64, byte: u8, bytes: u64 },
    Upload { to: u64, from: Pinned, offset: usize, bytes: usize },
    Download { to: Pinned, offset: usize, from: u64, bytes: usize },
    Record { event: usize, version: u64 },
    Wait { event: usize, version: u64 },
    Graph(usize),
    Meet(Arc<Meeting>),
}

#[derive(Debug, Default)]
struct State {
    next: usize,
    streams: BTreeMap<usize, VecDeque<Work>>,
    /// How often events were recorded, and how often that was come to.
    recorded: HashMap<usize, u64>,
    reached: HashMap<usize, u64>,
    captured: Option<Vec<Work>>,
    graphs: HashMap<usize, Vec<Work>>,
    replays: u64,
    meetings: u64,
}

/// The driver, before one that does work at once.
#[derive(Debug)]
pub(super) struct Queued {
    inner: Arc<dyn Driver>,
    fabric: Arc<Fabric>,
    ahead: Ahead,
    state: Mutex<State>,
}

impl Queued {
    pub(super) fn new(inner: Arc<dyn Driver>, fabric: Arc<Fabric>, ahead: Ahead) -> Queued {
        Queued { inner, fabric, ahead, state: Mutex::default() }
    }

    /// Graphs that were started, and meetings of ranks.
    pub(super) fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.replays, state.meetings)
    }

    /// Where ranks did not mean the same.
    pub(super) fn faults(&self) -> Vec<String> {
        self.fabric.faults()
    }

    /// Queues what other ranks take part in.
    pub(super) fn meet(&self, meeting: Meeting, stream: StreamHandle) {
        let mut state = self.state();
        assert!(state.captured.is_none(), "ranks meet between graphs");
        state.streams.get_mut(&stream.0).unwrap().push_back(Work::Meet(Arc::new(meeting)));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn queue(&self, work: Work, stream: StreamHandle) -> Answer {
        let mut state = self.state();
        match &mut state.captured {
            Some(captured) => captured.push(work),
            None => state.streams.get_mut(&stream.0).unwrap().push_back(work),
        }
        Ok(())
    }

    /// Works until something is done.
    fn work_until(&self, is_done: impl Fn(&State) -> bool) -> Answer {
        let begun = Instant::now();
        loop {
            let is_stuck = begun.elapsed() > PATIENCE;
            assert!(!is_stuck, "nothing moves: {:?}", self.fabric.faults());
            let mut state = self.state();
            if is_done(&state) {
                return Ok(());
            }
            let mut streams: Vec<usize> = state.streams.keys().copied().collect();
            if self.ahead == Ahead::Last {
                streams.reverse();
            }
            let mut has_worked = false;
            for stream in streams {
                let Some(work) = state.streams[&stream].front().cloned() else { continue };
                if self.attempt(&mut state, &work)? {
                    state.streams.get_mut(&stream).unwrap().pop_front();
                    has_worked = true;
                    break;
                }
            }
            drop(state);
            if !has_worked {
                self.fabric.wait();
            }
        }
    }

    /// Does something, unless it has to wait.
    fn attempt(&self, state: &mut State, work: &Work) -> Answer<bool> {
        let (inner, none) = (&self.inner, StreamHandle(0));
        match work {
            Work::Launch { function, shape, params } => {
                inner.launch(*function, *shape, params, none)?;
            }
            Work::Copy { to, from, bytes } => inner.copy(*to, *from, *bytes, none)?,
            Work::Fill { to, byte, bytes } => inner.fill(*to, *byte, *bytes, none)?,
            Work::Upload { to, from, offset, bytes } => {
                inner.upload(*to, *from, *offset, *bytes, none)?;
            }
            Work::Download { to, offset, from, bytes } => {
                inner.download(*to, *offset, *from, *bytes, none)?;
            }
            Work::Record { event, version } => {
                state.reached.insert(*event, *version);
            }
            Work::Wait { event, version } => {
                return Ok(state.reached.get(event).copied().unwrap_or(0) >= *version);
            }
            Work::Graph(graph) => {
                state.replays += 1;
                let work = state.graphs[graph].clone();
                for work in work {
                    assert!(self.attempt(state, &work)?, "a graph waits for nobody");
                }
            }
            Work::Meet(meeting) => {
                let is_done = self.fabric.attempt(meeting, self)?;
                state.meetings += u64::from(is_done);
                return Ok(is_done);
            }
        }
        Ok(true)
    }

    /// What lies in the device's memory.
    pub(super) fn read(&self, from: u64, bytes: usize) -> Answer<Vec<u8>> {
        let pinned = self.inner.pin(bytes)?;
        self.inner.download(pinned, 0, from, bytes, StreamHandle(0))?;
        let mut data = vec![0; bytes];
        self.inner.read_pinned(pinned, 0, &mut data);
        self.inner.unpin(pinned)?;
        Ok(data)
    }

    /// Puts bytes into the device's memory.
    pub(super) fn write(&self, to: u64, data: &[u8]) -> Answer {
        let pinned = self.inner.pin(data.len())?;
        self.inner.write_pinned(pinned, 0, data);
        self.inner.upload(to, pinned, 0, data.len(), StreamHandle(0))?;
        self.inner.unpin(pinned)
    }
}

impl Driver for Queued {
    fn facts(&self) -> &Facts {
        self.inner.facts()
    }

    fn memory(&self) -> Answer<(u64, u64)> {
        self.inner.memory()
    }

    fn allocate(&self, bytes: u64) -> Answer<u64> {
        self.inner.allocate(bytes)
    }

    fn free(&self, address: u64) -> Answer {
        self.inner.free(address)
    }

    fn pin(&self, bytes: usize) -> Answer<Pinned> {
        self.inner.pin(bytes)
    }

    fn unpin(&self, pinned: Pinned) -> Answer {
        self.inner.unpin(pinned)
    }

    fn write_pinned(&self, pinned: Pinned, offset: usize, bytes: &[u8]) {
        self.inner.write_pinned(pinned, offset, bytes);
    }

    fn read_pinned(&self, pinned: Pinned, offset: usize, bytes: &mut [u8]) {
        self.inner.read_pinned(pinned, offset, bytes);
    }

    fn upload(
        &self,
        to: u64,
        from: Pinned,
        offset: usize,
        bytes: usize,
        stream: StreamHandle,
    ) -> Answer {
        self.queue(Work::Upload { to, from, offset, bytes }, stream)
    }

    fn download(
        &self,
        to: Pinned,
        offset: usize,
        from: u64,
        bytes: usize,
        stream: StreamHandle,
    ) -> Answer {
        self.queue(Work::Download { to, offset, from, bytes }, stream)
    }

    fn copy(&self, to: u64, from: u64, bytes: u64, stream: StreamHandle) -> Answer {
        self.queue(Work::Copy { to, from, bytes }, stream)
    }

    fn fill(&self, to: u64, byte: u8, bytes: u64, stream: StreamHandle) -> Answer {
        self.queue(Work::Fill { to, byte, bytes }, stream)
    }

    fn load(&self, image: &[u8]) -> Answer<Module> {
        self.inner.load(image)
    }

    fn unload(&self, module: Module) -> Answer {
        self.inner.unload(module)
    }

    fn function(&self, module: Module, symbol: &str) -> Answer<Function> {
        self.inner.function(module, symbol)
    }

    fn param_sizes(&self, function: Function) -> Answer<Vec<usize>> {
        self.inner.param_sizes(function)
    }

    fn allow_shared(&self, function: Function, bytes: u32) -> Answer {
        self.inner.allow_shared(function, bytes)
    }

    fn encode_map(&self, map: &TensorMap, address: u64) -> Answer<[u8; MAP_BYTES]> {
        self.inner.encode_map(map, address)
    }

    fn launch(
        &self,
        function: Function,
        shape: Shape,
        params: &[Value],
        stream: StreamHandle,
    ) -> Answer {
        self.queue(Work::Launch { function, shape, params: params.to_vec() }, stream)
    }

    fn create_stream(&self) -> Answer<StreamHandle> {
        let mut state = self.state();
        state.next += 1;
        let stream = state.next;
        state.streams.insert(stream, VecDeque::new());
        Ok(StreamHandle(stream))
    }

    fn destroy_stream(&self, stream: StreamHandle) -> Answer {
        let work = self.state().streams.remove(&stream.0).unwrap();
        assert!(work.is_empty(), "a stream goes with work to do");
        Ok(())
    }

    fn synchronize(&self, stream: StreamHandle) -> Answer {
        self.work_until(|state| state.streams[&stream.0].is_empty())
    }

    fn wait(&self, stream: StreamHandle, event: EventHandle) -> Answer {
        let version = self.state().recorded.get(&event.0).copied().unwrap_or(0);
        self.queue(Work::Wait { event: event.0, version }, stream)
    }

    fn create_event(&self) -> Answer<EventHandle> {
        let mut state = self.state();
        state.next += 1;
        Ok(EventHandle(state.next))
    }

    fn destroy_event(&self, _: EventHandle) -> Answer {
        Ok(())
    }

    fn record(&self, event: EventHandle, stream: StreamHandle) -> Answer {
        let mut state = self.state();
        let version = state.recorded.entry(event.0).or_default();
        *version += 1;
        let version = *version;
        drop(state);
        self.queue(Work::Record { event: event.0, version }, stream)
    }

    fn synchronize_event(&self, event: EventHandle) -> Answer {
        let version = self.state().recorded.get(&event.0).copied().unwrap_or(0);
        self.work_until(|state| state.reached.get(&event.0).copied().unwrap_or(0) >= version)
    }

    fn elapsed_ms(&self, _: EventHandle, _: EventHandle) -> Answer<f32> {
        Ok(1.0)
    }

    fn begin_capture(&self, _: StreamHandle) -> Answer {
        self.state().captured = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self, _: StreamHandle) -> Answer<GraphHandle> {
        let mut state = self.state();
        state.next += 1;
        let (graph, work) = (state.next, state.captured.take().unwrap());
        state.graphs.insert(graph, work);
        Ok(GraphHandle(graph))
    }

    fn launch_graph(&self, graph: GraphHandle, stream: StreamHandle) -> Answer {
        self.queue(Work::Graph(graph.0), stream)
    }

    fn destroy_graph(&self, graph: GraphHandle) -> Answer {
        self.state().graphs.remove(&graph.0);
        Ok(())
    }
}
