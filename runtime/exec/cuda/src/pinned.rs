//! Pinned memory of the host that work copies from and to, also in graphs.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    CudaError, Device,
    driver::{self, Driver},
};

/// Pinned memory. It stays where it is until the last graph that copies it has gone, and is refused
/// to the host while work that copies it may be under way.
#[derive(Debug)]
pub struct Pinned {
    room: Arc<Room>,
}

/// The allocation.
#[derive(Debug)]
pub(crate) struct Room {
    driver: Arc<dyn Driver>,
    handle: driver::Pinned,
    bytes: usize,
    /// The last work that copies it.
    last: Mutex<Option<Ticket>>,
}

/// How far a stream is: works that it was given, and how many of them are known to be done.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    given: AtomicU64,
    done: AtomicU64,
}

/// A work of a stream.
#[derive(Debug)]
struct Ticket {
    progress: Arc<Progress>,
    number: u64,
}

impl Pinned {
    pub(crate) fn new(device: &Device, bytes: usize) -> Result<Pinned, CudaError> {
        let driver = device.driver().clone();
        let handle = driver.pin(bytes.max(1))?;
        Ok(Pinned { room: Arc::new(Room { driver, handle, bytes, last: Mutex::default() }) })
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.room.bytes
    }

    /// Writes bytes from an offset on.
    ///
    /// # Errors
    /// [`CudaError::Busy`] if the work that copies it last was not waited for;
    /// [`CudaError::Range`].
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Result<(), CudaError> {
        self.room.range(offset, data.len())?;
        let _last = self.room.at_rest()?;
        self.room.driver.write_pinned(self.room.handle, offset, data);
        Ok(())
    }

    /// Reads bytes from an offset on.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), CudaError> {
        self.room.range(offset, data.len())?;
        let _last = self.room.at_rest()?;
        self.room.driver.read_pinned(self.room.handle, offset, data);
        Ok(())
    }

    pub(crate) fn room(&self) -> &Arc<Room> {
        &self.room
    }
}

impl Room {
    pub(crate) fn handle(&self) -> driver::Pinned {
        self.handle
    }

    pub(crate) fn range(&self, offset: usize, bytes: usize) -> Result<Range<usize>, CudaError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(offset..end),
            _ => Err(CudaError::Range {
                offset: offset as u64,
                bytes: bytes as u64,
                size: self.bytes as u64,
            }),
        }
    }

    /// Work that copies it has been given to a stream.
    pub(crate) fn is_copied_by(&self, progress: &Arc<Progress>) {
        let number = progress.given.fetch_add(1, Ordering::AcqRel) + 1;
        *self.last() = Some(Ticket { progress: progress.clone(), number });
    }

    /// Keeps work that copies it from being noted meanwhile.
    fn at_rest(&self) -> Result<MutexGuard<'_, Option<Ticket>>, CudaError> {
        let last = self.last();
        let is_done = |last: &Ticket| last.progress.done.load(Ordering::Acquire) >= last.number;
        if last.as_ref().is_none_or(is_done) { Ok(last) } else { Err(CudaError::Busy) }
    }

    fn last(&self) -> MutexGuard<'_, Option<Ticket>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    /// Works so far.
    pub(crate) fn given(&self) -> u64 {
        self.given.load(Ordering::Acquire)
    }

    /// So many were waited for.
    pub(crate) fn is_done(&self, number: u64) {
        self.done.fetch_max(number, Ordering::AcqRel);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = self.driver.unpin(self.handle);
    }
}
