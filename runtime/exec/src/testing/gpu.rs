//! A GPU that is not there: its memory is the host's, and its two kernels are functions of Rust.

use std::{collections::BTreeMap, num::NonZeroUsize, sync::Arc};

use cuda::{
    Facts, TensorMap,
    driver::{Answer, Function, MAP_BYTES, Module, Shape, Value},
    standin::{Ahead, Machine},
};
use ir::{CudaArch, CudaCode, CudaModule, CudaParam, CudaVariant, Dim, Program, Span, Target};

use super::{CODE, artifact};
use crate::{Device, Model};

/// Bytes of its memory.
const BYTES: u64 = 1 << 30;
/// From one allocation to the next.
const APART: u64 = 1 << 32;

/// Its driver.
pub(crate) type StandIn = cuda::standin::StandIn<Two>;

/// Its memory; bytes are there when something has written them.
#[derive(Debug, Default)]
pub(crate) struct Two {
    allocations: u64,
    memory: BTreeMap<u64, Vec<Option<u8>>>,
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
            kernel.cuda = vec![CudaCode { arch, variants: vec![variant], library: None }];
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
    let driver = Arc::new(StandIn::new(facts, Two::default(), Ahead::First));
    let device = Device::cuda(cuda::Device::with(driver.clone()), NonZeroUsize::new(1)).unwrap();
    let artifact = artifact(file, Target::sm_80(), modules, programs);
    (Model::load(artifact, device).unwrap(), driver)
}

impl Two {
    /// Bytes that are allocated from an address on.
    fn at(&mut self, address: u64, bytes: usize) -> &mut [Option<u8>] {
        let (start, memory) = self.memory.range_mut(..=address).next_back().expect("memory");
        let offset = usize::try_from(address - start).unwrap();
        &mut memory[offset..offset + bytes]
    }

    fn get<const N: usize>(&mut self, address: u64) -> [u8; N] {
        let bytes = self.at(address, N).iter().map(|byte| byte.expect("what was written"));
        bytes.collect::<Vec<u8>>().try_into().unwrap()
    }

    fn f32(&mut self, address: u64) -> f32 {
        f32::from_le_bytes(self.get(address))
    }
}

impl Machine for Two {
    fn allocate(&mut self, bytes: u64) -> u64 {
        self.allocations += 1;
        let address = self.allocations * APART;
        self.memory.insert(address, vec![None; usize::try_from(bytes).unwrap()]);
        address
    }

    fn free(&mut self, address: u64) {
        self.memory.remove(&address);
    }

    fn read(&mut self, from: u64, bytes: usize) -> Answer<Vec<Option<u8>>> {
        Ok(self.at(from, bytes).to_vec())
    }

    fn write(&mut self, to: u64, data: &[u8]) {
        let memory = self.at(to, data.len());
        memory.iter_mut().zip(data).for_each(|(to, byte)| *to = Some(*byte));
    }

    fn load(&mut self, _: Module, _: &[u8]) -> Answer {
        Ok(())
    }

    fn function(&mut self, _: Module, symbol: &str) -> Answer<Function> {
        Ok(Function(usize::from(symbol != "add")))
    }

    fn param_sizes(&mut self, function: Function) -> Answer<Vec<usize>> {
        Ok(vec![8; 3 - function.0])
    }

    fn encode_map(&mut self, _: &TensorMap, _: u64) -> Answer<[u8; MAP_BYTES]> {
        Ok([0; MAP_BYTES])
    }

    fn launch(&mut self, function: Function, shape: Shape, params: &[Value]) -> Answer {
        let word = |value: &Value| u64::from_le_bytes(value.bytes().try_into().unwrap());
        let params: Vec<u64> = params.iter().map(word).collect();
        if function.0 == 1 {
            let sum = u64::from_le_bytes(self.get(params[0])) + params[1];
            self.write(params[0], &sum.to_le_bytes());
            return Ok(());
        }
        for i in 0..u64::from(shape.grid[0]) {
            let sum = self.f32(params[0] + 4 * i) + self.f32(params[1]);
            self.write(params[2] + 4 * i, &sum.to_le_bytes());
        }
        Ok(())
    }
}
