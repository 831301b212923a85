//! A driver whose device is the emulator: what is launched is computed at once, faults are errors.
//!
//! It is as strict as the emulator: what a kernel reads must have been written, by a kernel, a copy
//! or a fill before it, and must not have been freed; and what it reads before it has waited for
//! the launches before it must be what no kernel ever writes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
};

use ::cuda::{
    Device, DriverError, Facts, TensorMap,
    driver::{
        Answer, Driver, EventHandle, Function, GraphHandle, MAP_BYTES, Module, Pinned, Shape,
        StreamHandle, Value,
    },
};
use ::ptx::{Arch, Gpu, Launch, Param};
use ir::{CudaArch, DType, Swizzle};

/// Bytes of its memory.
const BYTES: u64 = 1 << 30;

/// Work that a graph repeats.
#[derive(Clone, Debug)]
enum Work {
    Launch { function: Function, shape: Shape, params: Vec<Vec<u8>> },
    Copy { to: u64, from: u64, bytes: u64 },
    Fill { to: u64, byte: u8, bytes: u64 },
}

#[derive(Debug)]
struct State {
    gpu: Gpu,
    next: usize,
    /// Allocations that live, and their bytes.
    allocated: BTreeMap<u64, u64>,
    pinned: HashMap<usize, Vec<u8>>,
    modules: HashMap<usize, Arc<::ptx::Module>>,
    /// Kernels by number: module and name.
    functions: Vec<(usize, String)>,
    captured: Option<Vec<Work>>,
    graphs: HashMap<usize, Vec<Work>>,
    launches: u64,
    replays: u64,
}

/// The driver.
#[derive(Debug)]
pub(crate) struct Emulated {
    facts: Facts,
    state: Mutex<State>,
}

/// A device of an architecture, and its driver.
pub(super) fn device(arch: CudaArch) -> (Device, Arc<Emulated>) {
    let (emulated, capability) = match arch {
        CudaArch::Sm80 => (Arch::Sm80, (8, 0)),
        CudaArch::Sm90a => (Arch::Sm90a, (9, 0)),
    };
    let facts = Facts {
        name: format!("emulator of {}", arch.name()),
        capability,
        driver: 13000,
        memory_bytes: BYTES,
        multiprocessors: 4,
        shared_bytes: if capability.0 == 8 { 163 << 10 } else { 227 << 10 },
        l2_bytes: 1 << 20,
        clock_khz: 1,
    };
    let state = State {
        gpu: Gpu::new(emulated),
        next: 0,
        allocated: BTreeMap::new(),
        pinned: HashMap::new(),
        modules: HashMap::new(),
        functions: Vec::new(),
        captured: None,
        graphs: HashMap::new(),
        launches: 0,
        replays: 0,
    };
    let driver = Arc::new(Emulated { facts, state: Mutex::new(state) });
    (Device::with(driver.clone()), driver)
}

impl Emulated {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Launches that were computed, and graphs that were started.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.launches, state.replays)
    }

    fn handle(&self) -> usize {
        let mut state = self.state();
        state.next += 1;
        state.next
    }

    /// Does work, or records it.
    fn queue(&self, work: Work) -> Answer {
        let mut state = self.state();
        match &mut state.captured {
            Some(captured) => captured.push(work),
            None => state.work(&work)?,
        }
        Ok(())
    }
}

impl State {
    fn work(&mut self, work: &Work) -> Answer {
        match work {
            Work::Copy { to, from, bytes } => {
                let bytes = usize::try_from(*bytes).unwrap();
                let data = self.gpu.try_read(*from, bytes).map_err(|e| fault("copy", &e))?;
                self.gpu.write(*to, &data);
            }
            Work::Fill { to, byte, bytes } => {
                self.gpu.write(*to, &vec![*byte; usize::try_from(*bytes).unwrap()]);
            }
            Work::Launch { function, shape, params } => {
                let (module, name) = &self.functions[function.0];
                let module = self.modules[module].clone();
                let launch = Launch {
                    grid: shape.grid,
                    block: [shape.block, 1, 1],
                    cluster: [shape.cluster, 1, 1],
                    dynamic_shared: shape.shared_bytes,
                    params: params.iter().map(|bytes| Param::Bytes(bytes.clone())).collect(),
                    seed: self.launches,
                    early: shape.dependent.then(|| self.gpu.constants()),
                    ..Launch::default()
                };
                self.launches += 1;
                let done = self.gpu.launch(&module, name, &launch);
                done.map_err(|e| fault("launch", &format!("{name}: {e}")))?;
            }
        }
        Ok(())
    }
}

fn fault(call: &'static str, text: &dyn std::fmt::Display) -> DriverError {
    DriverError { call, code: 700, name: "FAULT".into(), text: text.to_string() }
}

impl Driver for Emulated {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory(&self) -> Answer<(u64, u64)> {
        let used: u64 = self.state().allocated.values().sum();
        Ok((BYTES - used, BYTES))
    }

    fn allocate(&self, bytes: u64) -> Answer<u64> {
        let mut state = self.state();
        let address = state.gpu.alloc(usize::try_from(bytes).unwrap());
        state.allocated.insert(address, bytes);
        Ok(address)
    }

    fn free(&self, address: u64) -> Answer {
        let mut state = self.state();
        let was_there = state.gpu.free(address) && state.allocated.remove(&address).is_some();
        assert!(was_there, "{address:#x} is freed twice");
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
        state.gpu.write(to, &data);
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
        let data = state.gpu.try_read(from, bytes).map_err(|e| fault("download", &e))?;
        state.pinned.get_mut(&to.0).unwrap()[offset..][..bytes].copy_from_slice(&data);
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: u64, _: StreamHandle) -> Answer {
        self.queue(Work::Copy { to, from, bytes })
    }

    fn fill(&self, to: u64, byte: u8, bytes: u64, _: StreamHandle) -> Answer {
        self.queue(Work::Fill { to, byte, bytes })
    }

    fn load(&self, image: &[u8]) -> Answer<Module> {
        let text = image.strip_suffix(&[0]).unwrap();
        let text = std::str::from_utf8(text).unwrap();
        let module = ::ptx::Module::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let handle = self.handle();
        self.state().modules.insert(handle, Arc::new(module));
        Ok(Module(handle))
    }

    fn unload(&self, module: Module) -> Answer {
        self.state().modules.remove(&module.0);
        Ok(())
    }

    fn function(&self, module: Module, symbol: &str) -> Answer<Function> {
        let mut state = self.state();
        state.functions.push((module.0, symbol.to_owned()));
        Ok(Function(state.functions.len() - 1))
    }

    fn param_sizes(&self, function: Function) -> Answer<Vec<usize>> {
        let state = self.state();
        let (module, name) = &state.functions[function.0];
        let sizes = state.modules[module].param_bytes(name);
        sizes.ok_or_else(|| fault("cuModuleGetFunction", name))
    }

    fn allow_shared(&self, _: Function, _: u32) -> Answer {
        Ok(())
    }

    fn encode_map(&self, map: &TensorMap, address: u64) -> Answer<[u8; MAP_BYTES]> {
        let map = ::ptx::TensorMap {
            base: address,
            elem: match map.dtype {
                DType::F16 => ::ptx::Elem::F16,
                DType::U8 => ::ptx::Elem::U8,
                _ => ::ptx::Elem::Bf16,
            },
            dims: map.extents.clone(),
            strides: map.strides.clone(),
            box_dims: map.boxes.clone(),
            element_strides: Vec::new(),
            swizzle: match map.swizzle {
                Swizzle::Bytes32 => ::ptx::Swizzle::B32,
                Swizzle::Bytes64 => ::ptx::Swizzle::B64,
                Swizzle::Bytes128 => ::ptx::Swizzle::B128,
            },
            nan_fill: false,
        };
        self.state().gpu.try_tensor_map(&map).map_err(|e| fault("cuTensorMapEncodeTiled", &e))
    }

    fn launch(
        &self,
        function: Function,
        shape: Shape,
        params: &[Value],
        _: StreamHandle,
    ) -> Answer {
        let params = params.iter().map(|value| value.bytes().to_vec()).collect();
        self.queue(Work::Launch { function, shape, params })
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
        work.iter().try_for_each(|work| state.work(work))
    }

    fn destroy_graph(&self, graph: GraphHandle) -> Answer {
        self.state().graphs.remove(&graph.0);
        Ok(())
    }
}
