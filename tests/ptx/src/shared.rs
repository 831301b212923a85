//! The shared memory of one block: bytes, what state each is in, and who accessed it.

use crate::clock::ThreadClock;
use crate::fault::FaultKind;
use crate::shadow::{Author, Kind, Shadow};

/// What a byte of shared memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing was written there.
    Poison,
    Valid,
    /// An asynchronous copy will write it.
    InFlight,
    /// Part of an mbarrier.
    Mbarrier,
}

/// Shared memory. Offsets are checked here; faults speak of addresses, which are `base` higher.
#[derive(Debug)]
pub(crate) struct Shared {
    bytes: Vec<u8>,
    state: Vec<State>,
    shadow: Shadow,
    /// The address of the first byte.
    pub(crate) base: u32,
}

/// Why and by whom memory is accessed.
#[derive(Clone, Copy)]
pub(crate) struct Use<'a> {
    pub(crate) author: Author,
    pub(crate) kind: Kind,
    pub(crate) view: &'a ThreadClock,
}

impl Shared {
    pub(crate) fn new(bytes: usize, base: u32) -> Shared {
        Shared {
            bytes: vec![0; bytes],
            state: vec![State::Poison; bytes],
            shadow: Shadow::new(bytes),
            base,
        }
    }

    /// The offset of `bytes` bytes at `address`.
    pub(crate) fn offset(
        &self,
        address: u32,
        bytes: usize,
        align: usize,
    ) -> Result<usize, FaultKind> {
        let offset = u64::from(address).wrapping_sub(self.base.into());
        if offset > self.bytes.len() as u64 || bytes as u64 > self.bytes.len() as u64 - offset {
            let (address, bytes) = (address.into(), bytes as u64);
            return Err(FaultKind::OutOfBounds { space: "shared", address, bytes });
        }
        if !(address as usize).is_multiple_of(align) {
            let (address, align) = (address.into(), align as u64);
            return Err(FaultKind::Misaligned { space: "shared", address, align });
        }
        Ok(offset as usize)
    }

    /// Checks that `bytes` bytes may be read, and notes it.
    pub(crate) fn note_read(
        &mut self,
        offset: usize,
        bytes: usize,
        by: Use<'_>,
    ) -> Result<(), FaultKind> {
        self.readable(offset, bytes)?;
        self.shadow
            .access(offset, bytes, by.author, by.kind, by.view)
            .map_err(|fault| self.rebase(fault))
    }

    /// Notes a read and gives the bytes.
    pub(crate) fn read(
        &mut self,
        offset: usize,
        bytes: usize,
        by: Use<'_>,
    ) -> Result<&[u8], FaultKind> {
        self.note_read(offset, bytes, by)?;
        Ok(&self.bytes[offset..offset + bytes])
    }

    /// Bytes of which a read was noted before.
    pub(crate) fn read_noted(&self, offset: usize, bytes: usize) -> Result<&[u8], FaultKind> {
        self.readable(offset, bytes)?;
        Ok(&self.bytes[offset..offset + bytes])
    }

    fn readable(&self, offset: usize, bytes: usize) -> Result<(), FaultKind> {
        let states = &self.state[offset..offset + bytes];
        let Some(bad) = states.iter().position(|state| *state != State::Valid) else {
            return Ok(());
        };
        Err(self.refusal(offset + bad, false))
    }

    fn refusal(&self, offset: usize, write: bool) -> FaultKind {
        let address = self.base + offset as u32;
        match self.state[offset] {
            State::InFlight => {
                let copy_line = self.shadow.last_write(offset);
                FaultKind::InFlight { address, write, copy_line }
            }
            State::Mbarrier => {
                FaultKind::Mbarrier { address, reason: "an mbarrier is accessed as data" }
            }
            State::Poison | State::Valid => {
                FaultKind::Uninitialised { space: "shared", address: address.into() }
            }
        }
    }

    fn rebase(&self, fault: FaultKind) -> FaultKind {
        match fault {
            FaultKind::Race { address, line, write, other_line, other_write } => {
                let address = address + self.base;
                FaultKind::Race { address, line, write, other_line, other_write }
            }
            FaultKind::MissingProxyFence { address, write_line } => {
                FaultKind::MissingProxyFence { address: address + self.base, write_line }
            }
            fault => fault,
        }
    }

    fn note_write(&mut self, offset: usize, bytes: usize, by: Use<'_>) -> Result<(), FaultKind> {
        let blocked = |state: &State| matches!(state, State::InFlight | State::Mbarrier);
        if let Some(bad) = self.state[offset..offset + bytes].iter().position(blocked) {
            return Err(self.refusal(offset + bad, true));
        }
        self.shadow
            .access(offset, bytes, by.author, by.kind, by.view)
            .map_err(|fault| self.rebase(fault))
    }

    pub(crate) fn write(
        &mut self,
        offset: usize,
        data: &[u8],
        by: Use<'_>,
    ) -> Result<(), FaultKind> {
        self.note_write(offset, data.len(), by)?;
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
        self.state[offset..offset + data.len()].fill(State::Valid);
        Ok(())
    }

    /// An asynchronous copy to `bytes` bytes begins: until it lands, nobody may touch them.
    pub(crate) fn begin_copy(
        &mut self,
        offset: usize,
        bytes: usize,
        by: Use<'_>,
    ) -> Result<(), FaultKind> {
        self.note_write(offset, bytes, by)?;
        self.state[offset..offset + bytes].fill(State::InFlight);
        Ok(())
    }

    /// An asynchronous copy lands; whoever knows `to` may read it.
    pub(crate) fn land_copy(&mut self, offset: usize, data: &[u8], from: Author, to: Author) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
        self.state[offset..offset + data.len()].fill(State::Valid);
        self.shadow.reassign(offset, data.len(), from, to);
    }

    /// Makes eight bytes an mbarrier.
    pub(crate) fn make_mbarrier(&mut self, offset: usize, by: Use<'_>) -> Result<(), FaultKind> {
        if self.state[offset..offset + 8].contains(&State::Mbarrier) {
            let address = self.base + offset as u32;
            let reason = "an mbarrier is initialised again without mbarrier.inval";
            return Err(FaultKind::Mbarrier { address, reason });
        }
        self.note_write(offset, 8, by)?;
        self.state[offset..offset + 8].fill(State::Mbarrier);
        Ok(())
    }

    /// Ends an mbarrier's life.
    pub(crate) fn drop_mbarrier(&mut self, offset: usize, by: Use<'_>) -> Result<(), FaultKind> {
        self.state[offset..offset + 8].fill(State::Poison);
        self.note_write(offset, 8, by)
    }

    /// Checks that an mbarrier's initialisation is known to who uses it.
    pub(crate) fn use_mbarrier(&self, offset: usize, by: Use<'_>) -> Result<(), FaultKind> {
        self.shadow
            .check(offset, 8, by.author, by.kind, by.view)
            .map_err(|fault| self.rebase(fault))
    }
}
