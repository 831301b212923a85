//! A machine that computes nothing: it notes what was launched.

use std::sync::Arc;

use crate::{
    Device, Facts, TensorMap,
    driver::{Answer, Function, MAP_BYTES, Module, Shape},
    launch::Value,
    standin::{Ahead, Machine, StandIn},
};

/// Bytes of its memory.
pub(super) const BYTES: u64 = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Blank {
    param_sizes: Vec<usize>,
    allocations: u64,
    /// What was launched, in order.
    pub(super) launches: Vec<(Shape, Vec<Vec<u8>>)>,
    /// Shared memory that was allowed last.
    pub(super) shared: u32,
}

/// A device whose kernels take parameters of these sizes.
pub(super) fn device(param_sizes: &[usize]) -> (Device, Arc<StandIn<Blank>>) {
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
    let machine = Blank { param_sizes: param_sizes.into(), ..Blank::default() };
    let driver = Arc::new(StandIn::new(facts, machine, Ahead::First));
    (Device::with(driver.clone()), driver)
}

impl Machine for Blank {
    fn allocate(&mut self, _: u64) -> u64 {
        self.allocations += 1;
        0x7000_0000 + self.allocations * 2 * BYTES
    }

    fn free(&mut self, _: u64) {}

    fn read(&mut self, _: u64, bytes: usize) -> Answer<Vec<Option<u8>>> {
        Ok(vec![Some(0); bytes])
    }

    fn write(&mut self, _: u64, _: &[u8]) {}

    fn load(&mut self, _: Module, image: &[u8]) -> Answer {
        assert!(image.ends_with(&[0]) || image.starts_with(b"\x7fELF"), "a text without an end");
        Ok(())
    }

    fn function(&mut self, module: Module, _: &str) -> Answer<Function> {
        Ok(Function(module.0))
    }

    fn param_sizes(&mut self, _: Function) -> Answer<Vec<usize>> {
        Ok(self.param_sizes.clone())
    }

    fn allow_shared(&mut self, _: Function, bytes: u32) {
        self.shared = bytes;
    }

    fn encode_map(&mut self, map: &TensorMap, address: u64) -> Answer<[u8; MAP_BYTES]> {
        let mut bytes = [u8::try_from(map.boxes.len()).unwrap(); MAP_BYTES];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        Ok(bytes)
    }

    fn launch(&mut self, _: Function, shape: Shape, params: &[Value]) -> Answer {
        let values = params.iter().map(|value| value.bytes().to_vec()).collect();
        self.launches.push((shape, values));
        Ok(())
    }
}
