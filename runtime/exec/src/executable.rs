//! An entry point that is ready to run.
//!
//! Loading resolves every place to a pointer where it is constant and collects the distinct sizes
//! that depend on symbols. A run evaluates those, patches the few pointers that depend on them, and
//! walks the launches.

#![allow(unsafe_code, reason = "holds addresses of memory that it owns")]

mod ports;
mod resolve;
#[cfg(test)]
mod tests;
mod walk;

use std::{
    borrow::Cow,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use ir::{Dim, Port, Program, Tensor};

use self::{
    ports::{Sizes, Slot},
    walk::{Meeting, Work},
};
use crate::{
    Arena, ExecError, Groups, Model, States, Trace,
    bind::{Symbolic, Values},
    launch::LaunchList,
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
    /// Where each of the kernels' sizes comes from.
    dims: Vec<usize>,
    /// Tiles, operations and bytes of each kernel.
    work: Vec<Work>,
    /// Pointers that differ from run to run.
    patches: Vec<Patch>,
    inputs: Vec<Slot>,
    outputs: Vec<Slot>,
    states: Vec<Slot>,
    launches: LaunchList,
    meetings: Vec<Meeting>,
    groups: Groups,
    arena: Arena,
    scratch: Arena,
    scratch_stride: usize,
    buffers: Buffers,
    times: Option<Vec<Duration>>,
    /// How long collectives of the last run were waited for, by their number.
    waits: Vec<(usize, Duration)>,
    trace: Option<Trace>,
}

/// How long a launch took.
#[derive(Clone, Copy, Debug)]
pub struct LaunchTime<'a> {
    /// What it computes.
    pub label: &'a str,
    /// Its kernel.
    pub kernel: &'a ir::Kernel,
    /// From the barrier before it to the barrier after it.
    pub time: Duration,
    /// Floating point operations, for the symbols of this run.
    pub flops: u64,
    /// Bytes that it must read and write, for the symbols of this run.
    pub bytes: u64,
}

/// What a run works with, kept for its memory.
#[derive(Debug, Default)]
struct Buffers {
    values: Values,
    symbols: Vec<i64>,
    /// By kernel.
    seconds: Vec<f64>,
    /// By state.
    bases: Vec<*mut u8>,
    /// Of each input of the program: where it goes, and its number among those given.
    inputs: Vec<(Range<usize>, usize)>,
}

#[derive(Debug)]
struct Patch {
    arg: usize,
    base: Base,
    offset: usize,
}

#[derive(Clone, Copy, Debug)]
enum Base {
    Fixed(*mut u8),
    State(usize),
}

// SAFETY: the pointers lead into the arena and the mapped file, both owned here and used by `run`
// alone, which takes `&mut self`; those to states are set anew by every run that uses them.
unsafe impl Send for Executable {}

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
        let reserve = |what: &str, bytes: u64| {
            Arena::new(bytes).map_err(|e| ExecError::Memory {
                what: format!("entry `{entry}`: {what}"),
                bytes,
                reason: format!("the system has no room for it: {e}"),
            })
        };
        let stride = program.scratch_bytes().next_multiple_of(4096);
        let threads = model.device().pool().threads() as u64;
        let mut exe = Executable {
            model: model.clone(),
            index,
            bound,
            sizes: Sizes::default(),
            dims: Vec::new(),
            work: Vec::new(),
            patches: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            states: Vec::new(),
            launches: LaunchList::default(),
            meetings: Vec::new(),
            groups: Groups::none(),
            arena: reserve("the arena", program.arena_bytes)?,
            scratch: reserve("scratch memory", stride.saturating_mul(threads))?,
            scratch_stride: usize::try_from(stride).unwrap_or(usize::MAX),
            buffers: Buffers::default(),
            times: None,
            waits: Vec::new(),
            trace: None,
        };
        exe.resolve(program)?;
        Ok(exe)
    }

    /// Meets these groups in its collectives from now on.
    ///
    /// # Errors
    /// [`ExecError::Ranks`] if they have other sizes than it was compiled for.
    pub fn join(&mut self, groups: &Groups) -> Result<(), ExecError> {
        let check = groups.check(&self.program().collectives);
        let entry = || self.program().name.clone();
        check.map_err(|reason| ExecError::Ranks { entry: entry(), reason })?;
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

    /// Its arena.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Scratch memory of all threads.
    pub fn scratch(&self) -> &Arena {
        &self.scratch
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
        let result = complete.and_then(|()| self.run_with(&mut buffers, states, inputs));
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
        self.run_with(&mut buffers, &mut States::none(), &bytes)?;
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

    /// An output of the last run, in row-major order, as elements of its type.
    ///
    /// # Errors
    /// [`ExecError::Port`] if there is no such output or `T` is no type for its elements.
    pub fn output<T: bytemuck::AnyBitPattern>(&self, name: &str) -> Result<&[T], ExecError> {
        let symbolic = Symbolic::new(self.program());
        let ports = &self.program().outputs;
        let Some(index) = ports.iter().position(|port| *port.name == *name) else {
            let known: Vec<_> = ports.iter().map(|p| format!("`{}`", p.name)).collect();
            let reason = format!("does not exist; there are {}", known.join(", "));
            return Err(symbolic.port("output", name, reason));
        };
        let element_bytes = ports[index].ty.dtype.size();
        let elements = bytemuck::try_cast_slice(self.output_bytes(index)?).ok();
        elements.filter(|_| [1, element_bytes].contains(&size_of::<T>())).ok_or_else(|| {
            let reason = format!("has elements of type {}", ports[index].ty.dtype);
            symbolic.port("output", name, reason)
        })
    }

    /// Whether to measure each launch from now on, which costs some ten nanoseconds a launch.
    pub fn set_profiling(&mut self, on: bool) {
        self.times = on.then(Vec::new);
    }

    /// Records every run and launch from now on; `None` ends that.
    pub fn set_trace(&mut self, trace: Option<Trace>) {
        self.set_profiling(trace.is_some());
        self.trace = trace;
    }

    /// The launches of the last run in order; none unless [`set_profiling`](Self::set_profiling).
    pub fn launch_times(&self) -> impl Iterator<Item = LaunchTime<'_>> {
        let program = self.program();
        let symbols = &self.sizes.symbols;
        let eval = move |dim: &Dim| {
            let value = dim.compile(&program.symbols).ok().and_then(|d| d.eval(symbols));
            value.and_then(|v| u64::try_from(v).ok()).unwrap_or(0)
        };
        let times = self.times.as_deref().unwrap_or_default();
        program.launches.iter().zip(times).map(move |(launch, time)| {
            let kernel = &program.kernels[launch.kernel as usize];
            let (flops, bytes) = (eval(&kernel.flops), eval(&kernel.bytes));
            LaunchTime { label: &launch.label, kernel, time: *time, flops, bytes }
        })
    }

    fn run_with(
        &mut self,
        buffers: &mut Buffers,
        states: &mut States,
        inputs: &[(&str, &[u8])],
    ) -> Result<(), ExecError> {
        let _span = tracing::debug_span!("run", entry = %self.program().name).entered();
        let start = Instant::now();
        self.sizes
            .evaluate(&mut buffers.symbols)
            .ok_or_else(|| Symbolic::new(self.program()).symbol("?", "makes a size overflow"))?;
        for (slot, dim) in self.launches.dims_mut().iter_mut().zip(&self.dims) {
            *slot = self.sizes.values[*dim];
        }
        self.share_work(&mut buffers.seconds);
        self.state_bases(states, &mut buffers.bases)?;
        for patch in &self.patches {
            let base = match patch.base {
                Base::Fixed(base) => base,
                Base::State(state) => buffers.bases[state],
            };
            let offset = usize::try_from(self.sizes.values[patch.offset]).unwrap_or(usize::MAX);
            self.launches.set_arg(patch.arg, base.wrapping_add(offset));
        }
        self.write_inputs(inputs, &mut buffers.inputs)?;
        self.walk(&buffers.bases)?;
        if let Some(trace) = &self.trace {
            let program = self.program();
            let labels = program.launches.iter().map(|launch| launch.label.as_str());
            let launches = labels.zip(self.times.iter().flatten().copied());
            let label = |(i, took): &(usize, Duration)| {
                let collective = &program.collectives[*i];
                ((collective.end as usize, collective.label.as_str()), *took)
            };
            let collectives = self.waits.iter().map(label);
            trace.record_run(&program.name, start, launches, collectives);
        }
        Ok(())
    }
}
