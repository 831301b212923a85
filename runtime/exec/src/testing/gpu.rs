//! A GPU that is not there: its memory is the host's, its two kernels are functions of Rust, and
//! work is done as soon as it is asked for.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard},
};

use cuda::{
    Facts, TensorMap,
    driver::{
        Answer, Driver, EventHandle, Function, GraphHandle, MAP_BYTES, Module, Pinned, Shape,
        StreamHandle, Value,
    },
};
use ir::{CudaArch, CudaCode, CudaModule, CudaParam, CudaVariant, Dim, Program, Span, Target};

use super::{CODE, artifact};
use crate::{Device, Model};

/// Bytes of its memory.
const BYTES: u64 = 1 << 30;
/// From one allocation to the next.
const APART: u64 = 1 << 32;

/// Work that a graph repeats.
#[derive(Clone, Debug)]
enum Work {
    Launch { kernel: usize, blocks: u32, params: Vec<u64> },
    Fill { to: u64, byte: u8, bytes: u64 },
    Copy { to: u64, from: u64, bytes: u64 },
}

#[derive(Debug, Default)]
struct State {
    next: usize,
    memory: BTreeMap<u64, Vec<u8>>,
    pinned: HashMap<usize, Vec<u8>>,
    captured: Option<Vec<Work>>,
    graphs: BTreeMap<usize, Vec<Work>>,
    replays: usize,
}

/// Its driver.
#[derive(Debug)]
pub(crate) struct StandIn {
    facts: Facts,
    state: Mutex<State>,
}

/// The model that offers `programs`, whose two kernels are those of [`super::program`], on a GPU.
pub(crate) fn on_gpu(file: &str, mut programs: Vec<Program>) -> (Arc<Model>, Arc<StandIn>) {
    let arch = CudaArch::Sm80;
    let ptx = Span { offset: 0, bytes: CODE.len() as u64 };
    let modules = vec![CudaModule { arch, ptx, cubin: None }; 2];
    let pointer = |arg| CudaParam::Pointer { arg, align: 4 };
    let n = Dim::symbol("N");
    let params = [
        vec![pointer(0), pointer(1), pointer(2)],
        vec![pointer(0), CudaParam::Size(n.clone() + Dim::from(1))],
    ];
    for program in &mut programs {
        for ((module, kernel), params) in (0..).zip(&mut program.kernels).zip(&params) {
            let variant = CudaVariant {
                symbol: kernel.symbol.clone(),
                module,
                params: params.clone(),
                grid: [if module == 0 { n.clone() } else { 1.into() }, 1.into(), 1.into()],
                block: 32,
                cluster: 1,
                shared_bytes: 0,
                limit: None,
                early: Vec::new(),
            };
            kernel.cuda = vec![CudaCode { arch, variants: vec![variant] }];
        }
    }
    let facts = Facts {
        name: "stand-in".into(),
        capability: (8, 0),
        driver: 13000,
        memory_bytes: BYTES,
        multiprocessors: 4,
        shared_bytes: 163 << 10,
        l2_bytes: 1 << 20,
        clock_khz: 1,
    };
    let driver = Arc::new(StandIn { facts, state: Mutex::default() });
    let device = Device::cuda(cuda::Device::with(driver.clone()), NonZeroUsize::new(1)).unwrap();
    let artifact = artifact(file, Target::sm_80(), modules, programs);
    (Model::load(artifact, device).unwrap(), driver)
}

impl StandIn {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Graphs that there are, and how often one was started.
    pub(crate) fn graphs(&self) -> (usize, usize) {
        let state = self.state();
        (state.graphs.len(), state.replays)
    }

    /// Bytes that are allocated.
    pub(crate) fn allocated(&self) -> u64 {
        self.state().memory.values().map(|bytes| bytes.len() as u64).sum()
    }

    fn handle(&self) -> usize {
        let mut state = self.state();
        state.next += 1;
        state.next
    }

    fn queue(&self, work: Work) -> Answer {
        let mut state = self.state();
        match &mut state.captured {
            Some(captured) => captured.push(work),
            None => state.work(&work),
        }
        Ok(())
    }
}

impl State {
    /// Bytes that are allocated from an address on.
    fn at(&mut self, address: u64, bytes: usize) -> &mut [u8] {
        let (start, memory) = self.memory.range_mut(..=address).next_back().expect("memory");
        let offset = usize::try_from(address - start).unwrap();
        &mut memory[offset..offset + bytes]
    }

    fn f32(&mut self, address: u64) -> f32 {
        f32::from_le_bytes(self.at(address, 4).try_into().unwrap())
    }

    fn work(&mut self, work: &Work) {
        match work {
            Work::Launch { kernel: 0, blocks, params } => {
                for i in 0..u64::from(*blocks) {
                    let sum = self.f32(params[0] + 4 * i) + self.f32(params[1]);
                    self.at(params[2] + 4 * i, 4).copy_from_slice(&sum.to_le_bytes());
                }
            }
            Work::Launch { params, .. } => {
                let count = self.at(params[0], 8);
                let sum = u64::from_le_bytes((&*count).try_into().unwrap()) + params[1];
                count.copy_from_slice(&sum.to_le_bytes());
            }
            Work::Fill { to, byte, bytes } => {
                self.at(*to, usize::try_from(*bytes).unwrap()).fill(*byte);
            }
            Work::Copy { to, from, bytes } => {
                let bytes = usize::try_from(*bytes).unwrap();
                let data = self.at(*from, bytes).to_vec();
                self.at(*to, bytes).copy_from_slice(&data);
            }
        }
    }
}

impl Driver for StandIn {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory(&self) -> Answer<(u64, u64)> {
        Ok((BYTES - self.allocated(), BYTES))
    }

    fn allocate(&self, bytes: u64) -> Answer<u64> {
        let address = self.handle() as u64 * APART;
        self.state().memory.insert(address, vec![0xa5; usize::try_from(bytes).unwrap()]);
        Ok(address)
    }

    fn free(&self, address: u64) -> Answer {
        assert!(self.state().memory.remove(&address).is_some(), "freed twice");
        Ok(())
    }

    fn pin(&self, bytes: usize) -> Answer<Pinned> {
        let handle = self.handle();
        self.state().pinned.insert(handle, vec![0; bytes]);
        Ok(Pinned(handle))
    }

    fn unpin(&self, pinned: Pinned) -> Answer {
        self.state().pinned.remove(&pinned.0);
        Ok(())
    }

    fn write_pinned(&self, pinned: Pinned, offset: usize, bytes: &[u8]) {
        let mut state = self.state();
        state.pinned.get_mut(&pinned.0).unwrap()[offset..][..bytes.len()].copy_from_slice(bytes);
    }

    fn read_pinned(&self, pinned: Pinned, offset: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.state().pinned[&pinned.0][offset..][..bytes.len()]);
    }

    fn upload(
        &self,
        to: u64,
        from: Pinned,
        offset: usize,
        bytes: usize,
        _: StreamHandle,
    ) -> Answer {
        let mut state = self.state();
        let data = state.pinned[&from.0][offset..][..bytes].to_vec();
        state.at(to, bytes).copy_from_slice(&data);
        Ok(())
    }

    fn download(
        &self,
        to: Pinned,
        offset: usize,
        from: u64,
        bytes: usize,
        _: StreamHandle,
    ) -> Answer {
        let mut state = self.state();
        let data = state.at(from, bytes).to_vec();
        state.pinned.get_mut(&to.0).unwrap()[offset..][..bytes].copy_from_slice(&data);
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: u64, _: StreamHandle) -> Answer {
        self.queue(Work::Copy { to, from, bytes })
    }

    fn fill(&self, to: u64, byte: u8, bytes: u64, _: StreamHandle) -> Answer {
        self.queue(Work::Fill { to, byte, bytes })
    }

    fn load(&self, _: &[u8]) -> Answer<Module> {
        Ok(Module(self.handle()))
    }

    fn unload(&self, _: Module) -> Answer {
        Ok(())
    }

    fn function(&self, _: Module, symbol: &str) -> Answer<Function> {
        Ok(Function(usize::from(symbol != "add")))
    }

    fn param_sizes(&self, function: Function) -> Answer<Vec<usize>> {
        Ok(vec![8; 3 - function.0])
    }

    fn allow_shared(&self, _: Function, _: u32) -> Answer {
        Ok(())
    }

    fn encode_map(&self, _: &TensorMap, _: u64) -> Answer<[u8; MAP_BYTES]> {
        Ok([0; MAP_BYTES])
    }

    fn launch(
        &self,
        function: Function,
        shape: Shape,
        params: &[Value],
        _: StreamHandle,
    ) -> Answer {
        let word = |value: &Value| u64::from_le_bytes(value.bytes().try_into().unwrap());
        let params = params.iter().map(word).collect();
        self.queue(Work::Launch { kernel: function.0, blocks: shape.grid[0], params })
    }

    fn create_stream(&self) -> Answer<StreamHandle> {
        Ok(StreamHandle(self.handle()))
    }

    fn destroy_stream(&self, _: StreamHandle) -> Answer {
        Ok(())
    }

    fn synchronize(&self, _: StreamHandle) -> Answer {
        Ok(())
    }

    fn wait(&self, _: StreamHandle, _: EventHandle) -> Answer {
        Ok(())
    }

    fn create_event(&self) -> Answer<EventHandle> {
        Ok(EventHandle(self.handle()))
    }

    fn destroy_event(&self, _: EventHandle) -> Answer {
        Ok(())
    }

    fn record(&self, _: EventHandle, _: StreamHandle) -> Answer {
        Ok(())
    }

    fn synchronize_event(&self, _: EventHandle) -> Answer {
        Ok(())
    }

    fn elapsed_ms(&self, _: EventHandle, _: EventHandle) -> Answer<f32> {
        Ok(1.0)
    }

    fn begin_capture(&self, _: StreamHandle) -> Answer {
        self.state().captured = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self, _: StreamHandle) -> Answer<GraphHandle> {
        let handle = self.handle();
        let mut state = self.state();
        let work = state.captured.take().unwrap();
        state.graphs.insert(handle, work);
        Ok(GraphHandle(handle))
    }

    fn launch_graph(&self, graph: GraphHandle, _: StreamHandle) -> Answer {
        let mut state = self.state();
        state.replays += 1;
        let work = state.graphs[&graph.0].clone();
        work.iter().for_each(|work| state.work(work));
        Ok(())
    }

    fn destroy_graph(&self, graph: GraphHandle) -> Answer {
        self.state().graphs.remove(&graph.0);
        Ok(())
    }
}
