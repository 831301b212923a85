//! Memory that outlives a run, such as keys and values.

use std::{ops::Range, sync::Arc};

use ir::{Part, Port, Program};

use crate::{Arena, ExecError, bind::Symbolic};

/// The states of one program, each an arena of its own or a part of another's, zero at first.
///
/// Programs that name their states alike can share them.
#[derive(Debug)]
pub struct States(Vec<(Arc<str>, Memory)>);

#[derive(Debug)]
enum Memory {
    Own(Arena),
    /// These bytes of the state of that name, which has its own.
    Part(Arc<str>, Range<usize>),
}

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
    /// As [`new`](Self::new); [`ExecError::Port`] for a part of a state that is not there.
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
        let part_of = |name: &str| program.parts.iter().find(|part| *part.state == *name);
        // Parts come when what they lie in is there.
        let mut ports: Vec<&Port> =
            program.states.iter().filter(|port| is_meant(&port.name)).collect();
        ports.sort_by_key(|port| part_of(&port.name).is_some());
        for port in ports {
            if self.get(&port.name).is_some() {
                continue;
            }
            let bytes = symbolic.port_bytes("state", port, &values)?;
            let memory = match part_of(&port.name) {
                Some(part) => self.part(symbolic, (part, bytes), &values)?,
                None => Memory::Own(Arena::new(bytes).map_err(|e| ExecError::Memory {
                    what: format!("state `{}`", port.name),
                    bytes,
                    reason: format!(
                        "the system has no room for it: {e}; ask for a shorter context"
                    ),
                })?),
            };
            self.0.push((port.name.clone(), memory));
        }
        Ok(())
    }

    fn part(
        &self,
        symbolic: Symbolic<'_>,
        (part, bytes): (&Part, u64),
        values: &[Option<i64>],
    ) -> Result<Memory, ExecError> {
        let fail = |reason: String| symbolic.port("state", &part.state, reason);
        let Some(room) = self.get(&part.of) else {
            return Err(fail(format!("lies in `{}`, which is not there", part.of)));
        };
        let range = symbolic.eval_with(&part.offset, values).and_then(|start| {
            let start = usize::try_from(start).ok()?;
            let end = start.checked_add(usize::try_from(bytes).ok()?)?;
            (end <= room.len()).then_some(start..end)
        });
        let range = range.ok_or_else(|| fail(format!("lies outside of `{}`", part.of)))?;
        Ok(Memory::Part(part.of.clone(), range))
    }

    fn arenas(&self) -> impl Iterator<Item = &Arena> {
        self.0.iter().filter_map(|(_, memory)| match memory {
            Memory::Own(arena) => Some(arena),
            Memory::Part(..) => None,
        })
    }

    /// Names of the states that have memory of their own, and its bytes.
    pub fn sizes(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().filter_map(|(name, memory)| match memory {
            Memory::Own(arena) => Some((&**name, arena.bytes())),
            Memory::Part(..) => None,
        })
    }

    /// Reserved bytes.
    pub fn bytes(&self) -> u64 {
        self.arenas().map(Arena::bytes).sum()
    }

    /// Bytes that have been written.
    pub fn resident_bytes(&self) -> u64 {
        self.arenas().map(Arena::resident_bytes).sum()
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
        for (_, memory) in self.0.iter_mut().filter(|(name, _)| is_meant(name)) {
            let Memory::Own(arena) = memory else { continue };
            let memory = arena.as_mut_slice();
            let bytes = memory.len() / usize::try_from(parts.max(1)).unwrap_or(usize::MAX);
            let start = from as usize * bytes;
            memory.copy_within(start..start + bytes, to as usize * bytes);
        }
    }

    /// The bytes of a state; `None` if there is none of that name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let memory = |name: &str| self.0.iter().find(|(n, _)| **n == *name).map(|(_, m)| m);
        match memory(name)? {
            Memory::Own(arena) => Some(arena.as_slice()),
            Memory::Part(of, range) => match memory(of)? {
                Memory::Own(arena) => arena.as_slice().get(range.clone()),
                Memory::Part(..) => None,
            },
        }
    }

    /// The bytes of a state, to be written.
    pub fn bytes_mut(&mut self, name: &str) -> Option<&mut [u8]> {
        let (_, memory) = self.0.iter().find(|(n, _)| **n == *name)?;
        let (owner, range) = match memory {
            Memory::Own(arena) => (Arc::from(name), 0..arena.as_slice().len()),
            Memory::Part(of, range) => (of.clone(), range.clone()),
        };
        match &mut self.0.iter_mut().find(|(n, _)| *n == owner)?.1 {
            Memory::Own(arena) => arena.as_mut_slice().get_mut(range),
            Memory::Part(..) => None,
        }
    }
}
