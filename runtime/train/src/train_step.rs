//! The generated step: entries of a training artifact and the states that they share.

mod entry;
mod finite;
mod held;
mod pipeline;

use std::sync::Arc;

use exec::{Executable, Memory, Model, States, Trace};
use ir::{DType, Program, artifact::Manifest};

use crate::{MicroBatch, Rank, TrainError, lora};

pub(crate) use finite::is_finite;
pub use pipeline::{sets, stage_manifest};

use entry::{Entry, Work};
use held::extents;
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
