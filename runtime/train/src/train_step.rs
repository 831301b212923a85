//! The generated step: entries of a training artifact and the states that they share.

mod pipeline;

use std::{borrow::Cow, sync::Arc};

use exec::{ExecError, Executable, Memory, Model, States, Trace};
use ir::{DType, Dim, Port, Program, ShardOf, artifact::Manifest};

use crate::{MicroBatch, Rank, TrainError, lora, parts};

pub use pipeline::{sets, stage_manifest};

use pipeline::{Place, at_most};

/// A parameter of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterInfo {
    /// Its name in the checkpoint.
    pub name: Arc<str>,
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<usize>,
}

/// A loaded training artifact with memory for parameters, gradients and the optimiser's states.
#[derive(Debug)]
pub struct TrainStep {
    work: Work,
    norm: Entry,
    update: Entry,
    /// `None` in a run without evaluation.
    evaluate: Option<Entry>,
    /// Where weights are something else than parameters.
    refresh: Option<Entry>,
    /// Whether parameters were written since weights were made of them.
    is_stale: bool,
    rank: Rank,
    states: States,
    place: Place,
    /// Of all stages.
    parameters: Vec<ParameterInfo>,
    /// The numbers of those that this stage has, in the order of its entries.
    own: Vec<usize>,
    /// Names of those that both the first and the last stage have.
    shared: Vec<Arc<str>>,
    frozen: Vec<Arc<str>>,
}

/// Forward and backward.
#[allow(clippy::large_enum_variant, reason = "a step has one")]
#[derive(Debug)]
enum Work {
    /// At once.
    Whole(Entry),
    /// In two, for there are stages behind this one.
    Halves { forward: Entry, backward: Entry },
}

impl Work {
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        let (first, second) = match self {
            Work::Whole(accumulate) => (accumulate, None),
            Work::Halves { forward, backward } => (forward, Some(backward)),
        };
        [first].into_iter().chain(second)
    }

    /// The one that computes the forward.
    fn first(&self) -> &Entry {
        match self {
            Work::Whole(entry) | Work::Halves { forward: entry, .. } => entry,
        }
    }

    fn first_mut(&mut self) -> &mut Entry {
        match self {
            Work::Whole(entry) | Work::Halves { forward: entry, .. } => entry,
        }
    }

    /// The one that computes gradients.
    fn last(&self) -> &Entry {
        match self {
            Work::Whole(entry) | Work::Halves { backward: entry, .. } => entry,
        }
    }

    fn last_mut(&mut self) -> &mut Entry {
        match self {
            Work::Whole(entry) | Work::Halves { backward: entry, .. } => entry,
        }
    }
}

/// An entry, and what of a step it takes.
#[derive(Debug)]
struct Entry {
    exe: Executable,
    inputs: Vec<Arc<str>>,
    /// Its symbols, each with its lowest value.
    symbols: Vec<(Arc<str>, i64)>,
    /// Those that say which rank it is.
    bound: Vec<(String, i64)>,
}

/// Name of the input that what is dropped follows from.
const DROPOUT_KEY: &str = "dropout_key";

/// Names of entries; the last makes weights of parameters.
const ACCUMULATE: &str = "accumulate";
const UPDATE: &str = "update";
const EVALUATE: &str = "evaluate";
const REFRESH: &str = "refresh";

/// A name of a state without what kind it is.
fn of_kind<'a>(kind: &str, name: &'a str) -> Option<&'a str> {
    name.strip_prefix(kind)?.strip_prefix('.')
}

impl TrainStep {
    /// Loads the entries for a rank and reserves memory, all zero.
    ///
    /// # Errors
    /// [`TrainError::Exec`] if the artifact was not compiled for training or for so many ranks, or
    /// there is no memory.
    pub fn load(model: &Arc<Model>, rank: &Rank) -> Result<TrainStep, TrainError> {
        let place = Place::new(rank)?;
        let manifest = model.artifact().manifest();
        place.check(manifest)?;
        let load = |entry: &str| Entry::load(model, &place.entry(entry), rank);
        let update = load(UPDATE)?;
        let has_refresh = manifest.program(&place.entry(REFRESH)).is_some();
        let refresh = if has_refresh { Some(load(REFRESH)?) } else { None };
        let mut states = States::on(model.device());
        // Parameters may be parts of the weights.
        for entry in refresh.iter().chain([&update]) {
            let bound: Vec<_> = entry.bound.iter().map(|(name, n)| (name.as_str(), *n)).collect();
            states.add(entry.exe.program(), &bound)?;
        }
        let mut parameters: Vec<ParameterInfo> = Vec::new();
        let mut shared = Vec::new();
        for p in updates(manifest).flat_map(parameters_of) {
            match parameters.iter().any(|known| known.name == p.name) {
                true => shared.push(p.name),
                false => parameters.push(p),
            }
        }
        let number = |p: ParameterInfo| parameters.iter().position(|known| known.name == p.name);
        let own = parameters_of(update.exe.program()).filter_map(number).collect();
        let weights = &model.artifact().manifest().weights;
        let mut frozen: Vec<Arc<str>> =
            weights.iter().flat_map(|w| &w.sources).map(|name| name.as_str().into()).collect();
        frozen.sort_unstable();
        frozen.dedup();
        let mut work = match place.is_last() {
            true => Work::Whole(load(ACCUMULATE)?),
            false => Work::Halves { forward: load("forward")?, backward: load("backward")? },
        };
        let norm = load("norm")?;
        let evaluates = manifest.program(&place.entry(EVALUATE)).is_some();
        let mut evaluate = if evaluates { Some(load(EVALUATE)?) } else { None };
        place.prepare(&mut work, evaluate.as_mut())?;
        let is_stale = refresh.is_some();
        let mut step = TrainStep {
            work,
            norm,
            update,
            evaluate,
            refresh,
            is_stale,
            rank: rank.clone(),
            states,
            place,
            parameters,
            own,
            shared,
            frozen,
        };
        step.add_cotangents()?;
        Ok(step)
    }

    /// Which rank of a job it is of.
    #[must_use]
    pub fn rank(&self) -> &Rank {
        &self.rank
    }

    /// The trained parameters, of all stages where there are several: the first stage's first, each
    /// once.
    #[must_use]
    pub fn parameters(&self) -> &[ParameterInfo] {
        &self.parameters
    }

    /// The numbers of the parameters that this rank's stage has, in the order of
    /// [`gradient_squares`](Self::gradient_squares).
    #[must_use]
    pub fn own_parameters(&self) -> &[usize] {
        &self.own
    }

    /// Whether this stage speaks for a parameter, by its number, which others may have too.
    pub(crate) fn leads(&self, number: usize) -> bool {
        let name = self.parameters.get(number).map(|p| format!("param.{}", p.name));
        name.and_then(|name| self.find(&name)).is_some_and(|(of, ..)| of == self.place.stage)
    }

    /// The artifact, on its device.
    pub(crate) fn model(&self) -> &Arc<Model> {
        self.update.exe.model()
    }

    /// Weights of the model that are not trained.
    #[must_use]
    pub fn frozen(&self) -> &[Arc<str>] {
        &self.frozen
    }

    /// The program of each entry.
    pub fn programs(&self) -> impl Iterator<Item = &Program> {
        self.executables().into_iter().map(Executable::program)
    }

    fn executables(&self) -> Vec<&Executable> {
        let entries = self.work.entries().chain([&self.norm, &self.update]).chain(&self.evaluate);
        entries.chain(&self.refresh).map(|entry| &entry.exe).collect()
    }

    /// Names of the states that are not computed from others, with their types.
    pub fn states(&self) -> impl Iterator<Item = &Port> {
        self.update.exe.program().states.iter()
    }

    /// The same of all stages together, each once.
    pub(crate) fn states_of_stages(&self) -> Vec<&Port> {
        let mut all: Vec<&Port> = Vec::new();
        for port in updates(self.model().artifact().manifest()).flat_map(|program| &program.states)
        {
            if !all.iter().any(|known| known.name == port.name) {
                all.push(port);
            }
        }
        all
    }

    /// The first stage that has a state, with its program.
    fn find(&self, name: &str) -> Option<(usize, &Program, &Port)> {
        updates(self.model().artifact().manifest()).enumerate().find_map(|(stage, program)| {
            let port = program.states.iter().find(|port| *port.name == *name)?;
            Some((stage, program, port))
        })
    }

    /// The bytes of a state that this rank holds, such as of `param.lm_head.weight`; `None` if
    /// there is none.
    ///
    /// # Errors
    /// [`TrainError::Exec`] if they are on a GPU that fails.
    pub fn state(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>, TrainError> {
        Ok(self.states.read(name)?)
    }

    /// Whether this rank has a state of that name.
    #[must_use]
    pub fn has_state(&self, name: &str) -> bool {
        self.states.bytes_of(name).is_some()
    }

    /// The bytes of a state on all ranks together, which all have to ask for; `None` if there is
    /// none, and on ranks of stages that do not have it, but the first rank of all.
    ///
    /// # Errors
    /// [`TrainError::Ranks`] if the job has failed.
    pub fn whole_state(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>, TrainError> {
        let Some((owner, program, port)) = self.find(name) else { return Ok(None) };
        let own = match (self.state(name)?, self.shard_of(name)) {
            (Some(own), Some(of)) => {
                let whole = parts::whole(of, port.ty.dtype, self.rank.groups(), &own)?;
                Some(Cow::Owned(whole.into_owned()))
            }
            (own, _) => own,
        };
        let elements: usize = extents(program, port).into_iter().product();
        self.on_first(owner, own, elements * port.ty.dtype.size())
    }

    /// Sets what this rank holds of a state whose bytes on all ranks together are these; `false` if
    /// there is none of so many bytes.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    pub fn set_state(&mut self, name: &str, whole: &[u8]) -> Result<bool, TrainError> {
        let own = match (self.shard_of(name), self.port(name)) {
            (Some(of), Some(port)) => parts::own(of, port.ty.dtype, self.rank.groups(), whole),
            _ => Some(whole.into()),
        };
        self.is_stale |= self.refresh.is_some() && of_kind("param", name).is_some();
        let Some(own) = own else { return Ok(false) };
        let is_set = self.states.change(name, |state| {
            let fits = state.len() == own.len();
            if fits {
                state.copy_from_slice(&own);
            }
            Ok::<_, TrainError>(fits)
        })?;
        Ok(is_set.unwrap_or(false))
    }

    fn port(&self, name: &str) -> Option<&Port> {
        self.states().find(|port| *port.name == *name)
    }

    fn shard_of(&self, name: &str) -> Option<&ShardOf> {
        let shards = &self.update.exe.program().shards;
        shards.iter().find(|shard| *shard.state == *name).map(|shard| &shard.of)
    }

    /// Whether ranks hold a parameter, by its number, cut along one of its axes.
    pub(crate) fn is_split(&self, number: usize) -> bool {
        let name = self.parameters.get(number).map(|p| format!("param.{}", p.name));
        let of = name.and_then(|name| self.shard_of(&name));
        of.is_some_and(|of| of.split.is_some())
    }

    /// Extents of a state on all ranks together.
    #[must_use]
    pub fn state_shape(&self, name: &str) -> Option<Vec<usize>> {
        self.find(name).map(|(_, program, port)| extents(program, port))
    }

    /// Names of all states that have memory of their own, and how much.
    pub fn state_bytes(&self) -> impl Iterator<Item = (&str, u64)> {
        self.states.sizes()
    }

    /// What was planned, which is never exceeded.
    ///
    /// # Errors
    /// None in practice: no state's size depends on a symbol.
    pub fn planned(&self) -> Result<Memory, TrainError> {
        let model = self.update.exe.model();
        let executables = self.executables();
        let entries = executables.iter().map(|exe| exe.program().name.as_str());
        // Adapters are merged while all else is there.
        let merges = model.artifact().manifest().programs.iter().map(|program| &*program.name);
        let merges = merges.filter(|name| name.starts_with(lora::MERGE));
        let entries: Vec<&str> = entries.chain(merges).collect();
        let threads = model.device().pool().threads();
        let symbols = at_most(self.update.exe.program(), &self.rank.symbols());
        let symbols: Vec<_> = symbols.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        let mut memory = Memory::predict(model.artifact().manifest(), &entries, threads, &symbols)?;
        memory.state_bytes += self.further_bytes();
        Ok(memory)
    }

    /// Bytes that have been touched: states, arenas and scratch memory.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        Memory::measure(&self.executables(), &self.states).total() + self.place.resident_bytes()
    }

    /// Records every run and launch from now on; `None` ends that.
    pub fn set_trace(&mut self, trace: Option<&Trace>) {
        let work: &mut [&mut Entry] = match &mut self.work {
            Work::Whole(accumulate) => &mut [accumulate],
            Work::Halves { forward, backward } => &mut [forward, backward],
        };
        let others = [&mut self.norm, &mut self.update];
        let optional = [&mut self.evaluate, &mut self.refresh].into_iter().flatten();
        for entry in work.iter_mut().map(|entry| &mut **entry).chain(others).chain(optional) {
            entry.exe.set_trace(trace.cloned());
        }
    }

    /// Computes a micro-batch; `grad ← keep·grad + scale·∂loss/∂param` of the sum of its losses,
    /// which is returned.
    ///
    /// # Errors
    /// [`TrainError::Exec`] if the batch is larger than the artifact takes, or empty.
    pub fn accumulate(
        &mut self,
        batch: &MicroBatch,
        keep: f32,
        scale: f32,
    ) -> Result<f32, TrainError> {
        self.refresh()?;
        let scalars = [("keep", keep), ("scale", scale)];
        let Work::Whole(accumulate) = &mut self.work else {
            let reason = "computes some of the layers: micro-batches go through all stages";
            return Err(self.place.error(ACCUMULATE, reason.to_owned()));
        };
        accumulate.run(&mut self.states, Some(batch), &scalars)?;
        Ok(accumulate.exe.output::<f32>("loss")?[0])
    }

    /// The sum of the losses of a micro-batch, nothing updated. All stages have to be asked, and
    /// the last one knows.
    ///
    /// # Errors
    /// As [`accumulate`](Self::accumulate), and if the artifact was compiled for a run without
    /// evaluation.
    pub fn evaluate(&mut self, batch: &MicroBatch) -> Result<f32, TrainError> {
        self.refresh()?;
        let set = (self.place.stages > 1).then(|| self.set()).transpose()?;
        let Some(mut evaluate) = self.evaluate.take() else {
            let reason = "was compiled for a run without evaluation".to_owned();
            return Err(self.place.error(EVALUATE, reason));
        };
        let sum = match set {
            Some(set) => self.evaluate_stage(&mut evaluate, batch, set),
            None => evaluate.sum_of_losses(&mut self.states, batch),
        };
        self.evaluate = Some(evaluate);
        sum
    }

    /// Lends the states to another program that reads weights, the serving form: parameters are as
    /// the last update left them, and narrow weights are rounded first, if that is due.
    ///
    /// # Errors
    /// None in practice.
    pub fn lend<R>(&mut self, work: impl FnOnce(&mut States) -> R) -> Result<R, TrainError> {
        self.refresh()?;
        Ok(work(&mut self.states))
    }

    /// The sum of squares of the gradient of each of [`own_parameters`](Self::own_parameters); with
    /// several ranks a row for the part of each, the first rank's first.
    ///
    /// # Errors
    /// None in practice.
    pub fn gradient_squares(&mut self) -> Result<Vec<f32>, TrainError> {
        self.norm.run(&mut self.states, None, &[])?;
        Ok(self.norm.exe.output::<f32>("squares")?.to_vec())
    }

    /// Updates all parameters. `scalars` are the learning rate of each group, `lr.0` and so on,
    /// what the optimiser asks for, and `grad_scale`; more than the program reads is no error.
    ///
    /// # Errors
    /// [`TrainError::Exec`] if one is missing.
    pub fn update(&mut self, scalars: &[(&str, f32)]) -> Result<(), TrainError> {
        self.update.run(&mut self.states, None, scalars)?;
        self.is_stale = self.refresh.is_some();
        Ok(())
    }

    /// Makes weights of parameters, if that is due.
    fn refresh(&mut self) -> Result<(), TrainError> {
        if let (Some(refresh), true) = (&mut self.refresh, self.is_stale) {
            refresh.run(&mut self.states, None, &[])?;
        }
        self.is_stale = false;
        Ok(())
    }

    /// Where what the last micro-batch made is not finite: the number of the first place on the way
    /// from the embeddings to the loss, for [`place`](Self::place).
    ///
    /// # Errors
    /// None in practice.
    pub fn first_bad_place(&self) -> Result<Option<usize>, TrainError> {
        let exe = &self.work.first().exe;
        let mut next = 0;
        for port in &exe.program().outputs {
            let Some((number, _)) = probe(&port.name) else { continue };
            if !exe.output::<f32>(&port.name)?[0].is_finite() {
                return Ok(Some(number));
            }
            next = number + 1;
        }
        let is_bad = self.place.is_last() && !exe.output::<f32>("loss")?[0].is_finite();
        Ok(is_bad.then_some(next))
    }

    /// The name of a place by its number.
    #[must_use]
    pub fn place(&self, number: usize) -> String {
        let programs = &self.model().artifact().manifest().programs;
        let outputs = programs.iter().flat_map(|program| &program.outputs);
        let mut probes = outputs.filter_map(|port| probe(&port.name));
        match probes.find(|(known, _)| *known == number) {
            Some((_, place)) => format!("what comes out of `{place}`"),
            None => "the loss".to_owned(),
        }
    }

    /// The last parameter, by its number, whose gradient of the last micro-batch is not finite as
    /// this rank computed it. With one rank gradients are looked at when they are added up.
    ///
    /// # Errors
    /// None in practice.
    pub fn last_bad_gradient(&self) -> Result<Option<usize>, TrainError> {
        let exe = &self.work.last().exe;
        for number in self.own.iter().rev().copied() {
            let name = format!("local.{}", self.parameters[number].name);
            let is_there = exe.program().outputs.iter().any(|port| *port.name == *name);
            if is_there && !exe.output::<f32>(&name)?[0].is_finite() {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// The first parameter, by its number, with an element of this rank that is not finite.
    ///
    /// # Errors
    /// As [`state`](Self::state).
    pub fn first_bad_parameter(&self) -> Result<Option<usize>, TrainError> {
        for number in self.own.iter().copied() {
            let p = &self.parameters[number];
            let bytes = self.state(&format!("param.{}", p.name))?.unwrap_or_default();
            if !is_finite(p.dtype, &bytes) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }
}

/// Whether every element is finite; integers are.
pub(crate) fn is_finite(dtype: DType, bytes: &[u8]) -> bool {
    // All bits of the exponent are set in infinities and what is no number.
    let narrow = |exponent: u16| {
        let bits = bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
        bits.into_iter().all(|bits| bits & exponent != exponent)
    };
    match dtype {
        DType::F64 => bytes.as_chunks::<8>().0.iter().all(|b| f64::from_le_bytes(*b).is_finite()),
        DType::F32 => bytes.as_chunks::<4>().0.iter().all(|b| f32::from_le_bytes(*b).is_finite()),
        DType::Bf16 => narrow(0x7f80),
        DType::F16 => narrow(0x7c00),
        _ => true,
    }
}

impl Entry {
    fn load(model: &Arc<Model>, name: &str, rank: &Rank) -> Result<Entry, TrainError> {
        let symbols = rank.symbols();
        let program = model.artifact().program(name).map_err(ExecError::from)?;
        let is_known = |(symbol, _): &(String, i64)| program.symbols.contains_key(symbol.as_str());
        let bound: Vec<(String, i64)> = symbols.into_iter().filter(is_known).collect();
        let values: Vec<_> = bound.iter().map(|(symbol, n)| (symbol.as_str(), *n)).collect();
        let mut exe = Executable::load(model, name, &values)?;
        exe.join(rank.groups())?;
        let program = exe.program();
        let inputs = program.inputs.iter().map(|port| port.name.clone()).collect();
        let is_free = |name: &Arc<str>| bound.iter().all(|(bound, _)| **bound != **name);
        let symbols = program.symbols.iter().filter(|(name, _)| is_free(name));
        let symbols = symbols.map(|(name, bounds)| (name.clone(), bounds.lo)).collect();
        Ok(Entry { exe, inputs, symbols, bound })
    }

    /// The loss of a micro-batch.
    fn sum_of_losses(
        &mut self,
        states: &mut States,
        batch: &MicroBatch,
    ) -> Result<f32, TrainError> {
        self.run(states, Some(batch), &[])?;
        Ok(self.exe.output::<f32>("loss")?[0])
    }

    /// Runs it with those inputs that it reads.
    fn run(
        &mut self,
        states: &mut States,
        batch: Option<&MicroBatch>,
        scalars: &[(&str, f32)],
    ) -> Result<(), TrainError> {
        let none = MicroBatch::default();
        let MicroBatch { tokens, positions, cu_seqlens, rows, targets, dropout_key } =
            batch.unwrap_or(&none);
        let lists = [
            ("tokens", tokens),
            ("positions", positions),
            ("cu_seqlens", cu_seqlens),
            ("logit_rows", rows),
            ("targets", targets),
        ];
        let sizes = batch.unwrap_or(&none).sizes();
        let Entry { exe, inputs, symbols, .. } = self;
        let is_read = |name: &str| inputs.iter().any(|input| **input == *name);
        let lists = lists.into_iter().filter(|(name, _)| batch.is_some() && is_read(name));
        let lists = lists.map(|(name, list)| (name, bytemuck::cast_slice::<i32, u8>(list)));
        let scalars = scalars.iter().filter(|(name, _)| is_read(name));
        let scalars = scalars.map(|(name, x)| (*name, bytemuck::bytes_of(x)));
        let key = is_read(DROPOUT_KEY).then(|| (DROPOUT_KEY, bytemuck::bytes_of(dropout_key)));
        let inputs: Vec<(&str, &[u8])> = lists.chain(scalars).chain(key).collect();
        let given = |symbol: &str| {
            let (_, n) = sizes.iter().find(|(name, _)| *name == symbol && batch.is_some())?;
            i64::try_from(*n).ok()
        };
        // Without a batch no size depends on a symbol.
        let symbols = symbols.iter().map(|(name, lo)| (&**name, given(name).unwrap_or(*lo)));
        let symbols: Vec<(&str, i64)> = symbols.collect();
        Ok(exe.run(states, &symbols, &inputs)?)
    }
}

/// The programs that update, one stage's after the other's.
fn updates(manifest: &Manifest) -> impl Iterator<Item = &Program> {
    let whole = manifest.program(UPDATE);
    let stages = (0..).map_while(|stage| manifest.program(&format!("{UPDATE}.{stage}")));
    whole.into_iter().chain(stages)
}

/// The parameters that a program updates.
fn parameters_of(program: &Program) -> impl Iterator<Item = ParameterInfo> {
    let named = program.states.iter().filter_map(|p| Some((of_kind("param", &p.name)?, p)));
    named.map(|(name, port)| ParameterInfo {
        name: name.into(),
        dtype: port.ty.dtype,
        shape: extents(program, port),
    })
}

/// Number and name of a place on the way from the embeddings to the loss, from an output's name.
fn probe(output: &str) -> Option<(usize, &str)> {
    let (number, place) = of_kind("probe", output)?.split_once('.')?;
    Some((number.parse().ok()?, place))
}

/// Extents of a state on all ranks together.
fn extents(program: &Program, port: &Port) -> Vec<usize> {
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    if let Some(shard) = program.shards.iter().find(|shard| shard.state == port.name) {
        return shard.of.shape.iter().map(|n| size(*n)).collect();
    }
    let extent = |dim: &Dim| dim.as_const().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    port.ty.shape.iter().map(extent).collect()
}
