//! Launches and collectives on a GPU.
//!
//! All work of a run goes to one stream: inputs are copied to the arena, kernels are launched in
//! order, and outputs are copied back, for which the run waits. A run whose symbols have the values
//! of one before, in the same states, is recorded as a graph, copies and all, and from then on
//! started as one.
//!
//! Collectives go to a stream of their own where devices of ranks are linked, beside the launches
//! that leave alone what they read and write. They are between graphs, not in them: NCCL wants all
//! ranks to record alike, and the sizes that one rank has seen before another may not have. Without
//! links, operands go through this machine's memory.

mod fold;
mod host;
mod lent;
mod meet;
mod ports;
mod product;
mod recorded;
mod transfer;
mod variant;

use std::{ops::Range, sync::Arc, time::Duration};

use cuda::{Address, Event, Graph};
use ir::{CollectiveOp, CudaArch, Place, Program, Region};

use self::{
    fold::Adder,
    meet::Exchange,
    ports::Ports,
    product::Product,
    recorded::Recordings,
    variant::{Variant, launch, runnable},
};
use super::{Run, Times, sizes::Sizes};
use crate::{
    ExecError, Model,
    gpu::{Gpu, Loaded},
    links::Links,
};

pub(crate) use self::{lent::Lent, transfer::pinned_bytes};

/// A program's launches over an arena on a GPU.
#[derive(Debug)]
pub(super) struct OnGpu {
    gpu: Gpu,
    computations: Vec<Computation>,
    launches: Vec<Planned>,
    meetings: Vec<Meeting>,
    /// Sums for these, where devices of ranks are linked.
    adders: Vec<Adder>,
    /// Launches between which no collective begins or must have ended.
    segments: Vec<Range<usize>>,
    arena: cuda::Memory,
    ports: Ports,
    recorded: Recordings,
    events: Vec<Event>,
    /// Before and after each collective.
    met: Vec<[Event; 2]>,
    /// What of the last run is being sent.
    lent: Vec<Lent>,
}

/// What a launch does.
#[derive(Debug)]
enum Computation {
    /// Runs the first of these that fits.
    Kernels(Vec<Variant>),
    /// Lets a library run one of its kernels.
    Library(Product),
}

#[derive(Debug)]
struct Planned {
    kernel: usize,
    args: Vec<Option<(Base, usize)>>,
    /// Of each argument, whether nothing writes to it during a run.
    constant: Vec<bool>,
}

/// Memory, and the offset in it by number.
#[derive(Clone, Debug)]
enum Base {
    Fixed(Address),
    State(usize),
}

/// Places and size of a collective.
#[derive(Debug)]
struct Meeting {
    start: usize,
    end: usize,
    elements: usize,
    input: (Base, usize),
    output: (Base, usize),
}

impl OnGpu {
    pub(super) fn load(
        model: &Arc<Model>,
        loaded: &Loaded,
        program: &Program,
        sizes: &mut Sizes,
    ) -> Result<OnGpu, ExecError> {
        let artifact = model.artifact();
        let gpu = loaded.gpu().clone();
        let arena = gpu.device().allocate(program.arena_bytes)?;
        let mut computations = Vec::new();
        for kernel in &program.kernels {
            // The artifact has been checked: code without an architecture's is a bug of ours.
            let code = kernel.cuda.iter().find(|code| code.arch == loaded.arch());
            let code = code.expect("code for the architecture");
            if let Some(matmul) = &code.library {
                let number = &mut |dim: &ir::Dim| sizes.number(program, dim);
                let product = Product::new(matmul, gpu.multiplier()?, number)?;
                computations.push(Computation::Library(product));
                continue;
            }
            let variants = runnable(code, gpu.device().facts())?.into_iter().map(|variant| {
                let kernel = loaded.kernel(artifact, variant.module, &variant.symbol)?;
                let dependent = loaded.arch() == CudaArch::Sm90a;
                Variant::new(variant, kernel, dependent, &mut |dim| sizes.number(program, dim))
            });
            let variants = variants.collect::<Result<Vec<_>, ExecError>>()?;
            computations.push(Computation::Kernels(variants));
        }
        let base_of = |region: &Region| match region {
            Region::Null => None,
            Region::Arena => Some(Base::Fixed(arena.at(0))),
            Region::Weight(w) => Some(Base::Fixed(loaded.weight(artifact, *w))),
            Region::State(s) => Some(Base::State(*s as usize)),
        };
        let place = |Place { region, offset }: &Place, sizes: &mut Sizes| {
            let Some(base) = base_of(region) else { return Ok(None) };
            Ok::<_, ExecError>(Some((base, sizes.number(program, offset)?)))
        };
        let mut launches = Vec::new();
        for launch in &program.launches {
            let args = launch.args.iter().map(|at| place(at, sizes)).collect::<Result<_, _>>()?;
            let is_constant = |at: &Place| matches!(at.region, Region::Weight(_));
            let constant = launch.args.iter().map(is_constant).collect();
            launches.push(Planned { kernel: launch.kernel as usize, args, constant });
        }
        let mut meetings = Vec::new();
        for collective in &program.collectives {
            // The artifact has been checked: a collective of nothing is a bug of ours.
            let input = place(&collective.input, sizes)?.expect("a collective of what is there");
            let output = place(&collective.output, sizes)?.expect("a collective of what is there");
            let (start, end) = (collective.start as usize, collective.end as usize);
            let elements = sizes.number(program, &collective.elements)?;
            meetings.push(Meeting { start, end, elements, input, output });
        }
        let sums = |fold: &&ir::Fold| {
            let is_sum = |c: &ir::Collective| (c.dtype, c.ranks) == (fold.dtype, fold.ranks);
            program.collectives.iter().any(is_sum)
        };
        let folds = artifact.manifest().folds.iter().filter(sums);
        let adders = folds.map(|fold| Adder::load(artifact, loaded, fold));
        let mut cuts: Vec<usize> = meetings.iter().flat_map(|m| [m.start, m.end]).collect();
        cuts.extend([0, launches.len()]);
        cuts.sort_unstable();
        cuts.dedup();
        let ports = Ports::new(gpu.device(), program)?;
        Ok(OnGpu {
            gpu,
            computations,
            launches,
            meetings,
            adders: adders.collect::<Result<_, _>>()?,
            segments: cuts.windows(2).map(|pair| pair[0]..pair[1]).collect(),
            arena,
            ports,
            recorded: Recordings::default(),
            events: Vec::new(),
            met: Vec::new(),
            lent: Vec::new(),
        })
    }

    /// A place in the arena.
    pub(super) fn at(&self, offset: u64) -> Address {
        self.arena.at(offset)
    }

    /// Lets the next run wait for what is being sent of the last one.
    pub(super) fn lend(&mut self, lent: Lent) {
        self.lent.push(lent);
    }

    pub(super) fn arena_bytes(&self) -> u64 {
        self.arena.bytes()
    }

    /// Pinned bytes of the host.
    pub(super) fn pinned_bytes(&self) -> u64 {
        self.ports.bytes()
    }

    /// Leaves outputs of these numbers in the arena.
    pub(super) fn leave(&mut self, outputs: &[usize]) {
        self.ports.leave(outputs);
        // What graphs copy is another part.
        self.recorded.clear();
    }

    /// Copies parts of the arena, as the last run has left it, each from a place on.
    pub(super) fn copy_back<'a>(
        &self,
        parts: impl Iterator<Item = (usize, &'a mut [u8])>,
    ) -> Result<(), ExecError> {
        let mut pieces: Vec<(Address, &mut [u8])> =
            parts.map(|(start, bytes)| (self.arena.at(start as u64), bytes)).collect();
        Ok(self.gpu.staging().download_all(self.gpu.stream(), &mut pieces)?)
    }

    /// An output of the last run that lies in the arena, if it is here.
    pub(super) fn output(&self, index: usize) -> Option<&[u8]> {
        self.ports.output(index)
    }

    pub(super) fn run(&mut self, run: &mut Run<'_>, times: &mut Times) -> Result<(), ExecError> {
        let lent = std::mem::take(&mut self.lent);
        let held = lent.iter().try_for_each(|lent| lent.hold(self.gpu.stream()));
        let done = held.and_then(|()| self.compute(run, times));
        if done.is_err() {
            // Pinned memory is to be at rest for the next run.
            let _ = self.gpu.stream().synchronize();
        }
        // Where other ranks are waited for, what was aborted seems to have ended.
        match run.groups.links().and_then(Links::failure) {
            Some(failure) if !matches!(done, Err(ExecError::Collective { .. })) => {
                let label = run.program.name.clone();
                Err(ExecError::Collective { label, source: failure.into() })
            }
            _ => done.and_then(|()| lent.into_iter().try_for_each(Lent::end)),
        }
    }

    fn compute(&mut self, run: &mut Run<'_>, times: &mut Times) -> Result<(), ExecError> {
        let states = run.program.states.iter().map(|port| {
            run.states.address(&port.name).ok_or_else(|| ExecError::Port {
                entry: run.program.name.clone(),
                role: "state",
                name: port.name.to_string(),
                reason: "is not in the memory of the GPU".into(),
            })
        });
        let states = states.collect::<Result<Vec<Address>, _>>()?;
        self.ports.lay_out(&self.gpu, &self.arena, run)?;
        let meets = run.program.collectives.iter().any(|collective| collective.ranks > 1);
        if !meets {
            self.stream(run, &states, None, times)?;
            (run.beside)();
            return self.ports.fetch(&self.gpu, &self.arena);
        }
        let Some(links) = run.groups.links().filter(|links| self.has_way(run.program, links))
        else {
            self.walk(run, &states, times)?;
            (run.beside)();
            return self.ports.fetch(&self.gpu, &self.arena);
        };
        let sizes = meet::elements(self.meetings.iter().map(|m| m.elements), run.sizes);
        let told = meet::tell(run, &sizes, links);
        let done = self.stream(run, &states, Some(links), times).and_then(|()| {
            (run.beside)();
            self.ports.fetch(&self.gpu, &self.arena)
        });
        let done = done.and_then(|()| Ok(self.gpu.stream().synchronize()?));
        // What was aborted seems to have ended.
        if let Some(failure) = links.failure() {
            let label = run.program.collectives[0].label.clone();
            return Err(ExecError::Collective { label, source: failure.into() });
        }
        done?;
        links.stream().synchronize()?;
        told.into_iter().try_for_each(meet::Told::wait)
    }

    /// Whether the copies of a run are part of its one graph. Collectives may come before the first
    /// segment and after the last.
    fn copies_in_graph(&self) -> bool {
        self.meetings.is_empty() && self.segments.len() == 1
    }

    /// Whether links lead to all whom a program meets, and its sums have kernels.
    fn has_way(&self, program: &Program, links: &Links) -> bool {
        program.collectives.iter().filter(|collective| collective.ranks > 1).all(|collective| {
            let is_sum = collective.op != CollectiveOp::AllGather;
            let adds = |adder: &Adder| adder.is_of(collective.dtype, collective.ranks);
            links.along(&collective.axis).is_some() && (!is_sum || self.adders.iter().any(adds))
        })
    }

    /// Gives all of a run to the streams: segments of launches as graphs, if there have been some
    /// like them, and collectives between them.
    fn stream(
        &mut self,
        run: &Run<'_>,
        states: &[Address],
        links: Option<&Links>,
        times: &mut Times,
    ) -> Result<(), ExecError> {
        let device = self.gpu.device().clone();
        let measures = times.launches.is_some();
        while measures && self.events.len() < 2 * self.launches.len() {
            self.events.push(Event::new(&device)?);
        }
        while self.met.len() < self.meetings.len() {
            self.met.push([Event::new(&device)?, Event::new(&device)?]);
        }
        let mut recorded = (!measures).then(|| self.recorded.take(&run.sizes.symbols, states));
        let records = recorded.as_ref().is_some_and(|(_, is_known)| *is_known);
        let graphs = recorded.as_mut().and_then(|(recorded, _)| recorded.graphs.take());
        let mut kept = Vec::new();
        let (mut next, mut under_way) = (0, Vec::new());
        let copies_apart = measures || !self.copies_in_graph();
        if copies_apart {
            self.ports.upload(self.gpu.stream(), &self.arena)?;
        }
        for (number, segment) in self.segments.iter().enumerate() {
            self.meet(run, states, links, segment.start, &mut next, &mut under_way)?;
            if measures {
                for launch in segment.clone() {
                    self.events[2 * launch].record(self.gpu.stream())?;
                    // An event lies between, so nothing is known of what is before.
                    self.launch(&self.launches[launch], run.sizes, states, true)?;
                    self.events[2 * launch + 1].record(self.gpu.stream())?;
                }
                continue;
            }
            if !records {
                self.launch_all(run, states, segment)?;
                continue;
            }
            let graph = match &graphs {
                Some(graphs) => graphs[number].clone(),
                None => self.record(run, states, segment)?,
            };
            self.gpu.stream().launch_graph_with(&graph, states)?;
            kept.push(graph);
        }
        self.meet(run, states, links, self.launches.len(), &mut next, &mut under_way)?;
        if copies_apart {
            self.ports.download(self.gpu.stream(), &self.arena)?;
        }
        if let Some((mut recorded, _)) = recorded {
            recorded.graphs = records.then_some(kept);
            self.recorded.keep(recorded);
        }
        let Some(launches) = &mut times.launches else { return Ok(()) };
        launches.clear();
        self.gpu.stream().synchronize()?;
        for pair in self.events[..2 * self.launches.len()].chunks_exact(2) {
            launches.push(Duration::from_secs_f64(pair[1].ms_since(&pair[0])?.max(0.0) / 1e3));
        }
        if links.is_some() {
            for (number, [before, after]) in self.met.iter().enumerate() {
                let took = Duration::from_secs_f64(after.ms_since(before)?.max(0.0) / 1e3);
                times.waits.push((number, took));
            }
        }
        Ok(())
    }

    /// Makes a graph of a segment.
    fn record(
        &self,
        run: &Run<'_>,
        states: &[Address],
        segment: &Range<usize>,
    ) -> Result<Graph, ExecError> {
        let mut failed = None;
        let graph = self.gpu.stream().capture_with(states, |_| {
            failed = self.launch_all(run, states, segment).err();
            Ok(())
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(graph?),
        }
    }

    fn launch_all(
        &self,
        run: &Run<'_>,
        states: &[Address],
        segment: &Range<usize>,
    ) -> Result<(), ExecError> {
        let stream = self.gpu.stream();
        let copies = self.copies_in_graph();
        if copies {
            self.ports.upload(stream, &self.arena)?;
        }
        // Only a kernel of ours lets what depends on it begin; a library's are waited for whole.
        let before = segment.start.checked_sub(1).map(|number| self.launches[number].kernel);
        let mut follows_kernel = !copies
            && before.is_none_or(|k| matches!(self.computations[k], Computation::Kernels(_)));
        for planned in &self.launches[segment.clone()] {
            let launched = self.launch(planned, run.sizes, states, follows_kernel)?;
            follows_kernel = launched.unwrap_or(follows_kernel);
        }
        if copies {
            self.ports.download(stream, &self.arena)?;
        }
        Ok(())
    }

    /// Begins the collectives that may begin before a launch, and lets that wait for those that
    /// must have ended.
    fn meet(
        &self,
        run: &Run<'_>,
        states: &[Address],
        links: Option<&Links>,
        launch: usize,
        next: &mut usize,
        under_way: &mut Vec<usize>,
    ) -> Result<(), ExecError> {
        let stream = self.gpu.stream();
        let end = |under_way: &mut Vec<usize>| -> Result<(), ExecError> {
            for number in under_way.extract_if(.., |n| self.meetings[*n].end <= launch) {
                stream.wait(&self.met[number][1])?;
            }
            Ok(())
        };
        end(under_way)?;
        while let Some(meeting) = self.meetings.get(*next).filter(|m| m.start <= launch) {
            let collective = &run.program.collectives[*next];
            let address = |place| self.address(place, run.sizes, states);
            let (input, output) = (address(&meeting.input), address(&meeting.output));
            let elements = run.sizes.count(meeting.elements);
            let link = links.filter(|_| collective.ranks > 1);
            match link.and_then(|links| Some((links, links.along(&collective.axis)?))) {
                Some((links, link)) => {
                    let [before, after] = &self.met[*next];
                    before.record(stream)?;
                    links.stream().wait(before)?;
                    let exchange = Exchange { collective, elements, input, output };
                    exchange.put(links, link, &self.adders)?;
                    after.record(links.stream())?;
                    under_way.push(*next);
                }
                None if input != output => {
                    let bytes = (elements * collective.dtype.size()) as u64;
                    stream.copy(&output, &input, bytes)?;
                }
                None => {}
            }
            *next += 1;
            end(under_way)?;
        }
        Ok(())
    }

    fn address(
        &self,
        (base, offset): &(Base, usize),
        sizes: &Sizes,
        states: &[Address],
    ) -> Address {
        let base = match base {
            Base::Fixed(base) => base,
            Base::State(state) => &states[*state],
        };
        base.plus(sizes.count(*offset) as u64)
    }

    /// Whether that was a kernel of ours; `None` if there was nothing to do.
    fn launch(
        &self,
        planned: &Planned,
        sizes: &Sizes,
        states: &[Address],
        follows_kernel: bool,
    ) -> Result<Option<bool>, ExecError> {
        // Nothing is read at the address of what is absent.
        let address = |arg: &Option<(Base, usize)>| match arg {
            Some(place) => self.address(place, sizes, states),
            None => self.arena.at(0),
        };
        let args: Vec<Address> = planned.args.iter().map(address).collect();
        let constant = &planned.constant;
        let stream = self.gpu.stream();
        Ok(match &self.computations[planned.kernel] {
            Computation::Kernels(variants) => {
                let args = (&args[..], &constant[..]);
                launch(stream, variants, sizes, args, follows_kernel)?.then_some(true)
            }
            Computation::Library(product) => product.launch(stream, sizes, &args)?.then_some(false),
        })
    }
}
