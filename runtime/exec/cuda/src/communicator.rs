//! Ranks on devices of their own, which move bytes between these.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Address, CudaError, Device, Stream,
    driver::{Driver, StreamHandle},
    nccl::{CommHandle, Nccl, NcclAnswer, Sum, UniqueId},
};

/// How often is looked whether what is under way has ended.
const GLANCE: Duration = Duration::from_micros(20);
/// How long other ranks may take to end before a communicator is ended without them.
const PATIENCE: Duration = Duration::from_secs(5);

/// A rank's view of the ranks that it meets. Work goes to a stream, and is done when that comes to
/// it and all ranks do.
#[derive(Debug)]
pub struct Communicator {
    nccl: Arc<dyn Nccl>,
    driver: Arc<dyn Driver>,
    ranks: usize,
    rank: usize,
    /// `None` after it was aborted.
    handle: Mutex<Option<CommHandle>>,
}

/// A message to or from another rank.
#[derive(Clone, Debug)]
pub struct Message {
    /// The other rank.
    pub peer: usize,
    /// Where it lies, or is to lie.
    pub place: Address,
    /// How long it is; nothing is sent of one without any.
    pub bytes: u64,
}

impl Communicator {
    /// Meets the other ranks that have the same id; `gives_up` is asked while they are waited for.
    ///
    /// # Errors
    /// [`CudaError::NoNccl`], [`CudaError::OldNccl`], [`CudaError::Nccl`]; [`CudaError::Aborted`]
    /// if it was given up.
    pub fn new(
        device: &Device,
        ranks: usize,
        id: &UniqueId,
        rank: usize,
        gives_up: &dyn Fn() -> bool,
    ) -> Result<Communicator, CudaError> {
        let (nccl, driver) = (device.nccl()?, device.driver().clone());
        driver.enter()?;
        let handle = Mutex::new(Some(nccl.init_rank(ranks, id, rank)?));
        let communicator = Communicator { nccl, driver, ranks, rank, handle };
        communicator.settle(&|| {
            if gives_up() {
                communicator.abort();
            }
        })?;
        Ok(communicator)
    }

    /// How many ranks there are.
    #[must_use]
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// This one.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Sends and receives, all at once.
    ///
    /// # Errors
    /// [`CudaError::Range`], [`CudaError::Nccl`], [`CudaError::Aborted`].
    pub fn exchange(
        &self,
        stream: &Stream,
        sends: &[Message],
        receives: &[Message],
    ) -> Result<(), CudaError> {
        let place = |message: &Message| {
            let bytes = usize::try_from(message.bytes).unwrap_or(usize::MAX);
            Ok::<_, CudaError>((message.place.range(message.bytes)?, bytes, message.peer))
        };
        let list = |messages: &[Message]| {
            let some = messages.iter().filter(|message| message.bytes > 0);
            some.map(place).collect::<Result<Vec<_>, _>>()
        };
        let places: Vec<&Address> = sends.iter().chain(receives).map(|m| &m.place).collect();
        let (sends, receives) = (list(sends)?, list(receives)?);
        if sends.is_empty() && receives.is_empty() {
            return Ok(());
        }
        self.work(stream, &places, |nccl, comm, stream| {
            for (from, bytes, peer) in sends {
                nccl.send(comm, from, bytes, peer, stream)?;
            }
            for (to, bytes, peer) in receives {
                nccl.recv(comm, to, bytes, peer, stream)?;
            }
            Ok(())
        })
    }

    /// Puts `bytes` of every rank one behind the other; this rank's may lie there already.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    pub fn all_gather(
        &self,
        stream: &Stream,
        from: &Address,
        to: &Address,
        bytes: u64,
    ) -> Result<(), CudaError> {
        let (source, target) = (from.range(bytes)?, to.range(bytes * self.ranks as u64)?);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.work(stream, &[from, to], |nccl, comm, stream| {
            nccl.all_gather(comm, source, target, bytes, stream)
        })
    }

    /// The sum of all ranks' elements, in whatever order NCCL adds.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    pub fn all_reduce(
        &self,
        stream: &Stream,
        from: &Address,
        to: &Address,
        sum: Sum,
    ) -> Result<(), CudaError> {
        let bytes = (sum.elements * sum.dtype.size()) as u64;
        let (source, target) = (from.range(bytes)?, to.range(bytes)?);
        self.work(stream, &[from, to], |nccl, comm, stream| {
            nccl.all_reduce(comm, source, target, sum, stream)
        })
    }

    /// This rank's part of that sum; `sum` is of a part.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    pub fn reduce_scatter(
        &self,
        stream: &Stream,
        from: &Address,
        to: &Address,
        sum: Sum,
    ) -> Result<(), CudaError> {
        let bytes = (sum.elements * sum.dtype.size()) as u64;
        let (source, target) = (from.range(bytes * self.ranks as u64)?, to.range(bytes)?);
        let add =
            |nccl: &dyn Nccl, comm, stream| nccl.reduce_scatter(comm, source, target, sum, stream);
        self.work(stream, &[from, to], add)
    }

    /// Whether it works, and the other ranks are heard of.
    ///
    /// # Errors
    /// [`CudaError::Nccl`] with what went wrong since; [`CudaError::Aborted`].
    pub fn check(&self) -> Result<(), CudaError> {
        let handle = self.handle();
        Ok(self.nccl.is_ready(handle.ok_or(CudaError::Aborted)?).map(|_| ())?)
    }

    /// Ends all that is under way, so that the streams go on; nothing more can be done with it.
    pub fn abort(&self) {
        if let Some(handle) = self.handle().take() {
            let _ = self.driver.enter();
            let _ = self.nccl.abort(handle);
        }
    }

    fn handle(&self) -> MutexGuard<'_, Option<CommHandle>> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the stream something to do that uses these places.
    fn work(
        &self,
        stream: &Stream,
        places: &[&Address],
        calls: impl FnOnce(&dyn Nccl, CommHandle, StreamHandle) -> NcclAnswer,
    ) -> Result<(), CudaError> {
        let worked = self.call(stream, calls);
        // Not before the stream has it, for whoever waits for that lets go what it keeps.
        places.iter().for_each(|place| stream.keep_memory(place));
        worked
    }

    fn call(
        &self,
        stream: &Stream,
        calls: impl FnOnce(&dyn Nccl, CommHandle, StreamHandle) -> NcclAnswer,
    ) -> Result<(), CudaError> {
        let handle = self.handle();
        let comm = handle.ok_or(CudaError::Aborted)?;
        self.driver.enter()?;
        self.nccl.group_start()?;
        let called = calls(&*self.nccl, comm, stream.handle());
        let ended = self.nccl.group_end();
        drop(handle);
        called.and(ended)?;
        self.settle(&|| ())
    }

    /// Waits until nothing is under way on the host.
    fn settle(&self, meanwhile: &dyn Fn()) -> Result<(), CudaError> {
        loop {
            let handle = self.handle();
            if self.nccl.is_ready(handle.ok_or(CudaError::Aborted)?)? {
                return Ok(());
            }
            drop(handle);
            meanwhile();
            thread::sleep(GLANCE);
        }
    }

    /// Ends it together with the other ranks.
    fn finish(&self, comm: CommHandle) -> NcclAnswer {
        self.nccl.finalize(comm)?;
        let begun = Instant::now();
        while !self.nccl.is_ready(comm)? {
            if begun.elapsed() > PATIENCE {
                return self.nccl.abort(comm);
            }
            thread::sleep(GLANCE);
        }
        self.nccl.destroy(comm)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let Some(comm) = self.handle().take() else { return };
        let _ = self.driver.enter();
        if self.finish(comm).is_err() {
            let _ = self.nccl.abort(comm);
        }
    }
}
