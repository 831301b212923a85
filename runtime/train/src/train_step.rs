//! The generated step: entries of a training artifact and the states that they share.

use std::sync::Arc;

use exec::{Executable, Memory, Model, States, Trace};
use ir::{DType, Dim, Port, Program};

use crate::{Batch, TrainError};

/// Tokens of packed documents, and what is to be predicted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MicroBatch {
    /// Token ids of all documents, one after another.
    pub tokens: Vec<i32>,
    /// Position of each token in its document.
    pub positions: Vec<i32>,
    /// Where each document begins, and the end of the last.
    pub cu_seqlens: Vec<i32>,
    /// Tokens after which a target stands.
    pub rows: Vec<i32>,
    /// The target of each row.
    pub targets: Vec<i32>,
}

impl MicroBatch {
    /// Removes everything.
    pub fn clear(&mut self) {
        let MicroBatch { tokens, positions, cu_seqlens, rows, targets } = self;
        [tokens, positions, cu_seqlens, rows, targets].into_iter().for_each(Vec::clear);
    }

    /// Adds a document. `targets` has one entry for each of its tokens, negative where there is
    /// nothing to predict.
    pub fn push(&mut self, tokens: &[i32], targets: &[i32]) {
        if self.cu_seqlens.is_empty() {
            self.cu_seqlens.push(0);
        }
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((0..).take(tokens.len()));
        self.cu_seqlens.push(count(self.tokens.len()));
        for (row, target) in (count(start)..).zip(targets).filter(|(_, target)| **target >= 0) {
            self.rows.push(row);
            self.targets.push(*target);
        }
    }
}

impl From<&Batch> for MicroBatch {
    fn from(batch: &Batch) -> MicroBatch {
        let mut rows = Vec::new();
        let mut targets = Vec::new();
        for (row, target) in (0..).zip(&batch.targets).filter(|(_, target)| **target >= 0) {
            rows.push(row);
            targets.push(*target);
        }
        MicroBatch {
            tokens: batch.tokens.clone(),
            positions: batch.positions.clone(),
            cu_seqlens: batch.cu_seqlens.clone(),
            rows,
            targets,
        }
    }
}

/// A number of tokens, which are fewer than 2³¹.
fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

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
    accumulate: Entry,
    norm: Entry,
    update: Entry,
    evaluate: Entry,
    states: States,
    parameters: Vec<ParameterInfo>,
    frozen: Vec<Arc<str>>,
}

/// An entry, and what of a step it takes.
#[derive(Debug)]
struct Entry {
    exe: Executable,
    inputs: Vec<Arc<str>>,
    /// Its symbols, each with its lowest value.
    symbols: Vec<(Arc<str>, i64)>,
}

/// A name of a state without what kind it is.
fn of_kind<'a>(kind: &str, name: &'a str) -> Option<&'a str> {
    name.strip_prefix(kind)?.strip_prefix('.')
}

impl TrainStep {
    /// Loads the entries and reserves memory, all zero.
    ///
    /// # Errors
    /// [`TrainError::Exec`] if the artifact was not compiled for training, or there is no memory.
    pub fn load(model: &Arc<Model>) -> Result<TrainStep, TrainError> {
        let load = |entry: &str| Entry::load(model, entry);
        let update = load("update")?;
        let states = States::new(update.exe.program(), &[])?;
        let ports = update.exe.program().states.iter();
        let named = ports.filter_map(|port| Some((of_kind("param", &port.name)?, port)));
        let parameters = named.map(|(name, port)| ParameterInfo {
            name: name.into(),
            dtype: port.ty.dtype,
            shape: extents(port),
        });
        let parameters: Vec<ParameterInfo> = parameters.collect();
        let weights = &model.artifact().manifest().weights;
        let mut frozen: Vec<Arc<str>> =
            weights.iter().flat_map(|w| &w.sources).map(|name| name.as_str().into()).collect();
        frozen.sort_unstable();
        frozen.dedup();
        let (accumulate, norm) = (load("accumulate")?, load("norm")?);
        let evaluate = load("evaluate")?;
        Ok(TrainStep { accumulate, norm, update, evaluate, states, parameters, frozen })
    }

    /// The trained parameters, in the order of [`gradient_squares`](Self::gradient_squares).
    #[must_use]
    pub fn parameters(&self) -> &[ParameterInfo] {
        &self.parameters
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

    fn executables(&self) -> [&Executable; 4] {
        [&self.accumulate, &self.norm, &self.update, &self.evaluate].map(|entry| &entry.exe)
    }

    /// Names of all states, with their types.
    pub fn states(&self) -> impl Iterator<Item = &Port> {
        self.update.exe.program().states.iter()
    }

    /// The bytes of a state, such as `param.lm_head.weight`; `None` if there is none.
    #[must_use]
    pub fn state(&self, name: &str) -> Option<&[u8]> {
        self.states.get(name)
    }

    /// The bytes of a state, to be written.
    pub fn state_mut(&mut self, name: &str) -> Option<&mut [u8]> {
        self.states.bytes_mut(name)
    }

    /// What was planned, which is never exceeded.
    ///
    /// # Errors
    /// None in practice: no state's size depends on a symbol.
    pub fn planned(&self) -> Result<Memory, TrainError> {
        let model = self.update.exe.model();
        let entries = self.executables().map(|exe| exe.program().name.as_str());
        let threads = model.device().pool().threads();
        Ok(Memory::predict(model.artifact().manifest(), &entries, threads, &[])?)
    }

    /// Bytes that have been touched: states, arenas and scratch memory.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        Memory::measure(&self.executables(), &self.states).total()
    }

    /// Records every run and launch from now on; `None` ends that.
    pub fn set_trace(&mut self, trace: Option<&Trace>) {
        for entry in [&mut self.accumulate, &mut self.norm, &mut self.update, &mut self.evaluate] {
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
        let scalars = [("keep", keep), ("scale", scale)];
        self.accumulate.run(&mut self.states, Some(batch), &scalars)?;
        Ok(self.accumulate.exe.output::<f32>("loss")?[0])
    }

    /// The sum of the losses of a micro-batch, nothing updated.
    ///
    /// # Errors
    /// As [`accumulate`](Self::accumulate).
    pub fn evaluate(&mut self, batch: &MicroBatch) -> Result<f32, TrainError> {
        self.evaluate.run(&mut self.states, Some(batch), &[])?;
        Ok(self.evaluate.exe.output::<f32>("loss")?[0])
    }

    /// The sum of squares of each parameter's gradient.
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
        self.update.run(&mut self.states, None, scalars)
    }
}

impl Entry {
    fn load(model: &Arc<Model>, name: &str) -> Result<Entry, TrainError> {
        let exe = Executable::load(model, name, &[])?;
        let program = exe.program();
        let inputs = program.inputs.iter().map(|port| port.name.clone()).collect();
        let symbols = program.symbols.iter().map(|(name, bounds)| (name.clone(), bounds.lo));
        let symbols = symbols.collect();
        Ok(Entry { exe, inputs, symbols })
    }

    /// Runs it with those inputs that it reads.
    fn run(
        &mut self,
        states: &mut States,
        batch: Option<&MicroBatch>,
        scalars: &[(&str, f32)],
    ) -> Result<(), TrainError> {
        let none = MicroBatch::default();
        let MicroBatch { tokens, positions, cu_seqlens, rows, targets } = batch.unwrap_or(&none);
        let lists = [
            ("tokens", tokens),
            ("positions", positions),
            ("cu_seqlens", cu_seqlens),
            ("logit_rows", rows),
            ("targets", targets),
        ];
        let documents = cu_seqlens.len().saturating_sub(1);
        let sizes = [("T", tokens.len()), ("S", documents), ("R", rows.len())];
        let Entry { exe, inputs, symbols } = self;
        let is_read = |name: &str| inputs.iter().any(|input| **input == *name);
        let lists = lists.into_iter().filter(|(name, _)| batch.is_some() && is_read(name));
        let lists = lists.map(|(name, list)| (name, bytemuck::cast_slice::<i32, u8>(list)));
        let scalars = scalars.iter().filter(|(name, _)| is_read(name));
        let scalars = scalars.map(|(name, x)| (*name, bytemuck::bytes_of(x)));
        let inputs: Vec<(&str, &[u8])> = lists.chain(scalars).collect();
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

pub(crate) fn extents(port: &Port) -> Vec<usize> {
    let extent = |dim: &Dim| dim.as_const().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    port.ty.shape.iter().map(extent).collect()
}
