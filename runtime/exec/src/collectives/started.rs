//! Collectives that run beside what a rank computes.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};

use super::{
    Cause, CollectiveError, Group,
    group::{Core, Ticket, Turn},
    local::message_of,
    watch::lock,
};

/// A collective that was started.
#[derive(Debug)]
#[must_use = "a failure shows only where the result is waited for"]
pub struct Handle<R> {
    slot: Arc<Slot<R>>,
    core: Arc<Core>,
}

#[derive(Debug)]
struct Slot<R> {
    result: Mutex<Option<Result<R, CollectiveError>>>,
    filled: Condvar,
}

type Job<'env> = Box<dyn FnOnce() + Send + 'env>;

/// A thread that does what it is sent, once there is something.
#[derive(Default)]
pub(super) struct Worker(Mutex<Option<mpsc::Sender<Job<'static>>>>);

/// Where collectives on borrowed buffers are started.
pub struct Overlap<'a, 'env> {
    group: &'a Group,
    /// `None` where there is no thread, so that all is done at once.
    jobs: Mutex<Option<mpsc::Sender<Job<'env>>>>,
}

impl Group {
    /// Starts collectives on buffers that they own.
    ///
    /// ```
    /// # use brolly_exec::collectives::{CollectiveError, Options, Reduce, run_threads};
    /// # use ir::DType;
    /// let results = run_threads(2, &Options::default(), |world| {
    ///     let mut grads = vec![1.5f32; 1000];
    ///     let started = world.all().start(move |turn| {
    ///         turn.all_reduce(Reduce::Sum, DType::F32, bytemuck::cast_slice_mut(&mut grads))?;
    ///         Ok(grads)
    ///     });
    ///     // Compute something else here.
    ///     started.wait()
    /// });
    /// for grads in results {
    ///     assert_eq!(grads?, [3.0; 1000]);
    /// }
    /// # Ok::<(), CollectiveError>(())
    /// ```
    pub fn start<R: Send + 'static>(
        &self,
        run: impl FnOnce(&Turn<'_>) -> Result<R, CollectiveError> + Send + 'static,
    ) -> Handle<R> {
        // Held until the job is in the queue, so that jobs lie there in the order of their tickets.
        let mut worker = lock(&self.0.worker.0);
        if worker.is_none() {
            let (jobs, queue) = mpsc::channel::<Job<'static>>();
            let thread = thread::Builder::new().name("collectives".into());
            let is_started = thread.spawn(move || queue.into_iter().for_each(|job| job())).is_ok();
            *worker = is_started.then_some(jobs);
        }
        let (job, handle) = self.job(run);
        hand_over(job, worker);
        handle
    }

    /// Starts collectives on buffers that they borrow, and returns after they have ended.
    ///
    /// ```
    /// # use brolly_exec::collectives::{CollectiveError, Options, Shards, run_threads};
    /// # use ir::DType;
    /// let results = run_threads(2, &Options::default(), |world| {
    ///     let group = world.all();
    ///     let mut weights = vec![0u8; 6];
    ///     group.overlap(|overlap| {
    ///         let (rank, weights) = (world.rank(), &mut weights);
    ///         let own = [[1; 3], [2; 3]][rank];
    ///         let gathered = overlap.start(move |turn| {
    ///             turn.all_gather(DType::U8, &Shards::even(6, 2), &own, weights)?;
    ///             Ok(weights)
    ///         });
    ///         // Compute something else here.
    ///         assert_eq!(gathered.wait()?, &[1, 1, 1, 2, 2, 2]);
    ///         Ok::<(), CollectiveError>(())
    ///     })
    /// });
    /// # results.into_iter().collect::<Result<(), _>>()?;
    /// # Ok::<(), CollectiveError>(())
    /// ```
    pub fn overlap<'env, R>(&'env self, body: impl FnOnce(&Overlap<'_, 'env>) -> R) -> R {
        thread::scope(|scope| {
            let (jobs, queue) = mpsc::channel::<Job<'env>>();
            let thread = thread::Builder::new().name("collectives".into());
            let run = move || queue.into_iter().for_each(|job| job());
            let is_started = thread.spawn_scoped(scope, run).is_ok();
            body(&Overlap { group: self, jobs: Mutex::new(is_started.then_some(jobs)) })
        })
    }

    fn job<'env, R: Send + 'env>(
        &self,
        run: impl FnOnce(&Turn<'_>) -> Result<R, CollectiveError> + Send + 'env,
    ) -> (Job<'env>, Handle<R>) {
        let slot = Arc::new(Slot { result: Mutex::new(None), filled: Condvar::new() });
        let (core, ticket) = (self.0.clone(), self.0.ticket());
        let handle = Handle { slot: slot.clone(), core: core.clone() };
        let job = move || {
            let result = core.attend(ticket, run);
            *lock(&slot.result) = Some(result);
            slot.filled.notify_all();
        };
        (Box::new(job), handle)
    }
}

impl<'env> Overlap<'_, 'env> {
    /// Starts collectives; those that use what these borrow get it from [`Handle::wait`].
    pub fn start<R: Send + 'env>(
        &self,
        run: impl FnOnce(&Turn<'_>) -> Result<R, CollectiveError> + Send + 'env,
    ) -> Handle<R> {
        let jobs = lock(&self.jobs);
        let (job, handle) = self.group.job(run);
        hand_over(job, jobs);
        handle
    }
}

impl<R> Handle<R> {
    /// Waits for the result.
    ///
    /// # Errors
    /// What the collective says; [`CollectiveError::Failed`] if the job has failed;
    /// [`CollectiveError::Usage`] on a thread that has the group's turn.
    pub fn wait(self) -> Result<R, CollectiveError> {
        self.core.check_reentry("wait")?;
        let mut result = lock(&self.slot.result);
        loop {
            if let Some(result) = result.take() {
                return result;
            }
            result = self.slot.filled.wait(result).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether [`wait`](Self::wait) returns at once.
    pub fn is_done(&self) -> bool {
        lock(&self.slot.result).is_some()
    }
}

impl Core {
    /// Does something when it is its turn; a panic fails the job.
    fn attend<R>(
        &self,
        ticket: Ticket,
        run: impl FnOnce(&Turn<'_>) -> Result<R, CollectiveError>,
    ) -> Result<R, CollectiveError> {
        let turn = self.turn(ticket)?;
        catch_unwind(AssertUnwindSafe(|| run(&turn))).unwrap_or_else(|payload| {
            let transport = &self.shared.transport;
            let cause = Cause::Panicked(message_of(&*payload));
            let failure = transport.fail(transport.blame(self.shared.rank(), cause));
            Err(self.shared.surface(&failure))
        })
    }
}

/// Puts a job into the queue, or does it where there is none.
fn hand_over<'env>(job: Job<'env>, jobs: MutexGuard<'_, Option<mpsc::Sender<Job<'env>>>>) {
    let left = match &*jobs {
        Some(jobs) => jobs.send(job).err().map(|mpsc::SendError(job)| job),
        None => Some(job),
    };
    drop(jobs);
    if let Some(job) = left {
        job();
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Worker").field(&lock(&self.0).is_some()).finish()
    }
}

impl fmt::Debug for Overlap<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlap").field("group", self.group).finish_non_exhaustive()
    }
}
