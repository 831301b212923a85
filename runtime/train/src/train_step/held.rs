//! The states that a rank holds, and what all ranks hold together.

use std::borrow::Cow;

use ir::{Dim, Port, Program, ShardOf};

use super::{TrainStep, of_kind, updates};
use crate::{TrainError, parts};

impl TrainStep {
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
    pub(super) fn find(&self, name: &str) -> Option<(usize, &Program, &Port)> {
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

    pub(super) fn port(&self, name: &str) -> Option<&Port> {
        self.states().find(|port| *port.name == *name)
    }

    pub(super) fn shard_of(&self, name: &str) -> Option<&ShardOf> {
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
}

/// Extents of a state on all ranks together.
pub(super) fn extents(program: &Program, port: &Port) -> Vec<usize> {
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    if let Some(shard) = program.shards.iter().find(|shard| shard.state == port.name) {
        return shard.of.shape.iter().map(|n| size(*n)).collect();
    }
    let extent = |dim: &Dim| dim.as_const().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    port.ty.shape.iter().map(extent).collect()
}
