//! A machine that is the emulator: faults are errors of the device.
//!
//! It is as strict as the emulator: what a kernel reads must have been written, by a kernel, a copy
//! or a fill before it, and must not have been freed; and what it reads before it has waited for
//! the launches before it must be what no kernel ever writes.

use std::{collections::HashMap, sync::Arc};

use ::cuda::{
    Device, Facts, TensorMap,
    driver::{Answer, Function, MAP_BYTES, Module, Shape, Value},
    standin::{Ahead, Machine, Products, StandIn, fault},
};
use ::ptx::{Arch, Gpu, Launch, Param};
use ir::{CudaArch, DType, Swizzle};

/// Bytes of its memory.
const BYTES: u64 = 1 << 30;

/// The machine.
#[derive(Debug)]
pub(crate) struct Emulated {
    gpu: Gpu,
    modules: HashMap<usize, Arc<::ptx::Module>>,
    /// Kernels by number: module and name.
    functions: Vec<(usize, String)>,
    launches: u64,
}

/// The driver of an emulated device.
pub(crate) type Driver = StandIn<Emulated>;

/// A device of an architecture, and its driver; it has a cuBLASLt.
pub(super) fn device(arch: CudaArch) -> (Device, Arc<Driver>) {
    let driver = Arc::new(driver(arch, Ahead::First));
    let products = Arc::new(Products::new(driver.clone()));
    (Device::with(driver.clone()).multiplying_by(products), driver)
}

/// The driver of a device of an architecture.
pub(super) fn driver(arch: CudaArch, ahead: Ahead) -> Driver {
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
    let machine = Emulated {
        gpu: Gpu::new(emulated),
        modules: HashMap::new(),
        functions: Vec::new(),
        launches: 0,
    };
    StandIn::new(facts, machine, ahead)
}

impl Machine for Emulated {
    fn allocate(&mut self, bytes: u64) -> u64 {
        self.gpu.alloc(usize::try_from(bytes).unwrap())
    }

    fn free(&mut self, address: u64) {
        assert!(self.gpu.free(address), "{address:#x} is freed twice");
    }

    fn read(&mut self, from: u64, bytes: usize) -> Answer<Vec<Option<u8>>> {
        self.gpu.written(from, bytes).map_err(|e| fault("read", e))
    }

    fn write(&mut self, to: u64, data: &[u8]) {
        self.gpu.write(to, data);
    }

    fn load(&mut self, module: Module, image: &[u8]) -> Answer {
        let text = std::str::from_utf8(image.strip_suffix(&[0]).unwrap()).unwrap();
        let parsed = ::ptx::Module::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        self.modules.insert(module.0, Arc::new(parsed));
        Ok(())
    }

    fn unload(&mut self, module: Module) {
        self.modules.remove(&module.0);
    }

    fn function(&mut self, module: Module, symbol: &str) -> Answer<Function> {
        self.functions.push((module.0, symbol.to_owned()));
        Ok(Function(self.functions.len() - 1))
    }

    fn param_sizes(&mut self, function: Function) -> Answer<Vec<usize>> {
        let (module, name) = &self.functions[function.0];
        let sizes = self.modules[module].param_bytes(name);
        sizes.ok_or_else(|| fault("cuModuleGetFunction", name))
    }

    fn encode_map(&mut self, map: &TensorMap, address: u64) -> Answer<[u8; MAP_BYTES]> {
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
        self.gpu.try_tensor_map(&map).map_err(|e| fault("cuTensorMapEncodeTiled", e))
    }

    fn launch(&mut self, function: Function, shape: Shape, params: &[Value]) -> Answer {
        let (module, name) = &self.functions[function.0];
        let launch = Launch {
            grid: shape.grid,
            block: [shape.block, 1, 1],
            cluster: [shape.cluster, 1, 1],
            dynamic_shared: shape.shared_bytes,
            params: params.iter().map(|value| Param::Bytes(value.bytes().to_vec())).collect(),
            seed: self.launches,
            early: shape.dependent.then(|| self.gpu.constants()),
            ..Launch::default()
        };
        self.launches += 1;
        let done = self.gpu.launch(&self.modules[module], name, &launch);
        done.map(drop).map_err(|e| fault("launch", format!("{name}: {e}")))
    }
}
