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
        let symbolic = Symbolic::new(program);
        let values = symbolic.values(symbols)?;
        for port in &program.states {
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

    /// Copies one of the `parts` equal parts of every state over another: blocks of key/value
    /// memory, which are the states' first axis.
    ///
    /// # Panics
    /// If a part is out of range.
    pub fn copy_part(&mut self, parts: u64, from: u32, to: u32) {
        for (_, arena) in &mut self.0 {
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
