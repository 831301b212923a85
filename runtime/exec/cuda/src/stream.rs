//! Streams and events.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    Address, CudaError, Device, Graph, Kernel, Launch, Memory, Multiplier, Pinned,
    cublaslt::{Matmul, Places},
    driver::{Driver, EventHandle, StreamHandle},
    multiplier,
    pinned::{Progress, Room},
};

/// Work in order. What it uses is kept until a wait has seen its end.
#[derive(Debug)]
pub struct Stream {
    driver: Arc<dyn Driver>,
    handle: StreamHandle,
    pending: Mutex<Vec<Keep>>,
    progress: Arc<Progress>,
}

/// What work uses.
#[derive(Clone, Debug)]
pub(crate) enum Keep {
    Memory(Memory),
    Kernel(Kernel),
    Multiplier(Multiplier),
    Graph(Graph),
    Pinned(Arc<Room>),
}

impl Stream {
    /// A stream of its own.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(device: &Device) -> Result<Stream, CudaError> {
        let driver = device.driver().clone();
        let handle = driver.create_stream()?;
        Ok(Stream { driver, handle, pending: Mutex::default(), progress: Arc::default() })
    }

    /// Launches a kernel on operands and results at these addresses.
    ///
    /// # Errors
    /// [`CudaError::Invalid`] for a launch that cannot be; [`CudaError::Launch`] with what the
    /// driver says. What goes wrong while the kernel runs, [`Stream::synchronize`] says.
    pub fn launch(
        &self,
        kernel: &Kernel,
        launch: &Launch,
        args: &[Address],
    ) -> Result<(), CudaError> {
        let shape = kernel.prepare(launch)?;
        let values = launch.pack(&*self.driver, args)?;
        debug_assert!(kernel.takes(&values), "sizes were compared");
        let uses = args.iter().map(memory).chain([Keep::Kernel(kernel.clone())]);
        let launched =
            self.give(uses, || self.driver.launch(kernel.function(), shape, &values, self.handle));
        launched.map_err(|source| CudaError::Launch { kernel: launch.symbol.clone(), source })
    }

    /// Lets cuBLASLt compute a product of what lies at these places.
    ///
    /// # Errors
    /// [`CudaError::Range`]; [`CudaError::Invalid`] for places of another product;
    /// [`CudaError::NoAlgorithm`]; [`CudaError::CublasLt`] with what the library says. What goes
    /// wrong while its kernel runs, [`Stream::synchronize`] says.
    pub fn multiply(
        &self,
        by: &Multiplier,
        matmul: &Matmul,
        places: &Places<Address>,
    ) -> Result<(), CudaError> {
        let addresses = multiplier::addresses(matmul, places)?;
        let mut uses = vec![Keep::Multiplier(by.clone())];
        let _ = places.map(|place| uses.push(memory(place)));
        self.give(uses, || by.multiply(matmul, &addresses, self.handle))
    }

    /// Copies within the device.
    ///
    /// # Errors
    /// [`CudaError::Range`]; what the driver says.
    pub fn copy(&self, to: &Address, from: &Address, bytes: u64) -> Result<(), CudaError> {
        let (target, source) = (to.range(bytes)?, from.range(bytes)?);
        let copy = || self.driver.copy(target, source, bytes, self.handle);
        Ok(self.give([to, from].map(memory), copy)?)
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// [`CudaError::Range`]; what the driver says.
    pub fn fill(&self, to: &Address, byte: u8, bytes: u64) -> Result<(), CudaError> {
        let target = to.range(bytes)?;
        Ok(self.give([memory(to)], || self.driver.fill(target, byte, bytes, self.handle))?)
    }

    /// Copies bytes of pinned memory to the device, as they are when the stream comes to it.
    ///
    /// # Errors
    /// [`CudaError::Range`]; what the driver says.
    pub fn upload(
        &self,
        to: &Address,
        (from, offset): (&Pinned, usize),
        bytes: usize,
    ) -> Result<(), CudaError> {
        let (target, room) = (to.range(bytes as u64)?, from.room());
        room.range(offset, bytes)?;
        let upload = || {
            room.is_copied_by(&self.progress);
            self.driver.upload(target, room.handle(), offset, bytes, self.handle)
        };
        Ok(self.give([memory(to), Keep::Pinned(room.clone())], upload)?)
    }

    /// Copies bytes of the device to pinned memory, where they are once this was waited for.
    ///
    /// # Errors
    /// [`CudaError::Range`]; what the driver says.
    pub fn download(
        &self,
        (to, offset): (&Pinned, usize),
        from: &Address,
        bytes: usize,
    ) -> Result<(), CudaError> {
        let (source, room) = (from.range(bytes as u64)?, to.room());
        room.range(offset, bytes)?;
        let download = || {
            room.is_copied_by(&self.progress);
            self.driver.download(room.handle(), offset, source, bytes, self.handle)
        };
        Ok(self.give([memory(from), Keep::Pinned(room.clone())], download)?)
    }

    /// Starts a graph's launches.
    ///
    /// # Errors
    /// What the driver says.
    pub fn launch_graph(&self, graph: &Graph) -> Result<(), CudaError> {
        self.launch_graph_with(graph, &[])
    }

    /// Starts the launches of a graph that was captured with these places.
    ///
    /// # Errors
    /// [`CudaError::Invalid`] if it was captured with others; what the driver says.
    pub fn launch_graph_with(&self, graph: &Graph, given: &[Address]) -> Result<(), CudaError> {
        if !graph.takes(given) {
            return Err(CudaError::Invalid {
                kernel: graph.symbols().join("`, `"),
                reason: "their graph was recorded with other memory".into(),
            });
        }
        let uses = given.iter().map(memory).chain([Keep::Graph(graph.clone())]);
        let start = || {
            graph.pinned().for_each(|room| room.is_copied_by(&self.progress));
            self.driver.launch_graph(graph.handle(), self.handle)
        };
        Ok(self.give(uses, start)?)
    }

    /// Lets what is launched from here on wait for an event.
    ///
    /// # Errors
    /// What the driver says.
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        Ok(self.driver.wait(self.handle, event.handle)?)
    }

    /// Waits for all work that it has been given so far.
    ///
    /// # Errors
    /// [`CudaError::Lost`], with the kernels that were running, if the device failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // What other threads give it from here on may not have been waited for.
        let mut pending = self.pending();
        let (given, mut kept) = (self.progress.given(), std::mem::take(&mut *pending));
        drop(pending);
        let done = self.driver.synchronize(self.handle);
        if let Err(source) = &done
            && !source.is_fatal()
        {
            let mut pending = self.pending();
            kept.append(&mut pending);
            *pending = kept;
            return Err(source.clone().into());
        }
        self.progress.is_done(given);
        done.map_err(|source| {
            let symbols = kept.iter().flat_map(Keep::symbols).collect::<BTreeSet<_>>();
            let kernels = symbols.into_iter().collect::<Vec<_>>().join("`, `");
            CudaError::Lost { kernels, source }
        })
    }

    /// Makes a graph of what `work` does with the stream, instead of doing it.
    ///
    /// # Errors
    /// Those of `work`; what the driver says.
    pub fn capture(
        &self,
        work: impl FnOnce(&Stream) -> Result<(), CudaError>,
    ) -> Result<Graph, CudaError> {
        self.capture_with(&[], work)
    }

    /// As [`Stream::capture`]; the graph does not keep the memory that `given` is in, which whoever
    /// starts it has to give again.
    ///
    /// # Errors
    /// As [`Stream::capture`].
    pub fn capture_with(
        &self,
        given: &[Address],
        work: impl FnOnce(&Stream) -> Result<(), CudaError>,
    ) -> Result<Graph, CudaError> {
        let before = std::mem::take(&mut *self.pending());
        let begun = self.driver.begin_capture(self.handle);
        let recorded = begun.map(|()| (work(self), self.driver.end_capture(self.handle)));
        let kept = std::mem::replace(&mut *self.pending(), before);
        let (done, handle) = recorded?;
        done?;
        Ok(Graph::new(self.driver.clone(), handle?, kept, given))
    }

    pub(crate) fn handle(&self) -> StreamHandle {
        self.handle
    }

    /// As [`give`](Self::give), for work that uses memory alone.
    pub(crate) fn give_with<T>(&self, places: &[&Address], work: impl FnOnce() -> T) -> T {
        self.give(places.iter().map(|place| memory(place)), work)
    }

    /// Keeps the memory of work that it was given, which the caller has kept until now.
    pub(crate) fn keep_memory(&self, address: &Address) {
        self.pending().push(memory(address));
    }

    /// Gives the driver work that uses this.
    fn give<T>(&self, uses: impl IntoIterator<Item = Keep>, work: impl FnOnce() -> T) -> T {
        // Until the driver has it, nobody who waits may take what it uses for used.
        let mut pending = self.pending();
        pending.extend(uses);
        work()
    }

    fn pending(&self) -> MutexGuard<'_, Vec<Keep>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory that a place is in.
fn memory(address: &Address) -> Keep {
    Keep::Memory(address.memory().clone())
}

impl Keep {
    /// Names of kernels.
    pub(crate) fn symbols(&self) -> Vec<String> {
        match self {
            Keep::Memory(_) | Keep::Pinned(_) => Vec::new(),
            Keep::Kernel(kernel) => vec![kernel.symbol().to_owned()],
            Keep::Multiplier(by) => vec![by.symbol().to_owned()],
            Keep::Graph(graph) => graph.symbols(),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // What is pending may be freed only after the work.
        let _ = self.synchronize();
        let _ = self.driver.destroy_stream(self.handle);
    }
}

/// A point in a stream's work.
#[derive(Debug)]
pub struct Event {
    driver: Arc<dyn Driver>,
    handle: EventHandle,
}

impl Event {
    /// An event that has not been recorded, which nobody waits for.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(device: &Device) -> Result<Event, CudaError> {
        let driver = device.driver().clone();
        let handle = driver.create_event()?;
        Ok(Event { driver, handle })
    }

    /// Becomes the point that the stream's work has come to.
    ///
    /// # Errors
    /// What the driver says.
    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        Ok(self.driver.record(self.handle, stream.handle())?)
    }

    /// Waits for it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        Ok(self.driver.synchronize_event(self.handle)?)
    }

    /// Milliseconds from an event to this one; both must have been waited for.
    ///
    /// # Errors
    /// What the driver says.
    pub fn ms_since(&self, from: &Event) -> Result<f64, CudaError> {
        Ok(self.driver.elapsed_ms(from.handle, self.handle)?.into())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.driver.destroy_event(self.handle);
    }
}
