//! The driver's calls.

use std::collections::BTreeSet;

use super::{Machine, StandIn, Used, work::Work};
use crate::{
    Facts, TensorMap,
    driver::{
        Answer, Driver, EventHandle, Function, GraphHandle, MAP_BYTES, Module, Pinned, Shape,
        StreamHandle, Value,
    },
};

impl<M: Machine> Driver for StandIn<M> {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory(&self) -> Answer<(u64, u64)> {
        let all = self.facts.memory_bytes;
        Ok((all - self.allocated(), all))
    }

    fn allocate(&self, bytes: u64) -> Answer<u64> {
        let address = self.machine().allocate(bytes);
        let mut state = self.state();
        state.refuse_while_recording("memory is allocated");
        state.memory.insert(address, bytes);
        state.alive.insert(Used::Memory(address));
        Ok(address)
    }

    fn free(&self, address: u64) -> Answer {
        let mut state = self.state();
        if state.release(Used::Memory(address)) {
            state.memory.remove(&address);
            drop(state);
            self.machine().free(address);
        }
        Ok(())
    }

    fn pin(&self, bytes: usize) -> Answer<Pinned> {
        let mut state = self.state();
        state.refuse_while_recording("memory is pinned");
        let pinned = state.create(Used::Pinned);
        state.pinned.insert(pinned, vec![None; bytes]);
        Ok(Pinned(pinned))
    }

    fn unpin(&self, pinned: Pinned) -> Answer {
        let mut state = self.state();
        state.release(Used::Pinned(pinned.0));
        state.pinned.remove(&pinned.0);
        Ok(())
    }

    fn write_pinned(&self, pinned: Pinned, offset: usize, bytes: &[u8]) {
        let mut state = self.state();
        let range = offset..offset + bytes.len();
        if let Some(work) = state.copies(pinned, range, true) {
            state.mistakes.push(format!("pinned memory is written while {work} uses it"));
        }
        let memory = state.pinned.get_mut(&pinned.0).expect("pinned memory");
        for (to, byte) in memory[offset..][..bytes.len()].iter_mut().zip(bytes) {
            *to = Some(*byte);
        }
    }

    fn read_pinned(&self, pinned: Pinned, offset: usize, bytes: &mut [u8]) {
        let mut state = self.state();
        let range = offset..offset + bytes.len();
        if let Some(work) = state.copies(pinned, range, false) {
            state.mistakes.push(format!("pinned memory is read while {work} uses it"));
        }
        let memory = &state.pinned[&pinned.0][offset..][..bytes.len()];
        let is_whole = memory.iter().all(Option::is_some);
        for (byte, from) in bytes.iter_mut().zip(memory) {
            *byte = from.unwrap_or(0xa5);
        }
        if !is_whole {
            state.mistakes.push("pinned memory is read that nothing has written".into());
        }
    }

    fn upload(
        &self,
        to: u64,
        from: Pinned,
        offset: usize,
        bytes: usize,
        stream: StreamHandle,
    ) -> Answer {
        let mut state = self.state();
        let uses = state.memory(to, bytes as u64).into_iter().chain([Used::Pinned(from.0)]);
        let uses = uses.collect();
        state.queue(stream, Work::Upload { to, from, offset, bytes }, uses);
        Ok(())
    }

    fn download(
        &self,
        to: Pinned,
        offset: usize,
        from: u64,
        bytes: usize,
        stream: StreamHandle,
    ) -> Answer {
        let mut state = self.state();
        let uses = state.memory(from, bytes as u64).into_iter().chain([Used::Pinned(to.0)]);
        let uses = uses.collect();
        state.queue(stream, Work::Download { to, offset, from, bytes }, uses);
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: u64, stream: StreamHandle) -> Answer {
        let mut state = self.state();
        let uses = [to, from].into_iter().filter_map(|end| state.memory(end, bytes)).collect();
        state.queue(stream, Work::Copy { to, from, bytes }, uses);
        Ok(())
    }

    fn fill(&self, to: u64, byte: u8, bytes: u64, stream: StreamHandle) -> Answer {
        let mut state = self.state();
        let uses = state.memory(to, bytes).into_iter().collect();
        state.queue(stream, Work::Fill { to, byte, bytes }, uses);
        Ok(())
    }

    fn load(&self, image: &[u8]) -> Answer<Module> {
        let module = Module(self.state().create(Used::Module));
        self.machine().load(module, image)?;
        Ok(module)
    }

    fn unload(&self, module: Module) -> Answer {
        self.state().release(Used::Module(module.0));
        self.machine().unload(module);
        Ok(())
    }

    fn function(&self, module: Module, symbol: &str) -> Answer<Function> {
        let function = self.machine().function(module, symbol)?;
        self.state().functions.insert(function.0, module.0);
        Ok(function)
    }

    fn param_sizes(&self, function: Function) -> Answer<Vec<usize>> {
        self.machine().param_sizes(function)
    }

    fn allow_shared(&self, function: Function, bytes: u32) -> Answer {
        self.machine().allow_shared(function, bytes);
        Ok(())
    }

    fn encode_map(&self, map: &TensorMap, address: u64) -> Answer<[u8; MAP_BYTES]> {
        self.machine().encode_map(map, address)
    }

    fn launch(
        &self,
        function: Function,
        shape: Shape,
        params: &[Value],
        stream: StreamHandle,
    ) -> Answer {
        let mut state = self.state();
        let mut uses = BTreeSet::new();
        uses.extend(state.functions.get(&function.0).copied().map(Used::Module));
        for param in params {
            // A size may look like an address, and keeps what is there for so long.
            let word = param.bytes().first_chunk().map(|word| u64::from_le_bytes(*word));
            uses.extend(word.and_then(|word| state.memory_of(word, 1)));
        }
        state.queue(stream, Work::Launch { function, shape, params: params.to_vec() }, uses);
        Ok(())
    }

    fn create_stream(&self) -> Answer<StreamHandle> {
        let mut state = self.state();
        let stream = state.handle();
        state.streams.insert(stream, Default::default());
        Ok(StreamHandle(stream))
    }

    fn destroy_stream(&self, stream: StreamHandle) -> Answer {
        let mut state = self.state();
        let work = state.streams.remove(&stream.0).expect("a stream");
        if !work.is_empty() {
            state.mistakes.push("a stream is destroyed with work to do".into());
        }
        Ok(())
    }

    fn synchronize(&self, stream: StreamHandle) -> Answer {
        let mut state = self.state();
        state.counts.waits += 1;
        state.refuse_while_recording("a stream is waited for");
        drop(state);
        let done = self.work_until(|state| state.streams[&stream.0].is_empty());
        let work = self.hook().0.take();
        if let Some(work) = work {
            work();
        }
        done
    }

    fn wait(&self, stream: StreamHandle, event: EventHandle) -> Answer {
        let mut state = self.state();
        let version = state.recorded.get(&event.0).copied().unwrap_or(0);
        state.queue(stream, Work::Wait { event: event.0, version }, BTreeSet::new());
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
        let version = state.recorded.entry(event.0).or_default();
        *version += 1;
        let version = *version;
        state.queue(stream, Work::Record { event: event.0, version }, BTreeSet::new());
        Ok(())
    }

    fn synchronize_event(&self, event: EventHandle) -> Answer {
        let mut state = self.state();
        state.counts.waits += 1;
        let version = state.recorded.get(&event.0).copied().unwrap_or(0);
        drop(state);
        self.work_until(|state| state.reached.get(&event.0).copied().unwrap_or(0) >= version)
    }

    fn elapsed_ms(&self, _: EventHandle, _: EventHandle) -> Answer<f32> {
        Ok(1.0)
    }

    fn begin_capture(&self, stream: StreamHandle) -> Answer {
        self.state().begin_capture(stream.0);
        Ok(())
    }

    fn end_capture(&self, _: StreamHandle) -> Answer<GraphHandle> {
        let mut state = self.state();
        let captured = state.captured.take().expect("a capture");
        let graph = state.create(Used::Graph);
        state.graphs.insert(graph, captured.work);
        Ok(GraphHandle(graph))
    }

    fn launch_graph(&self, graph: GraphHandle, stream: StreamHandle) -> Answer {
        let mut state = self.state();
        let used = state.graphs[&graph.0].iter().flat_map(|task| task.uses.iter().copied());
        let uses = used.chain([Used::Graph(graph.0)]).collect();
        state.queue(stream, Work::Graph(graph.0), uses);
        Ok(())
    }

    fn destroy_graph(&self, graph: GraphHandle) -> Answer {
        let mut state = self.state();
        state.release(Used::Graph(graph.0));
        state.graphs.remove(&graph.0);
        Ok(())
    }
}
