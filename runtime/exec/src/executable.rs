//! An entry point that is ready to run.
//!
//! Loading collects the distinct sizes that depend on symbols. A run evaluates those, checks states
//! and inputs against them, and has the launches done by what belongs to the device: [`cpu`] or
//! [`gpu`].

mod cpu;
mod gpu;
mod outputs;
mod ports;
mod sizes;
#[cfg(test)]
mod tests;
mod times;

use std::{
    borrow::Cow,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use ir::{Port, Program, Tensor};

pub(crate) use self::gpu::{Lent, pinned_bytes};
pub use self::times::LaunchTime;
use self::{cpu::Cpu, gpu::OnGpu, ports::Slot, sizes::Sizes, times::Times};
use crate::{
    ExecError, Groups, Model, States, Trace,
    bind::{Symbolic, Values},
    device::ModelCode,
};

/// A loaded entry point with an arena of its own.
#[derive(Debug)]
pub struct Executable {
    model: Arc<Model>,
    /// Number of the program in the manifest.
    index: usize,
    /// Symbols that were bound when loading.
    bound: Values,
    sizes: Sizes,
    inputs: Vec<Slot>,
    outputs: Vec<Slot>,
    states: Vec<Slot>,
    groups: Groups,
    engine: Engine,
    buffers: Buffers,
    times: Times,
    trace: Option<Trace>,
}

/// What does the launches.
#[derive(Debug)]
enum Engine {
    Cpu(Box<Cpu>),
    Gpu(Box<OnGpu>),
}

/// A run whose sizes are known and whose states and inputs fit.
struct Run<'a> {
    model: &'a Model,
    program: &'a Program,
    sizes: &'a Sizes,
    groups: &'a Groups,
    outputs: &'a [Slot],
    /// What goes where in the arena.
    inputs: &'a mut dyn Iterator<Item = (Range<usize>, &'a [u8])>,
    states: &'a mut States,
    /// What is to be done while a device computes.
    beside: &'a mut dyn FnMut(),
}

/// What a run works with, kept for its memory.
#[derive(Debug, Default)]
struct Buffers {
    values: Values,
    symbols: Vec<i64>,
    /// Of each input of the program: where it goes, and its number among those given.
    inputs: Vec<(Range<usize>, usize)>,
}

impl Executable {
    /// Loads an entry point of a model. Symbols in `bound` keep their value for all runs; those in
    /// the types of states must be among them.
    ///
    /// # Errors
    /// [`ExecError::Artifact`] if there is no such entry, [`ExecError::Symbol`],
    /// [`ExecError::Memory`].
    pub fn load(
        model: &Arc<Model>,
        entry: &str,
        bound: &[(&str, i64)],
    ) -> Result<Executable, ExecError> {
        let artifact = model.artifact();
        let program = artifact.program(entry)?;
        let programs = &artifact.manifest().programs;
        let index = programs.iter().position(|p| p.name == entry).unwrap_or_default();
        let symbolic = Symbolic::new(program);
        let bound = symbolic.values(bound)?;
        let mut sizes = Sizes::default();
        let engine = match model.code() {
            ModelCode::Cpu(code) => {
                Engine::Cpu(Box::new(Cpu::load(model, code, program, &mut sizes)?))
            }
            ModelCode::Gpu(loaded) => {
                Engine::Gpu(Box::new(OnGpu::load(model, loaded, program, &mut sizes)?))
            }
        };
        let mut slots = |ports: &[Port]| -> Result<Vec<Slot>, ExecError> {
            ports.iter().map(|port| Slot::of(port, program, &mut sizes)).collect()
        };
        let inputs = slots(&program.inputs)?;
        let outputs = slots(&program.outputs)?;
        let states = slots(&program.states)?;
        Ok(Executable {
            model: model.clone(),
            index,
            bound,
            sizes,
            inputs,
            outputs,
            states,
            groups: Groups::none(),
            engine,
            buffers: Buffers::default(),
            times: Times::default(),
            trace: None,
        })
    }

    /// Meets these groups in its collectives from now on.
    ///
    /// # Errors
    /// [`ExecError::Ranks`] if they have other sizes than it was compiled for; [`ExecError::Cuda`]
    /// if there is no memory for what other ranks' GPUs send.
    pub fn join(&mut self, groups: &Groups) -> Result<(), ExecError> {
        let check = groups.check(&self.program().collectives);
        let entry = || self.program().name.clone();
        check.map_err(|reason| ExecError::Ranks { entry: entry(), reason })?;
        if let Some(links) = groups.links() {
            links.reserve(self.program().staging_bytes())?;
        }
        self.groups = groups.clone();
        Ok(())
    }

    /// The program that it runs.
    pub fn program(&self) -> &Program {
        &self.model.artifact().manifest().programs[self.index]
    }

    /// The model that it belongs to.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Bytes of its arena, and of the scratch memory of all threads, that are in use.
    pub fn resident_bytes(&self) -> (u64, u64) {
        match &self.engine {
            Engine::Cpu(cpu) => cpu.resident_bytes(),
            Engine::Gpu(gpu) => (gpu.arena_bytes(), 0),
        }
    }

    /// Pinned bytes of this machine's memory that inputs and outputs of a GPU go through.
    pub fn pinned_bytes(&self) -> u64 {
        match &self.engine {
            Engine::Cpu(_) => 0,
            Engine::Gpu(gpu) => gpu.pinned_bytes(),
        }
    }

    /// Runs the program once.
    ///
    /// `symbols` has a value for every symbol that is not bound, `inputs` the elements of every
    /// input in row-major order.
    ///
    /// # Errors
    /// [`ExecError::Symbol`] and [`ExecError::Port`] for values, inputs and states that do not fit;
    /// nothing has run then.
    pub fn run(
        &mut self,
        states: &mut States,
        symbols: &[(&str, i64)],
        inputs: &[(&str, &[u8])],
    ) -> Result<(), ExecError> {
        self.run_beside(states, symbols, inputs, &mut || ())
    }

    /// As [`run`](Self::run); on a GPU `beside` is called while that computes, unless something
    /// fails before. On the CPU it is called first.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_beside(
        &mut self,
        states: &mut States,
        symbols: &[(&str, i64)],
        inputs: &[(&str, &[u8])],
        beside: &mut dyn FnMut(),
    ) -> Result<(), ExecError> {
        let mut buffers = std::mem::take(&mut self.buffers);
        let Buffers { values, symbols: all, .. } = &mut buffers;
        let symbolic = Symbolic::new(self.program());
        values.clear();
        values.resize(self.bound.len(), None);
        let complete = symbolic.set(symbols, values).and_then(|()| {
            for (value, bound) in values.iter_mut().zip(&self.bound) {
                *value = bound.or(*value);
            }
            symbolic.complete(values, all)
        });
        let result = complete.and_then(|()| self.run_with(&mut buffers, states, inputs, beside));
        self.buffers = buffers;
        result
    }

    /// Runs a program without states on tensors, whose shapes fix the symbols; inputs come in any
    /// order, outputs in that of the program.
    ///
    /// # Errors
    /// As [`run`](Self::run); an input of another element type is an error too.
    pub fn run_tensors(
        &mut self,
        inputs: &[(&str, Tensor)],
    ) -> Result<Vec<(Arc<str>, Tensor)>, ExecError> {
        let program = self.program();
        let symbolic = Symbolic::new(program);
        let mut shapes = Vec::new();
        for port in &program.inputs {
            let Some((_, tensor)) = inputs.iter().find(|(name, _)| **name == *port.name) else {
                let reason = format!("of type {} is missing", port.ty);
                return Err(symbolic.port("input", &port.name, reason));
            };
            let (is, wanted) = (tensor.dtype(), port.ty.dtype);
            if is != wanted {
                let reason = format!("has elements of type {is}, not {wanted}");
                return Err(symbolic.port("input", &port.name, reason));
            }
            shapes.push((port, tensor.shape()));
        }
        let symbols = symbolic.solve(shapes, &self.bound)?;
        let bytes: Vec<(&str, Cow<'_, [u8]>)> = inputs
            .iter()
            .map(|(name, t)| (*name, t.as_bytes().map_or_else(|| t.to_bytes().into(), Cow::from)))
            .collect();
        let bytes: Vec<(&str, &[u8])> = bytes.iter().map(|(name, b)| (*name, &**b)).collect();
        let mut buffers = Buffers { symbols, ..Buffers::default() };
        self.run_with(&mut buffers, &mut States::none(), &bytes, &mut || ())?;
        let ports = self.program().outputs.clone();
        let tensor = |(i, port): (usize, Port)| {
            let slot = &self.outputs[i];
            let extent = |size: &usize| usize::try_from(self.sizes.values[*size]).unwrap_or(0);
            let shape: Vec<usize> = slot.shape.iter().map(extent).collect();
            let bytes = self.output_bytes(i)?.to_vec();
            Ok((port.name, Tensor::from_bytes(port.ty.dtype, &shape, bytes)))
        };
        ports.into_iter().enumerate().map(tensor).collect()
    }

    fn run_with(
        &mut self,
        buffers: &mut Buffers,
        states: &mut States,
        inputs: &[(&str, &[u8])],
        beside: &mut dyn FnMut(),
    ) -> Result<(), ExecError> {
        let _span = tracing::debug_span!("run", entry = %self.program().name).entered();
        let start = Instant::now();
        self.sizes
            .evaluate(&mut buffers.symbols)
            .ok_or_else(|| Symbolic::new(self.program()).symbol("?", "makes a size overflow"))?;
        self.check_states(states)?;
        self.place_inputs(inputs, &mut buffers.inputs)?;
        let program = &self.model.artifact().manifest().programs[self.index];
        self.groups.check(&program.collectives).map_err(|reason| {
            let entry = program.name.clone();
            ExecError::Ranks { entry, reason }
        })?;
        let places = buffers.inputs.iter();
        let mut run = Run {
            model: &self.model,
            program,
            sizes: &self.sizes,
            groups: &self.groups,
            outputs: &self.outputs,
            inputs: &mut places.map(|(range, number)| (range.clone(), inputs[*number].1)),
            states,
            beside,
        };
        self.times.waits.clear();
        match &mut self.engine {
            Engine::Cpu(cpu) => {
                (run.beside)();
                cpu.run(&mut run, &mut self.times)?;
            }
            Engine::Gpu(gpu) => gpu.run(&mut run, &mut self.times)?,
        }
        if let Some(trace) = &self.trace {
            let program = self.program();
            let labels = program.launches.iter().map(|launch| launch.label.as_str());
            let launches = labels.zip(self.times.launches.iter().flatten().copied());
            let label = |(i, took): &(usize, Duration)| {
                let collective = &program.collectives[*i];
                ((collective.end as usize, collective.label.as_str()), *took)
            };
            let collectives = self.times.waits.iter().map(label);
            trace.record_run(&program.name, start, launches, collectives);
        }
        Ok(())
    }
}
