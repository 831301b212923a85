//! An entry point that is ready to run.
//!
//! Loading resolves every place to a pointer where it is constant and collects the distinct sizes
//! that depend on symbols. A run evaluates those, patches the few pointers that depend on them, and
//! walks the launches.

#![allow(unsafe_code, reason = "lends memory to generated code")]

use std::{
    borrow::Cow,
    collections::HashMap,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use ir::{CompiledDim, Dim, ModelKind, Place, Port, Program, Region, Target, Tensor};

use crate::{
    Arena, ExecError, Groups, Model, States, Trace,
    bind::{Symbolic, Values},
    launch::{LaunchList, Scratch},
    meeting::Started,
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

/// Distinct sizes, and their values in the current run.
#[derive(Debug, Default)]
struct Sizes {
    exprs: Vec<CompiledDim>,
    values: Vec<i64>,
    symbols: Vec<i64>,
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

/// A port with its sizes by number.
#[derive(Debug)]
struct Slot {
    element_bytes: usize,
    shape: Vec<usize>,
    region: Region,
    offset: usize,
}

#[derive(Debug)]
struct Work {
    tiles: usize,
    cost: Option<(CompiledDim, CompiledDim)>,
}

impl Work {
    /// Seconds that one thread takes, by the target's rates.
    fn seconds(&self, symbols: &[i64], target: &Target) -> f64 {
        let seconds = |(flops, bytes): &(CompiledDim, CompiledDim)| {
            let flops = flops.eval(symbols)? as f64 / target.peak_flops;
            Some(flops.max(bytes.eval(symbols)? as f64 / target.read_bandwidth))
        };
        self.cost.as_ref().and_then(seconds).unwrap_or(f64::INFINITY)
    }
}

#[derive(Debug)]
struct Patch {
    arg: usize,
    base: Base,
    offset: usize,
}

/// Places and size of a collective.
#[derive(Debug)]
struct Meeting {
    /// Before which launch it begins.
    start: usize,
    /// Before which launch it has ended.
    end: usize,
    elements: usize,
    input: (Base, usize),
    output: (Base, usize),
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

    fn resolve(&mut self, program: &Program) -> Result<(), ExecError> {
        let model = self.model.clone();
        let mut interned = HashMap::new();
        let symbolic = Symbolic::new(program);
        let mut size = |sizes: &mut Sizes, dim: &Dim| -> Result<usize, ExecError> {
            if let Some(index) = interned.get(dim) {
                return Ok(*index);
            }
            let compiled = dim.compile(&program.symbols);
            sizes.exprs.push(compiled.map_err(|e| symbolic.symbol("?", e.to_string()))?);
            interned.insert(dim.clone(), sizes.exprs.len() - 1);
            Ok(sizes.exprs.len() - 1)
        };
        for kernel in &program.kernels {
            // The artifact has been checked: an offset outside of the code is a bug of ours.
            let entry = model.code().kernel(kernel.code_offset).expect("a checked code offset");
            self.launches.add_kernel(entry, kernel.dims.len());
            for dim in &kernel.dims {
                self.dims.push(size(&mut self.sizes, dim)?);
            }
            let compile = |dim: &Dim| dim.compile(&program.symbols).ok();
            self.work.push(Work {
                tiles: size(&mut self.sizes, &kernel.tiles)?,
                cost: compile(&kernel.flops).zip(compile(&kernel.bytes)),
            });
        }
        let arena = self.arena.as_mut_ptr();
        let base_of = |region: &Region| match region {
            Region::Null => None,
            Region::Arena => Some(Base::Fixed(arena)),
            // Kernels do not write to weights.
            Region::Weight(w) => {
                Some(Base::Fixed(model.artifact().weight(*w as usize).as_ptr().cast_mut()))
            }
            Region::State(s) => Some(Base::State(*s as usize)),
        };
        for launch in &program.launches {
            let first = self.launches.add_launch(launch.kernel as usize, launch.args.len());
            for (i, Place { region, offset }) in launch.args.iter().enumerate() {
                let Some(base) = base_of(region) else { continue };
                match (base, offset.as_const().and_then(|v| usize::try_from(v).ok())) {
                    (Base::Fixed(base), Some(offset)) => {
                        self.launches.set_arg(first + i, base.wrapping_add(offset));
                    }
                    _ => {
                        let offset = size(&mut self.sizes, offset)?;
                        self.patches.push(Patch { arg: first + i, base, offset });
                    }
                }
            }
        }
        for collective in &program.collectives {
            // The artifact has been checked: a collective of nothing is a bug of ours.
            let mut address = |Place { region, offset }: &Place| {
                let base = base_of(region).expect("a collective of what is there");
                Ok::<_, ExecError>((base, size(&mut self.sizes, offset)?))
            };
            let (input, output) = (address(&collective.input)?, address(&collective.output)?);
            let elements = size(&mut self.sizes, &collective.elements)?;
            let (start, end) = (collective.start as usize, collective.end as usize);
            self.meetings.push(Meeting { start, end, elements, input, output });
        }
        let ports = [
            (&program.inputs, &mut self.inputs),
            (&program.outputs, &mut self.outputs),
            (&program.states, &mut self.states),
        ];
        for (ports, slots) in ports {
            for Port { ty, place, .. } in ports {
                let shape: Result<_, ExecError> =
                    ty.shape.iter().map(|dim| size(&mut self.sizes, dim)).collect();
                slots.push(Slot {
                    element_bytes: ty.dtype.size(),
                    shape: shape?,
                    region: place.region,
                    offset: size(&mut self.sizes, &place.offset)?,
                });
            }
        }
        Ok(())
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

    /// Walks launches and collectives in order.
    fn walk(&mut self, bases: &[*mut u8]) -> Result<(), ExecError> {
        let model = self.model.clone();
        let program = &model.artifact().manifest().programs[self.index];
        self.groups.check(&program.collectives).map_err(|reason| {
            let entry = program.name.clone();
            ExecError::Ranks { entry, reason }
        })?;
        let scratch = Scratch { base: self.scratch.as_mut_ptr(), stride: self.scratch_stride };
        let pool = model.device().pool();
        if let Some(times) = &mut self.times {
            times.clear();
        }
        self.waits.clear();
        let size = |number: usize| usize::try_from(self.sizes.values[number]).unwrap_or(usize::MAX);
        let address = |(base, offset): (Base, usize)| {
            let base = match base {
                Base::Fixed(base) => base,
                Base::State(state) => bases[state],
            };
            base.wrapping_add(size(offset))
        };
        let mut under_way = UnderWay::default();
        let mut next = 0;
        let mut done = 0;
        loop {
            while let Some(meeting) = self.meetings.get(next).filter(|m| m.start <= done) {
                under_way.wait(done, &mut self.waits)?;
                let (input, output) = (address(meeting.input), address(meeting.output));
                let (collective, elements) = (&program.collectives[next], size(meeting.elements));
                // SAFETY: as below; the planner puts operand and result apart or as `start` takes
                // them, and no launch before its end uses them.
                let started = unsafe { self.groups.start(collective, elements, input, output) };
                under_way.0.push((next, meeting.end, started));
                next += 1;
            }
            under_way.wait(done, &mut self.waits)?;
            if done == program.launches.len() {
                return Ok(());
            }
            let ends = under_way.0.iter().map(|(_, end, _)| *end);
            let starts = self.meetings.get(next).map(|meeting| meeting.start);
            let end = ends.chain(starts).min().unwrap_or(program.launches.len());
            // SAFETY: the artifact is trusted code whose kernels have this signature (see
            // `ir::artifact`), and its places were checked to lie in the arena, the weights and the
            // states at the bounds that the symbols were just compared with. Indices among the
            // inputs lead nowhere else: kernels bound slots, blocks, positions and tokens, and
            // segments were just checked. `&mut self` and `&mut States` of the callers keep
            // everybody else away from what kernels write to.
            unsafe { self.launches.run(pool, scratch, done..end, self.times.as_mut()) };
            done = end;
        }
    }

    /// Decides which launches are worth more than one thread: those that take longer than threads
    /// take to meet, in a run that takes longer than threads take to wake up.
    fn share_work(&mut self, seconds: &mut Vec<f64>) {
        let target = &self.model.artifact().manifest().target;
        let symbols = &self.sizes.symbols;
        seconds.clear();
        seconds.extend(self.work.iter().map(|work| work.seconds(symbols, target)));
        let programs = &self.model.artifact().manifest().programs;
        let launches = programs[self.index].launches.iter();
        let total: f64 = launches.map(|launch| seconds[launch.kernel as usize]).sum();
        let is_short = total < WAKE_LAUNCHES * target.launch_seconds;
        for (kernel, (work, seconds)) in self.work.iter().zip(&*seconds).enumerate() {
            let tiles = self.sizes.values[work.tiles];
            let is_small = is_short || tiles <= 1 || *seconds < target.launch_seconds;
            self.launches.set_work(kernel, tiles, is_small);
        }
    }

    /// The address of each state, all large enough for the current sizes.
    fn state_bases(&self, states: &mut States, bases: &mut Vec<*mut u8>) -> Result<(), ExecError> {
        let program = self.program();
        bases.clear();
        for (port, slot) in program.states.iter().zip(&self.states) {
            let fail = |reason: String| Symbolic::new(program).port("state", &port.name, reason);
            let bytes = self.sizes.range(slot).map_or(u64::MAX, |r| r.end as u64);
            let memory = states.bytes_mut(&port.name).ok_or_else(|| fail("is missing".into()))?;
            if (memory.len() as u64) < bytes {
                return Err(fail(format!("has {} bytes instead of {bytes}", memory.len())));
            }
            bases.push(memory.as_mut_ptr());
        }
        Ok(())
    }

    /// Copies the inputs to their places, once all of them are known to fit.
    fn write_inputs(
        &mut self,
        inputs: &[(&str, &[u8])],
        places: &mut Vec<(Range<usize>, usize)>,
    ) -> Result<(), ExecError> {
        let program = self.program();
        let symbolic = Symbolic::new(program);
        places.clear();
        for (port, slot) in program.inputs.iter().zip(&self.inputs) {
            let fail = |reason: String| symbolic.port("input", &port.name, reason);
            let mut given = inputs.iter().enumerate().filter(|(_, (n, _))| **n == *port.name);
            let Some((number, (_, bytes))) = given.next() else {
                return Err(fail(format!("of type {} is missing", port.ty)));
            };
            if given.next().is_some() {
                return Err(fail("is given twice".into()));
            }
            let range = self.sizes.range(slot).filter(|_| slot.region == Region::Arena);
            let range = range.filter(|r| r.end as u64 <= self.arena.bytes());
            let Some(range) = range.filter(|r| r.len() == bytes.len()) else {
                return Err(fail(format!("has {} bytes, which is not {}", bytes.len(), port.ty)));
            };
            places.push((range, number));
        }
        if self.model.artifact().manifest().model.kind != ModelKind::Graph {
            check_segments(inputs).map_err(|reason| symbolic.port("input", SEGMENTS, reason))?;
        }
        let is_known = |name: &str| program.inputs.iter().any(|port| *port.name == *name);
        if let Some((name, _)) = inputs.iter().find(|(name, _)| !is_known(name)) {
            let known: Vec<_> = program.inputs.iter().map(|p| format!("`{}`", p.name)).collect();
            let reason = format!("does not exist; there are {}", known.join(", "));
            return Err(symbolic.port("input", name, reason));
        }
        for (range, number) in places {
            self.arena.as_mut_slice()[range.clone()].copy_from_slice(inputs[*number].1);
        }
        Ok(())
    }

    fn output_bytes(&self, index: usize) -> Result<&[u8], ExecError> {
        let slot = &self.outputs[index];
        let memory = match slot.region {
            Region::Arena => self.arena.as_slice(),
            Region::Weight(w) => self.model.artifact().weight(w as usize),
            Region::State(_) | Region::Null => &[],
        };
        let bytes = self.sizes.range(slot).and_then(|range| memory.get(range));
        bytes.ok_or_else(|| {
            let name = &self.program().outputs[index].name;
            let reason = "cannot be read: nothing has run, or it is a state";
            Symbolic::new(self.program()).port("output", name, reason)
        })
    }
}

/// Collectives under way: number, the launch before which it has ended, and what it is waited for
/// by.
#[derive(Default)]
struct UnderWay(Vec<(usize, usize, Started)>);

impl UnderWay {
    /// Waits for those that have to end before a launch.
    fn wait(&mut self, launch: usize, waits: &mut Vec<(usize, Duration)>) -> Result<(), ExecError> {
        let mut at = 0;
        while let Some((_, end, _)) = self.0.get(at) {
            if *end > launch {
                at += 1;
                continue;
            }
            let (number, _, started) = self.0.remove(at);
            let start = Instant::now();
            started.wait()?;
            waits.push((number, start.elapsed()));
        }
        Ok(())
    }
}

/// Waking the threads takes as long as so many launches.
const WAKE_LAUNCHES: f64 = 25.0;

/// The input that says where sequences begin among packed tokens, see [`ModelKind`].
const SEGMENTS: &str = "cu_seqlens";

/// Whether segments split the tokens: kernels use them as they are.
fn check_segments(inputs: &[(&str, &[u8])]) -> Result<(), String> {
    let words = |wanted: &str| {
        let (_, bytes) = inputs.iter().find(|(name, _)| *name == wanted)?;
        Some(bytes.chunks_exact(4).map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]])))
    };
    let (Some(tokens), Some(segments)) = (words("tokens"), words(SEGMENTS)) else { return Ok(()) };
    let tokens = tokens.len();
    let ends_well =
        segments.clone().next_back().is_some_and(|end| usize::try_from(end) == Ok(tokens));
    if segments.clone().next() != Some(0) || !ends_well || !segments.is_sorted_by(|a, b| a < b) {
        return Err(format!("must rise from 0 to the {tokens} tokens"));
    }
    Ok(())
}

impl Sizes {
    /// Takes the symbols' values, and leaves those of the last run.
    fn evaluate(&mut self, symbols: &mut Vec<i64>) -> Option<()> {
        self.values.clear();
        for expr in &self.exprs {
            self.values.push(expr.eval(symbols)?);
        }
        std::mem::swap(&mut self.symbols, symbols);
        Some(())
    }

    /// Where a port lies in its memory in the current run.
    fn range(&self, slot: &Slot) -> Option<Range<usize>> {
        let value = |size: &usize| usize::try_from(*self.values.get(*size)?).ok();
        let start = value(&slot.offset)?;
        let bytes =
            slot.shape.iter().try_fold(slot.element_bytes, |n, d| n.checked_mul(value(d)?))?;
        Some(start..start.checked_add(bytes)?)
    }
}

#[cfg(test)]
mod tests;
