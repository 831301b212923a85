//! Entries of a step, and what of a micro-batch each takes.

use std::sync::Arc;

use exec::{ExecError, Executable, Model, States};

use crate::{MicroBatch, Rank, TrainError};

/// Name of the input that what is dropped follows from.
const DROPOUT_KEY: &str = "dropout_key";

/// Forward and backward.
#[allow(clippy::large_enum_variant, reason = "a step has one")]
#[derive(Debug)]
pub(super) enum Work {
    /// At once.
    Whole(Entry),
    /// In two, for there are stages behind this one.
    Halves { forward: Entry, backward: Entry },
}

/// An entry, and what of a step it takes.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) exe: Executable,
    inputs: Vec<Arc<str>>,
    /// Its symbols, each with its lowest value.
    symbols: Vec<(Arc<str>, i64)>,
    /// Those that say which rank it is.
    pub(super) bound: Vec<(String, i64)>,
}

impl Work {
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        let (first, second) = match self {
            Work::Whole(accumulate) => (accumulate, None),
            Work::Halves { forward, backward } => (forward, Some(backward)),
        };
        [first].into_iter().chain(second)
    }

    /// The one that computes the forward.
    pub(super) fn first(&self) -> &Entry {
        match self {
            Work::Whole(entry) | Work::Halves { forward: entry, .. } => entry,
        }
    }

    pub(super) fn first_mut(&mut self) -> &mut Entry {
        match self {
            Work::Whole(entry) | Work::Halves { forward: entry, .. } => entry,
        }
    }

    /// The one that computes gradients.
    pub(super) fn last(&self) -> &Entry {
        match self {
            Work::Whole(entry) | Work::Halves { backward: entry, .. } => entry,
        }
    }

    pub(super) fn last_mut(&mut self) -> &mut Entry {
        match self {
            Work::Whole(entry) | Work::Halves { backward: entry, .. } => entry,
        }
    }
}

impl Entry {
    pub(super) fn load(model: &Arc<Model>, name: &str, rank: &Rank) -> Result<Entry, TrainError> {
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
    pub(super) fn sum_of_losses(
        &mut self,
        states: &mut States,
        batch: &MicroBatch,
    ) -> Result<f32, TrainError> {
        self.run(states, Some(batch), &[])?;
        Ok(self.exe.output::<f32>("loss")?[0])
    }

    /// Runs it with those inputs that it reads.
    pub(super) fn run(
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
