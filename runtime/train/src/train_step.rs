//! The generated step: entries of a training artifact and the states that they share.

use std::sync::Arc;

use exec::{Executable, Memory, Model, States, Trace};
use ir::{DType, Dim, Port, Program};

use crate::{MicroBatch, TrainError, lora};

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
    /// Where weights are narrower than parameters.
    round: Option<Entry>,
    /// Whether parameters were written since weights were rounded.
    is_stale: bool,
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

/// Name of the entry that rounds parameters.
const ROUND: &str = "round";

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
        let has_round = model.artifact().manifest().program(ROUND).is_some();
        let round = if has_round { Some(load(ROUND)?) } else { None };
        let mut states = States::new(update.exe.program(), &[])?;
        if let Some(round) = &round {
            states.add(round.exe.program(), &[])?;
        }
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
        let is_stale = round.is_some();
        Ok(TrainStep {
            accumulate,
            norm,
            update,
            evaluate,
            round,
            is_stale,
            states,
            parameters,
            frozen,
        })
    }

    /// The trained parameters, in the order of [`gradient_squares`](Self::gradient_squares).
    #[must_use]
    pub fn parameters(&self) -> &[ParameterInfo] {
        &self.parameters
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
        let entries = [&self.accumulate, &self.norm, &self.update, &self.evaluate];
        entries.into_iter().chain(&self.round).map(|entry| &entry.exe).collect()
    }

    /// Names of the states that are not computed from others, with their types.
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
        self.is_stale |= self.round.is_some() && of_kind("param", name).is_some();
        self.states.bytes_mut(name)
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
        self.refresh()?;
        let scalars = [("keep", keep), ("scale", scale)];
        self.accumulate.run(&mut self.states, Some(batch), &scalars)?;
        Ok(self.accumulate.exe.output::<f32>("loss")?[0])
    }

    /// The sum of the losses of a micro-batch, nothing updated.
    ///
    /// # Errors
    /// As [`accumulate`](Self::accumulate).
    pub fn evaluate(&mut self, batch: &MicroBatch) -> Result<f32, TrainError> {
        self.refresh()?;
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
        self.update.run(&mut self.states, None, scalars)?;
        self.is_stale = self.round.is_some();
        Ok(())
    }

    /// Rounds parameters to weights, if that is due.
    fn refresh(&mut self) -> Result<(), TrainError> {
        if let (Some(round), true) = (&mut self.round, self.is_stale) {
            round.run(&mut self.states, None, &[])?;
        }
        self.is_stale = false;
        Ok(())
    }

    /// Where what the last micro-batch made is not finite: the first place on the way from the
    /// embeddings to the loss.
    ///
    /// # Errors
    /// None in practice.
    pub fn first_bad_place(&self) -> Result<Option<String>, TrainError> {
        let exe = &self.accumulate.exe;
        for port in &exe.program().outputs {
            let Some((_, place)) = of_kind("probe", &port.name).and_then(|n| n.split_once('.'))
            else {
                continue;
            };
            if !exe.output::<f32>(&port.name)?[0].is_finite() {
                return Ok(Some(format!("what comes out of `{place}`")));
            }
        }
        Ok(None)
    }

    /// The first parameter with an element that is not finite.
    #[must_use]
    pub fn first_bad_parameter(&self) -> Option<&str> {
        let is_bad = |p: &&ParameterInfo| {
            let bytes = self.state(&format!("param.{}", p.name)).unwrap_or_default();
            !is_finite(p.dtype, bytes)
        };
        self.parameters.iter().find(is_bad).map(|p| &*p.name)
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
