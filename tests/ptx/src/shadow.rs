//! The race detector of shared memory (after FastTrack, Flanagan & Freund 2009,
//! doi:10.1145/1542476.1542490).
//!
//! Each four bytes remember the accesses that a later one may conflict with, with a mask of the
//! bytes they touched. Two accesses conflict if they overlap, one of them writes, not both are
//! strong (atomic or volatile), and the earlier one is not known to the thread of the later one.

use crate::clock::{Slot, ThreadClock};
use crate::fault::FaultKind;

/// What an access does, and through which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) write: bool,
    /// Atomic or volatile: does not race with others of its kind.
    pub(crate) strong: bool,
    /// By a bulk copy or `wgmma`.
    pub(crate) asynchronous: bool,
}

impl Kind {
    pub(crate) const READ: Kind = Kind { write: false, strong: false, asynchronous: false };
    pub(crate) const WRITE: Kind = Kind { write: true, strong: false, asynchronous: false };
    pub(crate) const ASYNC_READ: Kind = Kind { write: false, strong: false, asynchronous: true };
    pub(crate) const ASYNC_WRITE: Kind = Kind { write: true, strong: false, asynchronous: true };

    pub(crate) fn strong(self, strong: bool) -> Kind {
        Kind { strong, ..self }
    }
}

/// Who accesses: the slot and epoch by which others may know of it, and the line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Author {
    pub(crate) slot: Slot,
    pub(crate) epoch: u32,
    pub(crate) line: u32,
}

#[derive(Clone, Copy, Debug)]
struct Access {
    author: Author,
    mask: u8,
    kind: Kind,
}

#[derive(Clone, Debug, Default)]
struct Cell {
    writes: Vec<Access>,
    reads: Vec<Access>,
}

/// The accesses to one block's shared memory.
#[derive(Debug)]
pub(crate) struct Shadow {
    cells: Vec<Cell>,
}

/// Reads that are kept before those that are known to all are looked for.
const MANY_READS: usize = 48;

impl Shadow {
    pub(crate) fn new(bytes: usize) -> Shadow {
        Shadow { cells: vec![Cell::default(); bytes.div_ceil(4)] }
    }

    /// Notes an access to `bytes` bytes at `offset`, which `view` makes; the caller checked bounds.
    pub(crate) fn access(
        &mut self,
        offset: usize,
        bytes: usize,
        author: Author,
        kind: Kind,
        view: &ThreadClock,
    ) -> Result<(), FaultKind> {
        let end = offset + bytes;
        for index in offset / 4..end.div_ceil(4) {
            let (from, to) =
                (offset.max(index * 4) - index * 4, end.min(index * 4 + 4) - index * 4);
            let mask = ((1u8 << to) - 1) & !((1u8 << from) - 1);
            let access = Access { author, mask, kind };
            self.cells[index].add(access, view, index * 4 + from)?;
        }
        Ok(())
    }

    /// Checks an access without noting it.
    pub(crate) fn check(
        &self,
        offset: usize,
        bytes: usize,
        author: Author,
        kind: Kind,
        view: &ThreadClock,
    ) -> Result<(), FaultKind> {
        let new = Access { author, mask: 0xf, kind };
        (offset / 4..(offset + bytes).div_ceil(4)).try_for_each(|index| {
            let cell = &self.cells[index];
            cell.writes.iter().try_for_each(|old| old.check(&new, view, index * 4))
        })
    }

    /// Changes by whom earlier accesses to a range are known: an asynchronous copy that was written
    /// by `from` is complete as of `to`.
    pub(crate) fn reassign(&mut self, offset: usize, bytes: usize, from: Author, to: Author) {
        for cell in &mut self.cells[offset / 4..(offset + bytes).div_ceil(4)] {
            let same = |access: &&mut Access| {
                access.author.slot == from.slot
                    && access.author.epoch == from.epoch
                    && access.author.line == from.line
            };
            cell.writes.iter_mut().filter(same).for_each(|access| access.author = to);
        }
    }

    /// The line of the last write to an address.
    pub(crate) fn last_write(&self, offset: usize) -> u32 {
        let writes = self.cells.get(offset / 4).map_or(&[][..], |cell| &cell.writes);
        let touches = |access: &&Access| access.mask >> (offset % 4) & 1 != 0;
        writes.iter().rev().find(touches).map_or(0, |access| access.author.line)
    }
}

impl Cell {
    fn add(&mut self, new: Access, view: &ThreadClock, address: usize) -> Result<(), FaultKind> {
        self.writes.iter().try_for_each(|old| old.check(&new, view, address))?;
        if new.kind.write {
            self.reads.iter().try_for_each(|old| old.check(&new, view, address))?;
            let stays = |old: &Access| {
                let unordered = old.kind.strong && new.kind.strong;
                old.mask & !new.mask != 0 || (unordered && old.author.slot != new.author.slot)
            };
            self.reads.retain(stays);
            self.writes.retain(stays);
            self.writes.push(new);
            return Ok(());
        }
        let same = |old: &&mut Access| {
            old.author.slot == new.author.slot && old.mask == new.mask && old.kind == new.kind
        };
        if let Some(last) = self.reads.last_mut().filter(same) {
            *last = new;
            return Ok(());
        }
        if self.reads.len() >= MANY_READS {
            self.reads.retain(|old| !old.is_known(view) || old.mask & !new.mask != 0);
        }
        self.reads.push(new);
        Ok(())
    }
}

impl Access {
    fn is_known(&self, view: &ThreadClock) -> bool {
        view.get(self.author.slot).0 >= self.author.epoch
    }

    fn check(&self, new: &Access, view: &ThreadClock, address: usize) -> Result<(), FaultKind> {
        let (old, kind) = (self.kind, new.kind);
        if self.mask & new.mask == 0 || !(old.write || kind.write) || (old.strong && kind.strong) {
            return Ok(());
        }
        let (known, fenced) = view.get(self.author.slot);
        if known < self.author.epoch {
            return Err(FaultKind::Race {
                address: address as u32,
                line: new.author.line,
                write: kind.write,
                other_line: self.author.line,
                other_write: old.write,
            });
        }
        if old.write && !old.asynchronous && kind.asynchronous && fenced < self.author.epoch {
            let (address, write_line) = (address as u32, self.author.line);
            return Err(FaultKind::MissingProxyFence { address, write_line });
        }
        Ok(())
    }
}
