//! Launches and collectives on a GPU.
//!
//! All work of a run goes to one stream: inputs are copied to the arena, kernels are launched in
//! order, and outputs are copied back, for which the run waits. A run whose symbols have the values
//! of one before, in the same states, is recorded as a graph, and from then on started as one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cuda::{Address, Event, Graph, Kernel, Launch, Param};
use ir::{CudaArch, CudaParam, CudaVariant, Place, Program, Region, TensorMap};

use super::{Run, Times, sizes::Sizes};
use crate::{
    ExecError, Model,
    gpu::{Gpu, Loaded},
    meeting::StartedWith,
};

/// Graphs that are kept, of the sizes that were used last.
const GRAPHS: usize = 64;

/// A program's launches over an arena on a GPU.
#[derive(Debug)]
pub(super) struct OnGpu {
    gpu: Gpu,
    kernels: Vec<Vec<Variant>>,
    launches: Vec<Planned>,
    meetings: Vec<Meeting>,
    arena: cuda::Memory,
    /// Bytes of each output of the last run that lies in the arena.
    outputs: Vec<Option<Vec<u8>>>,
    /// Outputs that are not copied back.
    left: Vec<usize>,
    /// The last used is the last.
    recorded: Vec<Recorded>,
    events: Vec<Event>,
}

/// A kernel for launches of a limited size.
#[derive(Debug)]
struct Variant {
    kernel: Kernel,
    limit: Option<(usize, i64)>,
    params: Vec<Given>,
    grid: [usize; 3],
    block: u32,
    cluster: u32,
    shared_bytes: u32,
    dependent: bool,
}

/// A parameter with its sizes by number.
#[derive(Debug)]
enum Given {
    Pointer { arg: u32, align: u32 },
    Size(usize),
    Map { map: TensorMap, extents: Vec<usize>, strides: Vec<usize> },
}

#[derive(Debug)]
struct Planned {
    kernel: usize,
    args: Vec<Option<(Base, usize)>>,
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

/// A run that has been made before: by the values of the symbols, and where states were.
#[derive(Debug)]
struct Recorded {
    symbols: Vec<i64>,
    states: Vec<Address>,
    /// From the second run on.
    graph: Option<Graph>,
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
        let mut kernels = Vec::new();
        for kernel in &program.kernels {
            // The artifact has been checked: code without an architecture's is a bug of ours.
            let code = kernel.cuda.iter().find(|code| code.arch == loaded.arch());
            let variants = &code.expect("code for the architecture").variants;
            let variants = variants.iter().map(|variant| {
                let kernel = loaded.kernel(artifact, variant.module, &variant.symbol)?;
                let dependent = loaded.arch() == CudaArch::Sm90a;
                Variant::new(variant, kernel, dependent, &mut |dim| sizes.number(program, dim))
            });
            kernels.push(variants.collect::<Result<Vec<_>, ExecError>>()?);
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
            launches.push(Planned { kernel: launch.kernel as usize, args });
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
        Ok(OnGpu {
            gpu,
            kernels,
            launches,
            meetings,
            arena,
            outputs: Vec::new(),
            left: Vec::new(),
            recorded: Vec::new(),
            events: Vec::new(),
        })
    }

    pub(super) fn arena_bytes(&self) -> u64 {
        self.arena.bytes()
    }

    /// Leaves outputs of these numbers in the arena.
    pub(super) fn leave(&mut self, outputs: &[usize]) {
        self.left = outputs.to_vec();
    }

    /// Copies bytes of the arena, as the last run has left it.
    pub(super) fn copy_back(&self, start: usize, bytes: &mut [u8]) -> Result<(), ExecError> {
        Ok(self.gpu.download(&self.arena.at(start as u64), bytes)?)
    }

    /// An output of the last run that lies in the arena, if it is here.
    pub(super) fn output(&self, index: usize) -> Option<&[u8]> {
        self.outputs.get(index)?.as_deref()
    }

    pub(super) fn run(&mut self, run: &mut Run<'_>, times: &mut Times) -> Result<(), ExecError> {
        let states = run.program.states.iter().map(|port| {
            run.states.address(&port.name).ok_or_else(|| ExecError::Port {
                entry: run.program.name.clone(),
                role: "state",
                name: port.name.to_string(),
                reason: "is not in the memory of the GPU".into(),
            })
        });
        let states = states.collect::<Result<Vec<Address>, _>>()?;
        let inputs: Vec<(Address, &[u8])> = (&mut *run.inputs)
            .map(|(range, bytes)| (self.arena.at(range.start as u64), bytes))
            .collect();
        self.gpu.staging().upload_all(self.gpu.stream(), inputs.iter().cloned())?;
        match &mut times.launches {
            Some(launches) => {
                launches.clear();
                self.walk(run, &states, Some(launches), &mut times.waits)?;
            }
            None if !self.meetings.is_empty() => {
                self.walk(run, &states, None, &mut times.waits)?;
            }
            None => self.replay(run, &states)?,
        }
        self.fetch(run)
    }

    /// Starts the graph of a run like this one, if there have been some.
    fn replay(&mut self, run: &Run<'_>, states: &[Address]) -> Result<(), ExecError> {
        let symbols = &run.sizes.symbols;
        let is_same = |r: &Recorded| r.symbols == *symbols && r.states == states;
        let Some(at) = self.recorded.iter().position(is_same) else {
            if self.recorded.len() == GRAPHS {
                self.recorded.remove(0);
            }
            let (symbols, states) = (symbols.clone(), states.to_vec());
            self.launch_all(run, &states)?;
            self.recorded.push(Recorded { symbols, states, graph: None });
            return Ok(());
        };
        let mut recorded = self.recorded.remove(at);
        if recorded.graph.is_none() {
            let mut failed = None;
            let graph = self.gpu.stream().capture(|_| {
                failed = self.launch_all(run, states).err();
                Ok(())
            });
            if let Some(error) = failed {
                return Err(error);
            }
            recorded.graph = Some(graph?);
        }
        let started = recorded.graph.as_ref().map(|graph| self.gpu.stream().launch_graph(graph));
        self.recorded.push(recorded);
        Ok(started.transpose().map(|_| ())?)
    }

    fn launch_all(&self, run: &Run<'_>, states: &[Address]) -> Result<(), ExecError> {
        self.launches.iter().try_for_each(|planned| self.launch(planned, run.sizes, states))
    }

    /// Launches and collectives one by one.
    fn walk(
        &mut self,
        run: &Run<'_>,
        states: &[Address],
        times: Option<&mut Vec<Duration>>,
        waits: &mut Vec<(usize, Duration)>,
    ) -> Result<(), ExecError> {
        let device = self.gpu.device().clone();
        let measures = times.is_some();
        while measures && self.events.len() < 2 * self.launches.len() {
            self.events.push(Event::new(&device)?);
        }
        let stream = self.gpu.stream();
        let mut under_way: Vec<UnderWay> = Vec::new();
        let mut next = 0;
        for done in 0..=self.launches.len() {
            self.end(&mut under_way, done, waits)?;
            while let Some(meeting) = self.meetings.get(next).filter(|m| m.start <= done) {
                under_way.push(self.begin(run, states, (next, meeting))?);
                next += 1;
                self.end(&mut under_way, done, waits)?;
            }
            let Some(planned) = self.launches.get(done) else { break };
            if measures {
                self.events[2 * done].record(stream)?;
            }
            self.launch(planned, run.sizes, states)?;
            if measures {
                self.events[2 * done + 1].record(stream)?;
            }
        }
        let Some(times) = times else { return Ok(()) };
        stream.synchronize()?;
        for pair in self.events[..2 * self.launches.len()].chunks_exact(2) {
            times.push(Duration::from_secs_f64(pair[1].ms_since(&pair[0])?.max(0.0) / 1e3));
        }
        Ok(())
    }

    /// Hands a collective's operand to the other ranks, by way of this machine's memory.
    fn begin(
        &self,
        run: &Run<'_>,
        states: &[Address],
        (number, meeting): (usize, &Meeting),
    ) -> Result<UnderWay, ExecError> {
        let collective = &run.program.collectives[number];
        let elements = run.sizes.count(meeting.elements);
        let (taken, _) = run.groups.bytes(collective, elements);
        let address = |place: &(Base, usize)| self.address(place, run.sizes, states);
        let mut operand = vec![0; taken];
        self.gpu.download(&address(&meeting.input), &mut operand)?;
        let started = run.groups.start_with(collective, elements, operand);
        let (end, output) = (meeting.end, address(&meeting.output));
        Ok(UnderWay { number, end, output, started })
    }

    /// Waits for the collectives that have to end before a launch.
    fn end(
        &self,
        under_way: &mut Vec<UnderWay>,
        launch: usize,
        waits: &mut Vec<(usize, Duration)>,
    ) -> Result<(), ExecError> {
        let mut at = 0;
        while at < under_way.len() {
            if under_way[at].end > launch {
                at += 1;
                continue;
            }
            let UnderWay { number, output, started, .. } = under_way.remove(at);
            let start = Instant::now();
            let result = started.wait()?;
            waits.push((number, start.elapsed()));
            self.gpu.upload(&output, &result)?;
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

    fn launch(
        &self,
        planned: &Planned,
        sizes: &Sizes,
        states: &[Address],
    ) -> Result<(), ExecError> {
        let fits = |v: &&Variant| v.limit.is_none_or(|(size, most)| sizes.values[size] <= most);
        // The artifact has been checked: the last variant has no limit.
        let variant = self.kernels[planned.kernel].iter().find(fits).expect("a variant");
        let grid = variant.grid.map(|size| u32::try_from(sizes.values[size]).unwrap_or(u32::MAX));
        if grid.contains(&0) {
            return Ok(());
        }
        // Nothing is read at the address of what is absent.
        let address = |arg: &Option<(Base, usize)>| match arg {
            Some(place) => self.address(place, sizes, states),
            None => self.arena.at(0),
        };
        let args: Vec<Address> = planned.args.iter().map(address).collect();
        let launch = Launch {
            symbol: variant.kernel.symbol().to_owned(),
            params: variant.params.iter().map(|given| given.param(sizes)).collect(),
            grid,
            block: variant.block,
            cluster: variant.cluster,
            shared_bytes: variant.shared_bytes,
            dependent: variant.dependent,
        };
        Ok(self.gpu.stream().launch(&variant.kernel, &launch, &args)?)
    }

    /// Copies the outputs that lie in the arena back, and waits.
    fn fetch(&mut self, run: &Run<'_>) -> Result<(), ExecError> {
        self.outputs.resize_with(run.outputs.len(), || None);
        let mut pieces: Vec<(Address, &mut [u8])> = Vec::new();
        for ((i, slot), buffer) in run.outputs.iter().enumerate().zip(&mut self.outputs) {
            let is_here = slot.region == Region::Arena && !self.left.contains(&i);
            let range = run.sizes.range(slot).filter(|_| is_here);
            let Some(range) = range.filter(|r| r.end as u64 <= self.arena.bytes()) else {
                *buffer = None;
                continue;
            };
            let buffer = buffer.get_or_insert_default();
            buffer.resize(range.len(), 0);
            pieces.push((self.arena.at(range.start as u64), buffer));
        }
        if pieces.is_empty() {
            return Ok(self.gpu.stream().synchronize()?);
        }
        Ok(self.gpu.staging().download_all(self.gpu.stream(), &mut pieces)?)
    }
}

/// A collective whose result goes to `output` before a launch.
struct UnderWay {
    number: usize,
    end: usize,
    output: Address,
    started: StartedWith,
}

impl Variant {
    fn new(
        variant: &CudaVariant,
        kernel: Kernel,
        dependent: bool,
        number: &mut impl FnMut(&ir::Dim) -> Result<usize, ExecError>,
    ) -> Result<Variant, ExecError> {
        let mut params = Vec::new();
        for param in &variant.params {
            params.push(match param {
                CudaParam::Pointer { arg, align } => Given::Pointer { arg: *arg, align: *align },
                CudaParam::Size(dim) => Given::Size(number(dim)?),
                CudaParam::Map(map) => Given::Map {
                    map: map.clone(),
                    extents: map.extents.iter().map(&mut *number).collect::<Result<_, _>>()?,
                    strides: map.strides.iter().map(&mut *number).collect::<Result<_, _>>()?,
                },
            });
        }
        let [x, y, z] = &variant.grid;
        let limit = match &variant.limit {
            Some((size, most)) => Some((number(size)?, *most)),
            None => None,
        };
        Ok(Variant {
            kernel,
            limit,
            params,
            grid: [number(x)?, number(y)?, number(z)?],
            block: variant.block,
            cluster: variant.cluster,
            shared_bytes: variant.shared_bytes,
            dependent,
        })
    }
}

impl Given {
    fn param(&self, sizes: &Sizes) -> Param {
        let counts = |numbers: &[usize]| numbers.iter().map(|n| sizes.count(*n) as u64).collect();
        match self {
            Given::Pointer { arg, align } => Param::Pointer { arg: *arg, align: *align },
            Given::Size(size) => Param::Size(sizes.values[*size]),
            Given::Map { map, extents, strides } => Param::Map(cuda::TensorMap {
                arg: map.arg,
                dtype: map.dtype,
                extents: counts(extents),
                strides: counts(strides),
                boxes: map.boxes.clone(),
                swizzle: map.swizzle,
            }),
        }
    }
}
