//! A driver that computes nothing: work is queued, done only when somebody waits for it, and what
//! is freed, or written over, before that is noted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use crate::{
    Device, DriverError, Facts, TensorMap,
    driver::{
        Answer, Driver, EventHandle, Function, GraphHandle, MAP_BYTES, Module, Pinned, Shape,
        StreamHandle,
    },
    launch::Value,
};

/// Bytes of its memory.
pub(super) const BYTES: u64 = 1 << 20;

/// Something that work uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Used {
    Memory(u64),
    Pinned(usize),
    Module(usize),
    Graph(usize),
}

/// Work of a stream.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) what: String,
    uses: BTreeSet<Used>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    next: usize,
    memory: BTreeMap<u64, u64>,
    alive: BTreeSet<Used>,
    /// Of each stream, all work so far and how much of it is done.
    streams: BTreeMap<usize, (Vec<Work>, usize)>,
    /// Stream and number of works that an event stands behind.
    events: BTreeMap<usize, (usize, usize)>,
    captured: Option<Vec<Work>>,
    graphs: BTreeMap<usize, Vec<Work>>,
    /// What was launched, in order.
    pub(super) launches: Vec<(Shape, Vec<Vec<u8>>)>,
    pub(super) shared: u32,
    /// What went wrong.
    pub(super) wrong: Vec<String>,
    /// The device fails at the next wait.
    pub(super) fails: bool,
    pub(super) events_waited: usize,
}

#[derive(Debug)]
pub(super) struct StandIn {
    facts: Facts,
    param_sizes: Vec<usize>,
    state: Mutex<State>,
}

/// A device whose kernels take parameters of these sizes.
pub(super) fn device(param_sizes: &[usize]) -> (Device, Arc<StandIn>) {
    let facts = Facts {
        name: "stand-in".into(),
        capability: (9, 0),
        driver: 13000,
        memory_bytes: BYTES,
        multiprocessors: 4,
        shared_bytes: 227 << 10,
        l2_bytes: 1 << 20,
        clock_khz: 1,
    };
    let driver =
        Arc::new(StandIn { facts, param_sizes: param_sizes.into(), state: Mutex::default() });
    (Device::with(driver.clone()), driver)
}

impl StandIn {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn queue(&self, stream: StreamHandle, what: &str, uses: impl IntoIterator<Item = Used>) {
        self.state().queue(stream, what, uses.into_iter().collect());
    }
}

impl State {
    fn handle(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    /// What lives, beside streams and events.
    pub(super) fn alive(&self) -> Vec<Used> {
        self.alive.iter().copied().collect()
    }

    /// The allocation that an address is in.
    fn memory_of(&mut self, address: u64, bytes: u64) -> Used {
        let found = self.memory.range(..=address).next_back();
        match found.filter(|(start, size)| address + bytes <= *start + *size) {
            Some((start, _)) => Used::Memory(*start),
            None => {
                self.wrong.push(format!("{bytes} bytes at {address:#x} are not allocated"));
                Used::Memory(0)
            }
        }
    }

    fn queue(&mut self, stream: StreamHandle, what: &str, uses: BTreeSet<Used>) {
        for used in uses.iter().filter(|used| !self.alive.contains(used)) {
            self.wrong.push(format!("{what} uses {used:?}, which is not there"));
        }
        let work = Work { what: what.into(), uses };
        match &mut self.captured {
            Some(captured) => captured.push(work),
            None => self.streams.get_mut(&stream.0).expect("a stream").0.push(work),
        }
    }

    /// Whether work that is not done uses something.
    fn in_use(&self, used: Used) -> Option<String> {
        let pending = self.streams.values().flat_map(|(work, done)| &work[*done..]);
        let graphs = pending.clone().flat_map(|work| &work.uses).filter_map(|used| match used {
            Used::Graph(graph) => self.graphs.get(graph),
            _ => None,
        });
        let mut all = pending.chain(graphs.flatten());
        all.find(|work| work.uses.contains(&used)).map(|work| work.what.clone())
    }

    fn release(&mut self, used: Used) -> Answer {
        if let Some(work) = self.in_use(used) {
            self.wrong.push(format!("{used:?} is released while {work} uses it"));
        }
        if !self.alive.remove(&used) {
            self.wrong.push(format!("{used:?} is released twice"));
        }
        if let Used::Memory(address) = used {
            self.memory.remove(&address);
        }
        Ok(())
    }

    fn create(&mut self, used: impl Fn(usize) -> Used) -> usize {
        let handle = self.handle();
        self.alive.insert(used(handle));
        handle
    }

    fn wait(&mut self, stream: usize, until: usize) -> Answer {
        let (_, done) = self.streams.get_mut(&stream).expect("a stream");
        *done = until.max(*done);
        if self.fails {
            let (name, text) = ("CUDA_ERROR_ILLEGAL_ADDRESS".into(), "illegal".into());
            return Err(DriverError { call: "cuStreamSynchronize", code: 700, name, text });
        }
        Ok(())
    }
}

impl Driver for StandIn {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory(&self) -> Answer<(u64, u64)> {
        let used: u64 = self.state().memory.values().sum();
        Ok((BYTES - used, BYTES))
    }

    fn allocate(&self, bytes: u64) -> Answer<u64> {
        let mut state = self.state();
        let address = 0x7000_0000 + state.handle() as u64 * 2 * BYTES;
        state.memory.insert(address, bytes);
        state.alive.insert(Used::Memory(address));
        Ok(address)
    }

    fn free(&self, address: u64) -> Answer {
        self.state().release(Used::Memory(address))
    }

    fn pin(&self, _: usize) -> Answer<Pinned> {
        Ok(Pinned(self.state().create(Used::Pinned)))
    }

    fn unpin(&self, pinned: Pinned) -> Answer {
        self.state().release(Used::Pinned(pinned.0))
    }

    fn write_pinned(&self, pinned: Pinned, _: usize, _: &[u8]) {
        let mut state = self.state();
        if let Some(work) = state.in_use(Used::Pinned(pinned.0)) {
            state.wrong.push(format!("staging is written while {work} reads it"));
        }
    }

    fn read_pinned(&self, pinned: Pinned, _: usize, _: &mut [u8]) {
        let mut state = self.state();
        if let Some(work) = state.in_use(Used::Pinned(pinned.0)) {
            state.wrong.push(format!("staging is read while {work} uses it"));
        }
    }

    fn upload(
        &self,
        to: u64,
        from: Pinned,
        _: usize,
        bytes: usize,
        stream: StreamHandle,
    ) -> Answer {
        let memory = self.state().memory_of(to, bytes as u64);
        self.queue(stream, "an upload", [memory, Used::Pinned(from.0)]);
        Ok(())
    }

    fn download(
        &self,
        to: Pinned,
        _: usize,
        from: u64,
        bytes: usize,
        stream: StreamHandle,
    ) -> Answer {
        let memory = self.state().memory_of(from, bytes as u64);
        self.queue(stream, "a download", [memory, Used::Pinned(to.0)]);
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: u64, stream: StreamHandle) -> Answer {
        let ends = [to, from].map(|end| self.state().memory_of(end, bytes));
        self.queue(stream, "a copy", ends);
        Ok(())
    }

    fn fill(&self, to: u64, _: u8, bytes: u64, stream: StreamHandle) -> Answer {
        let memory = self.state().memory_of(to, bytes);
        self.queue(stream, "a fill", [memory]);
        Ok(())
    }

    fn load(&self, image: &[u8]) -> Answer<Module> {
        if !image.ends_with(&[0]) && !image.starts_with(b"\x7fELF") {
            self.state().wrong.push("a text without an end".into());
        }
        Ok(Module(self.state().create(Used::Module)))
    }

    fn unload(&self, module: Module) -> Answer {
        self.state().release(Used::Module(module.0))
    }

    fn function(&self, module: Module, _: &str) -> Answer<Function> {
        Ok(Function(module.0))
    }

    fn param_sizes(&self, _: Function) -> Answer<Vec<usize>> {
        Ok(self.param_sizes.clone())
    }

    fn allow_shared(&self, _: Function, bytes: u32) -> Answer {
        self.state().shared = bytes;
        Ok(())
    }

    fn encode_map(&self, map: &TensorMap, address: u64) -> Answer<[u8; MAP_BYTES]> {
        let mut bytes = [u8::try_from(map.boxes.len()).unwrap(); MAP_BYTES];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        Ok(bytes)
    }

    fn launch(
        &self,
        function: Function,
        shape: Shape,
        params: &[Value],
        stream: StreamHandle,
    ) -> Answer {
        let mut state = self.state();
        let mut uses = BTreeSet::from([Used::Module(function.0)]);
        for param in params {
            let word = u64::from_le_bytes(param.bytes()[..8].try_into().unwrap());
            if word >= 0x7000_0000 {
                uses.insert(state.memory_of(word, 1));
            }
        }
        let values = params.iter().map(|value| value.bytes().to_vec()).collect();
        state.launches.push((shape, values));
        state.queue(stream, "a launch", uses);
        Ok(())
    }

    fn create_stream(&self) -> Answer<StreamHandle> {
        let mut state = self.state();
        let handle = state.handle();
        state.streams.insert(handle, (Vec::new(), 0));
        Ok(StreamHandle(handle))
    }

    fn destroy_stream(&self, stream: StreamHandle) -> Answer {
        let (work, done) = self.state().streams.remove(&stream.0).expect("a stream");
        if done < work.len() {
            self.state().wrong.push("a stream is destroyed with work to do".into());
        }
        Ok(())
    }

    fn synchronize(&self, stream: StreamHandle) -> Answer {
        let all = self.state().streams[&stream.0].0.len();
        self.state().wait(stream.0, all)
    }

    fn wait(&self, stream: StreamHandle, _: EventHandle) -> Answer {
        self.queue(stream, "a wait", []);
        Ok(())
    }

    fn create_event(&self) -> Answer<EventHandle> {
        Ok(EventHandle(self.state().handle()))
    }

    fn destroy_event(&self, _: EventHandle) -> Answer {
        Ok(())
    }

    fn record(&self, event: EventHandle, stream: StreamHandle) -> Answer {
        let mut state = self.state();
        let position = state.streams[&stream.0].0.len();
        state.events.insert(event.0, (stream.0, position));
        Ok(())
    }

    fn synchronize_event(&self, event: EventHandle) -> Answer {
        let mut state = self.state();
        state.events_waited += 1;
        match state.events.get(&event.0).copied() {
            Some((stream, position)) => state.wait(stream, position),
            None => Ok(()),
        }
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
        let work = state.captured.take().expect("a capture");
        let graph = state.create(Used::Graph);
        state.graphs.insert(graph, work);
        Ok(GraphHandle(graph))
    }

    fn launch_graph(&self, graph: GraphHandle, stream: StreamHandle) -> Answer {
        let uses = self.state().graphs[&graph.0]
            .iter()
            .flat_map(|work| work.uses.clone())
            .collect::<Vec<_>>();
        self.queue(stream, "a graph", uses.into_iter().chain([Used::Graph(graph.0)]));
        Ok(())
    }

    fn destroy_graph(&self, graph: GraphHandle) -> Answer {
        self.state().release(Used::Graph(graph.0))
    }
}
