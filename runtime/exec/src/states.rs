//! Memory that outlives a run, such as keys and values.

use std::{borrow::Cow, ops::Range, sync::Arc};

use cuda::Address;
use ir::{Part, Port, Program};

use crate::{Arena, Device, ExecError, bind::Symbolic, gpu::Gpu};

/// The states of one program, each with memory of its own or a part of another's, zero at first.
///
/// Programs that name their states alike can share them. Their memory is this machine's, or that of
/// a GPU.
#[derive(Debug, Default)]
pub struct States {
    gpu: Option<Gpu>,
    rooms: Vec<(Arc<str>, Memory)>,
}

#[derive(Debug)]
enum Memory {
    Own(Room),
    /// These bytes of the state of that name, which has its own.
    Part(Arc<str>, Range<usize>),
}

#[derive(Debug)]
enum Room {
    Host(Arena),
    Gpu(Gpu, cuda::Memory),
}

impl Room {
    fn bytes(&self) -> u64 {
        match self {
            Room::Host(arena) => arena.bytes(),
            Room::Gpu(_, memory) => memory.bytes(),
        }
    }

    fn resident_bytes(&self) -> u64 {
        match self {
            Room::Host(arena) => arena.resident_bytes(),
            Room::Gpu(_, memory) => memory.bytes(),
        }
    }
}

impl States {
    /// No states, for programs that have none, or to be added in this machine's memory.
    pub fn none() -> States {
        States::default()
    }

    /// No states yet, to be added in the memory of a device.
    pub fn on(device: &Device) -> States {
        States { gpu: device.gpu().cloned(), rooms: Vec::new() }
    }

    /// Reserves this machine's memory for the states of a program; `symbols` has a value for every
    /// symbol in their types.
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
            if self.bytes_of(&port.name).is_some() {
                continue;
            }
            let bytes = symbolic.port_bytes("state", port, &values)?;
            let memory = match part_of(&port.name) {
                Some(part) => self.part(symbolic, (part, bytes), &values)?,
                None => Memory::Own(self.room(&port.name, bytes)?),
            };
            self.rooms.push((port.name.clone(), memory));
        }
        Ok(())
    }

    fn room(&self, name: &str, bytes: u64) -> Result<Room, ExecError> {
        let fail = |reason: String| ExecError::Memory {
            what: format!("state `{name}`"),
            bytes,
            reason: format!("{reason}; ask for a shorter context"),
        };
        if let Some(gpu) = &self.gpu {
            return match gpu.zeros(bytes) {
                Err(error @ cuda::CudaError::Memory { .. }) => Err(fail(error.to_string())),
                room => Ok(Room::Gpu(gpu.clone(), room?)),
            };
        }
        let arena = Arena::new(bytes);
        let arena = arena.map_err(|e| fail(format!("the system has no room for it: {e}")))?;
        Ok(Room::Host(arena))
    }

    fn part(
        &self,
        symbolic: Symbolic<'_>,
        (part, bytes): (&Part, u64),
        values: &[Option<i64>],
    ) -> Result<Memory, ExecError> {
        let fail = |reason: String| symbolic.port("state", &part.state, reason);
        let Some(room) = self.bytes_of(&part.of) else {
            return Err(fail(format!("lies in `{}`, which is not there", part.of)));
        };
        let range = symbolic.eval_with(&part.offset, values).and_then(|start| {
            let start = usize::try_from(start).ok()?;
            let end = start.checked_add(usize::try_from(bytes).ok()?)?;
            (end as u64 <= room).then_some(start..end)
        });
        let range = range.ok_or_else(|| fail(format!("lies outside of `{}`", part.of)))?;
        Ok(Memory::Part(part.of.clone(), range))
    }

    fn own(&self) -> impl Iterator<Item = (&str, &Room)> {
        self.rooms.iter().filter_map(|(name, memory)| match memory {
            Memory::Own(room) => Some((&**name, room)),
            Memory::Part(..) => None,
        })
    }

    /// Names of the states that have memory of their own, and its bytes.
    pub fn sizes(&self) -> impl Iterator<Item = (&str, u64)> {
        self.own().map(|(name, room)| (name, room.bytes()))
    }

    /// Reserved bytes.
    pub fn bytes(&self) -> u64 {
        self.own().map(|(_, room)| room.bytes()).sum()
    }

    /// Bytes that have been written; on a GPU all of them.
    pub fn resident_bytes(&self) -> u64 {
        self.own().map(|(_, room)| room.resident_bytes()).sum()
    }

    /// Takes the states of another over, their memory as it lies. Of a name that both have, its own
    /// stays.
    pub fn append(&mut self, other: &mut States) {
        for (name, memory) in other.rooms.drain(..) {
            if self.bytes_of(&name).is_none() {
                self.rooms.push((name, memory));
            }
        }
    }

    /// Hands out the states that `is_wanted` names, their memory as it lies.
    pub fn take(&mut self, is_wanted: impl Fn(&str) -> bool) -> States {
        let rooms = std::mem::take(&mut self.rooms);
        let (wanted, rest) = rooms.into_iter().partition(|(name, _)| is_wanted(name));
        self.rooms = rest;
        States { gpu: self.gpu.clone(), rooms: wanted }
    }

    /// Copies one of the `parts` equal parts of every state that `is_meant` names over another:
    /// blocks of key/value memory, which are the states' first axis.
    ///
    /// # Errors
    /// [`ExecError::Cuda`].
    ///
    /// # Panics
    /// If a part is out of range.
    pub fn copy_part(
        &mut self,
        is_meant: impl Fn(&str) -> bool,
        parts: u64,
        from: u32,
        to: u32,
    ) -> Result<(), ExecError> {
        for (_, memory) in self.rooms.iter_mut().filter(|(name, _)| is_meant(name)) {
            let Memory::Own(room) = memory else { continue };
            let bytes = room.bytes() / parts.max(1);
            let [from, to] = [from, to].map(|part| u64::from(part) * bytes);
            match room {
                Room::Host(arena) => {
                    let at = |byte: u64| usize::try_from(byte).unwrap_or(usize::MAX);
                    arena.as_mut_slice().copy_within(at(from)..at(from + bytes), at(to));
                }
                Room::Gpu(gpu, memory) => {
                    gpu.stream().copy(&memory.at(to), &memory.at(from), bytes)?;
                }
            }
        }
        Ok(())
    }

    /// The memory that a state lies in, and its bytes there.
    fn find(&self, name: &str) -> Option<(&Room, Range<usize>)> {
        let memory = |name: &str| self.rooms.iter().find(|(n, _)| **n == *name).map(|(_, m)| m);
        match memory(name)? {
            Memory::Own(room) => Some((room, 0..usize::try_from(room.bytes()).ok()?)),
            Memory::Part(of, range) => match memory(of)? {
                Memory::Own(room) => Some((room, range.clone())),
                Memory::Part(..) => None,
            },
        }
    }

    /// Bytes of a state; `None` if there is none of that name.
    pub fn bytes_of(&self, name: &str) -> Option<u64> {
        self.find(name).map(|(_, range)| range.len() as u64)
    }

    /// The contents of a state; `None` if there is none of that name.
    ///
    /// # Errors
    /// [`ExecError::Cuda`].
    pub fn read(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>, ExecError> {
        let Some((room, range)) = self.find(name) else { return Ok(None) };
        Ok(Some(match room {
            Room::Host(arena) => Cow::Borrowed(&arena.as_slice()[range]),
            Room::Gpu(gpu, memory) => {
                let mut bytes = vec![0; range.len()];
                gpu.download(&memory.at(range.start as u64), &mut bytes)?;
                Cow::Owned(bytes)
            }
        }))
    }

    /// Calls `change` with the contents of a state, which become what it leaves; `None` if there is
    /// no state of that name.
    ///
    /// # Errors
    /// [`ExecError::Cuda`]; those of `change`, after which a state may be changed in part.
    pub fn change<R, E: From<ExecError>>(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut [u8]) -> Result<R, E>,
    ) -> Result<Option<R>, E> {
        if let Some(bytes) = self.bytes_mut(name) {
            return change(bytes).map(Some);
        }
        let Some(mut bytes) = self.read(name)?.map(Cow::into_owned) else { return Ok(None) };
        let result = change(&mut bytes)?;
        if let Some((Room::Gpu(gpu, memory), range)) = self.find(name) {
            gpu.upload(&memory.at(range.start as u64), &bytes).map_err(ExecError::from)?;
        }
        Ok(Some(result))
    }

    /// The bytes of a state in this machine's memory; `None` if it is none.
    pub(crate) fn bytes_mut(&mut self, name: &str) -> Option<&mut [u8]> {
        let (_, memory) = self.rooms.iter().find(|(n, _)| **n == *name)?;
        let (owner, range) = match memory {
            Memory::Own(room) => (Arc::from(name), 0..usize::try_from(room.bytes()).ok()?),
            Memory::Part(of, range) => (of.clone(), range.clone()),
        };
        match &mut self.rooms.iter_mut().find(|(n, _)| *n == owner)?.1 {
            Memory::Own(Room::Host(arena)) => arena.as_mut_slice().get_mut(range),
            Memory::Own(Room::Gpu(..)) | Memory::Part(..) => None,
        }
    }

    /// Where a state lies in a GPU's memory; `None` if it is none there.
    pub(crate) fn address(&self, name: &str) -> Option<Address> {
        match self.find(name)? {
            (Room::Gpu(_, memory), range) => Some(memory.at(range.start as u64)),
            (Room::Host(_), _) => None,
        }
    }
}
