//! Launches and collectives on the CPU, in their order.
//!
//! Loading resolves every place to a pointer where it is constant; a run patches the few that are
//! not, and walks the launches on all threads.

#![allow(unsafe_code, reason = "holds addresses of memory that it owns, and lends it to kernels")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ir::{CompiledDim, Place, Program, Region, Target};

use super::{Run, Times, sizes::Sizes};
use crate::{
    Arena, ExecError, Model, States,
    code::Code,
    launch::{LaunchList, Scratch},
    meeting::Started,
};

/// Waking the threads takes as long as so many launches.
const WAKE_LAUNCHES: f64 = 25.0;

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

/// A program's launches over an arena.
#[derive(Debug)]
pub(super) struct Cpu {
    /// Where each of the kernels' sizes comes from.
    dims: Vec<usize>,
    /// Tiles, operations and bytes of each kernel.
    work: Vec<Work>,
    /// Pointers that differ from run to run.
    patches: Vec<Patch>,
    launches: LaunchList,
    meetings: Vec<Meeting>,
    arena: Arena,
    scratch: Arena,
    scratch_stride: usize,
    /// By kernel, of the last run.
    seconds: Vec<f64>,
    /// By state, of the last run.
    bases: Vec<*mut u8>,
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
unsafe impl Send for Cpu {}

impl Cpu {
    pub(super) fn load(
        model: &Arc<Model>,
        code: &Code,
        program: &Program,
        sizes: &mut Sizes,
    ) -> Result<Cpu, ExecError> {
        let reserve = |what: &str, bytes: u64| {
            Arena::new(bytes).map_err(|e| ExecError::Memory {
                what: format!("entry `{}`: {what}", program.name),
                bytes,
                reason: format!("the system has no room for it: {e}"),
            })
        };
        let stride = program.scratch_bytes().next_multiple_of(4096);
        let threads = model.device().pool().threads() as u64;
        let mut cpu = Cpu {
            dims: Vec::new(),
            work: Vec::new(),
            patches: Vec::new(),
            launches: LaunchList::default(),
            meetings: Vec::new(),
            arena: reserve("the arena", program.arena_bytes)?,
            scratch: reserve("scratch memory", stride.saturating_mul(threads))?,
            scratch_stride: usize::try_from(stride).unwrap_or(usize::MAX),
            seconds: Vec::new(),
            bases: Vec::new(),
        };
        cpu.resolve(model, code, program, sizes)?;
        Ok(cpu)
    }

    /// Contents of the arena.
    pub(super) fn memory(&self) -> &[u8] {
        self.arena.as_slice()
    }

    /// Bytes of arena and scratch memory that are in use.
    pub(super) fn resident_bytes(&self) -> (u64, u64) {
        (self.arena.resident_bytes(), self.scratch.resident_bytes())
    }

    fn resolve(
        &mut self,
        model: &Model,
        code: &Code,
        program: &Program,
        sizes: &mut Sizes,
    ) -> Result<(), ExecError> {
        for kernel in &program.kernels {
            // The artifact has been checked: an offset outside of the code is a bug of ours.
            let entry = code.kernel(kernel.code_offset).expect("a checked code offset");
            self.launches.add_kernel(entry, kernel.dims.len());
            for dim in &kernel.dims {
                self.dims.push(sizes.number(program, dim)?);
            }
            let compile = |dim: &ir::Dim| dim.compile(&program.symbols).ok();
            self.work.push(Work {
                tiles: sizes.number(program, &kernel.tiles)?,
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
                        let offset = sizes.number(program, offset)?;
                        self.patches.push(Patch { arg: first + i, base, offset });
                    }
                }
            }
        }
        for collective in &program.collectives {
            // The artifact has been checked: a collective of nothing is a bug of ours.
            let mut address = |Place { region, offset }: &Place| {
                let base = base_of(region).expect("a collective of what is there");
                Ok::<_, ExecError>((base, sizes.number(program, offset)?))
            };
            let (input, output) = (address(&collective.input)?, address(&collective.output)?);
            let elements = sizes.number(program, &collective.elements)?;
            let (start, end) = (collective.start as usize, collective.end as usize);
            self.meetings.push(Meeting { start, end, elements, input, output });
        }
        Ok(())
    }

    pub(super) fn run(&mut self, run: &mut Run<'_>, times: &mut Times) -> Result<(), ExecError> {
        for (slot, dim) in self.launches.dims_mut().iter_mut().zip(&self.dims) {
            *slot = run.sizes.values[*dim];
        }
        self.share_work(run);
        self.find_states(run.program, run.states)?;
        for patch in &self.patches {
            let base = match patch.base {
                Base::Fixed(base) => base,
                Base::State(state) => self.bases[state],
            };
            self.launches.set_arg(patch.arg, base.wrapping_add(run.sizes.count(patch.offset)));
        }
        for (range, bytes) in &mut *run.inputs {
            self.arena.as_mut_slice()[range].copy_from_slice(bytes);
        }
        self.walk(run, times)
    }

    /// The address of each state.
    fn find_states(&mut self, program: &Program, states: &mut States) -> Result<(), ExecError> {
        self.bases.clear();
        for port in &program.states {
            let memory = states.bytes_mut(&port.name).ok_or_else(|| ExecError::Port {
                entry: program.name.clone(),
                role: "state",
                name: port.name.to_string(),
                reason: "is not in the memory of this machine".into(),
            })?;
            self.bases.push(memory.as_mut_ptr());
        }
        Ok(())
    }

    /// Walks launches and collectives in order.
    fn walk(&mut self, run: &Run<'_>, times: &mut Times) -> Result<(), ExecError> {
        let Run { program, sizes, groups, .. } = run;
        let scratch = Scratch { base: self.scratch.as_mut_ptr(), stride: self.scratch_stride };
        let pool = run.model.device().pool();
        if let Some(times) = &mut times.launches {
            times.clear();
        }
        let bases = &self.bases;
        let address = |(base, offset): (Base, usize)| {
            let base = match base {
                Base::Fixed(base) => base,
                Base::State(state) => bases[state],
            };
            base.wrapping_add(sizes.count(offset))
        };
        let mut under_way = UnderWay::default();
        let mut next = 0;
        let mut done = 0;
        loop {
            while let Some(meeting) = self.meetings.get(next).filter(|m| m.start <= done) {
                under_way.wait(done, &mut times.waits)?;
                let (input, output) = (address(meeting.input), address(meeting.output));
                let (collective, elements) =
                    (&program.collectives[next], sizes.count(meeting.elements));
                // SAFETY: as below; the planner puts operand and result apart or as `start` takes
                // them, and no launch before its end uses them.
                let started = unsafe { groups.start(collective, elements, input, output) };
                under_way.0.push((next, meeting.end, started));
                next += 1;
            }
            under_way.wait(done, &mut times.waits)?;
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
            unsafe { self.launches.run(pool, scratch, done..end, times.launches.as_mut()) };
            done = end;
        }
    }

    /// Decides which launches are worth more than one thread: those that take longer than threads
    /// take to meet, in a run that takes longer than threads take to wake up.
    fn share_work(&mut self, run: &Run<'_>) {
        let target = &run.model.artifact().manifest().target;
        let symbols = &run.sizes.symbols;
        self.seconds.clear();
        self.seconds.extend(self.work.iter().map(|work| work.seconds(symbols, target)));
        let launches = run.program.launches.iter();
        let total: f64 = launches.map(|launch| self.seconds[launch.kernel as usize]).sum();
        let is_short = total < WAKE_LAUNCHES * target.launch_seconds;
        for (kernel, (work, seconds)) in self.work.iter().zip(&self.seconds).enumerate() {
            let tiles = run.sizes.values[work.tiles];
            let is_small = is_short || tiles <= 1 || *seconds < target.launch_seconds;
            self.launches.set_work(kernel, tiles, is_small);
        }
    }
}
