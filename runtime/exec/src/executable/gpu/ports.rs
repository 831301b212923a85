//! Inputs and outputs of a program on a GPU.

use std::ops::Range;

use cuda::{Address, CudaError, Device, Memory, Stream};
use ir::{Program, Region};

use super::{super::Run, transfer::Transfer};
use crate::{ExecError, gpu::Gpu};

/// What is copied to the arena before a run, and back behind it.
#[derive(Debug)]
pub(super) struct Ports {
    up: Transfer,
    down: Transfer,
    /// Where each output of the last run lies that is copied back, and its bytes.
    fetched: Vec<Option<Range<usize>>>,
    outputs: Vec<Option<Vec<u8>>>,
    /// Outputs that are not copied back.
    left: Vec<usize>,
}

impl Ports {
    pub(super) fn new(device: &Device, program: &Program) -> Result<Ports, CudaError> {
        Ok(Ports {
            up: Transfer::new(device, program, &program.inputs)?,
            down: Transfer::new(device, program, &program.outputs)?,
            fetched: Vec::new(),
            outputs: Vec::new(),
            left: Vec::new(),
        })
    }

    /// Pinned bytes of the host.
    pub(super) fn bytes(&self) -> u64 {
        self.up.bytes() + self.down.bytes()
    }

    /// Leaves outputs of these numbers in the arena.
    pub(super) fn leave(&mut self, outputs: &[usize]) {
        self.left = outputs.to_vec();
    }

    /// An output of the last run, if it was copied back.
    pub(super) fn output(&self, index: usize) -> Option<&[u8]> {
        self.outputs.get(index)?.as_deref()
    }

    /// Writes a run's inputs to pinned memory, and begins to copy those that have no room there;
    /// finds places for its outputs.
    pub(super) fn lay_out(
        &mut self,
        gpu: &Gpu,
        arena: &Memory,
        run: &mut Run<'_>,
    ) -> Result<(), ExecError> {
        let inputs: Vec<(Range<usize>, &[u8])> = (&mut *run.inputs).collect();
        let ranges: Vec<_> = inputs.iter().map(|(range, _)| Some(range.clone())).collect();
        self.up.lay_out(&ranges);
        let mut large: Vec<(Address, &[u8])> = Vec::new();
        for (port, (range, bytes)) in inputs.into_iter().enumerate() {
            match self.up.place(port) {
                Some(place) => self.up.write(place, bytes)?,
                None => large.push((arena.at(range.start as u64), bytes)),
            }
        }
        if !large.is_empty() {
            gpu.staging().upload_all(gpu.stream(), large.iter().cloned())?;
        }
        self.fetched.clear();
        for (i, slot) in run.outputs.iter().enumerate() {
            let is_here = slot.region == Region::Arena && !self.left.contains(&i);
            let range = run.sizes.range(slot).filter(|_| is_here);
            self.fetched.push(range.filter(|r| r.end as u64 <= arena.bytes()));
        }
        self.down.lay_out(&self.fetched);
        Ok(())
    }

    /// Copies what was written to the arena.
    pub(super) fn upload(&self, stream: &Stream, arena: &Memory) -> Result<(), CudaError> {
        self.up.upload(stream, arena)
    }

    /// Copies what is to be read from the arena.
    pub(super) fn download(&self, stream: &Stream, arena: &Memory) -> Result<(), CudaError> {
        self.down.download(stream, arena)
    }

    /// Waits for a run, and takes the outputs that lie in the arena.
    pub(super) fn fetch(&mut self, gpu: &Gpu, arena: &Memory) -> Result<(), ExecError> {
        self.outputs.resize_with(self.fetched.len(), || None);
        let mut large: Vec<(Address, &mut [u8])> = Vec::new();
        let mut small: Vec<(usize, &mut [u8])> = Vec::new();
        for (i, (range, buffer)) in self.fetched.iter().zip(&mut self.outputs).enumerate() {
            let Some(range) = range else {
                *buffer = None;
                continue;
            };
            let buffer = buffer.get_or_insert_default();
            buffer.resize(range.len(), 0);
            match self.down.place(i) {
                Some(place) => small.push((place, buffer)),
                None => large.push((arena.at(range.start as u64), buffer)),
            }
        }
        match large.is_empty() {
            true => gpu.stream().synchronize()?,
            false => gpu.staging().download_all(gpu.stream(), &mut large)?,
        }
        for (place, buffer) in small {
            self.down.read(place, buffer)?;
        }
        Ok(())
    }
}
