//! Memory that outlives a run, such as keys and values.

use std::sync::Arc;

use ir::Program;

use crate::{Arena, ExecError, bind::Symbolic};

/// The states of one program, each an arena of its own, zero at first.
///
/// Programs that name their states alike can share them.
#[derive(Debug)]
pub struct States(Vec<(Arc<str>, Arena)>);

impl States {
    /// No states, for programs that have none.
    pub fn none() -> States {
        States(Vec::new())
    }

    /// Reserves memory for the states of a program; `symbols` has a value for every symbol in their
    /// types.
    ///
    /// # Errors
    /// [`ExecError::Symbol`] for values that are missing or out of bounds, [`ExecError::Memory`].
    pub fn new(program: &Program, symbols: &[(&str, i64)]) -> Result<States, ExecError> {
        let mut states = States::none();
        states.add(program, symbols)?;
        Ok(states)
    }

    /// Reserves memory for the states of a program that are not there yet.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn add(&mut self, program: &Program, symbols: &[(&str, i64)]) -> Result<(), ExecError> {
        self.add_some(program, symbols, |_| true)
    }

    /// As [`add`](Self::add), for those states alone that `is_meant` names.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn add_some(
        &mut self,
        program: &Program,
        symbols: &[(&str, i64)],
        is_meant: impl Fn(&str) -> bool,
    ) -> Result<(), ExecError> {
        let symbolic = Symbolic::new(program);
        let values = symbolic.values(symbols)?;
        for port in program.states.iter().filter(|port| is_meant(&port.name)) {
            if self.get(&port.name).is_some() {
                continue;
            }
            let bytes = symbolic.port_bytes("state", port, &values)?;
            let arena = Arena::new(bytes).map_err(|e| ExecError::Memory {
                what: format!("state `{}`", port.name),
                bytes,
                reason: format!("the system has no room for it: {e}; ask for a shorter context"),
            })?;
            self.0.push((port.name.clone(), arena));
        }
        Ok(())
    }

    /// Reserved bytes.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, arena)| arena.bytes()).sum()
    }

    /// Bytes that have been written.
    pub fn resident_bytes(&self) -> u64 {
        self.0.iter().map(|(_, arena)| arena.resident_bytes()).sum()
    }

    /// Takes the states of another over, their memory as it lies. Of a name that both have, its own
    /// stays.
    pub fn append(&mut self, other: &mut States) {
        for (name, arena) in other.0.drain(..) {
            if self.get(&name).is_none() {
                self.0.push((name, arena));
            }
        }
    }

    /// Hands out the states that `is_wanted` names, their memory as it lies.
    pub fn take(&mut self, is_wanted: impl Fn(&str) -> bool) -> States {
        let states = std::mem::take(&mut self.0);
        let (wanted, rest) = states.into_iter().partition(|(name, _)| is_wanted(name));
        self.0 = rest;
        States(wanted)
    }

    /// Copies one of the `parts` equal parts of every state that `is_meant` names over another:
    /// blocks of key/value memory, which are the states' first axis.
    ///
    /// # Panics
    /// If a part is out of range.
    pub fn copy_part(&mut self, is_meant: impl Fn(&str) -> bool, parts: u64, from: u32, to: u32) {
        for (_, arena) in self.0.iter_mut().filter(|(name, _)| is_meant(name)) {
            let memory = arena.as_mut_slice();
            let bytes = memory.len() / usize::try_from(parts.max(1)).unwrap_or(usize::MAX);
            let start = from as usize * bytes;
            memory.copy_within(start..start + bytes, to as usize * bytes);
        }
    }

    /// The bytes of a state; `None` if there is none of that name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(n, _)| **n == *name).map(|(_, arena)| arena.as_slice())
    }

    /// The bytes of a state, to be written.
    pub fn bytes_mut(&mut self, name: &str) -> Option<&mut [u8]> {
        self.get_mut(name).map(Arena::as_mut_slice)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Arena> {
        self.0.iter_mut().find(|(n, _)| **n == *name).map(|(_, arena)| arena)
    }
}
