//! A thread pool for short parallel regions.
//!
//! All threads of the pool, the caller among them, run one closure and meet at barriers within it.
//! Work is split statically, by thread number. Waiting threads spin, because the next launch is
//! usually near, and then sleep, so that an idle pool costs nothing. How long they spin adapts:
//! where others compete for the cores, a spinning thread keeps the one that it waits for from
//! running.
//!
//! No work stealing, no queues, no nesting.

#![allow(unsafe_code, reason = "a region's closure borrows from the caller's stack")]

use std::{
    any::Any,
    cell::Cell,
    io,
    num::NonZeroUsize,
    ops::{Range, RangeInclusive},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a thread spins before it sleeps, in nanoseconds: at most, and at least.
const SPIN_NS: RangeInclusive<u64> = 2_000..=100_000;

/// Threads that the process may use: its affinity mask, and the quota of its control group.
pub fn available_threads() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// A fixed set of threads.
///
/// ```
/// # use brolly_exec::Pool;
/// # use std::{num::NonZeroUsize, sync::atomic::{AtomicI64, Ordering}};
/// let pool = Pool::new(NonZeroUsize::new(3).unwrap())?;
/// let sum = AtomicI64::new(0);
/// pool.run(|worker| {
///     sum.fetch_add(worker.share(100).sum(), Ordering::Relaxed);
///     worker.barrier();
///     assert_eq!(sum.load(Ordering::Relaxed), 4950);
/// });
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    /// One region at a time.
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

/// A thread in a region.
#[derive(Debug)]
pub struct Worker<'a> {
    index: usize,
    shared: &'a Shared,
}

#[derive(Debug)]
struct Shared {
    threads: usize,
    /// The region that runs now; null tells the workers to end.
    region: AtomicPtr<Region<'static>>,
    started: Event,
    /// Workers that have not left the region yet.
    inside: AtomicUsize,
    left: Event,
    arrived: AtomicUsize,
    passed: Event,
    aborted: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

struct Region<'a>(&'a (dyn Fn(&Worker<'_>) + Sync));

/// The payload by which threads leave a region in which another one has panicked.
struct Aborted;

thread_local! {
    static IN_REGION: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    /// Starts `threads - 1` threads; the caller of a region is the remaining one.
    ///
    /// # Errors
    /// What the operating system says if it starts no more threads.
    pub fn new(threads: NonZeroUsize) -> io::Result<Pool> {
        let threads = threads.get();
        let shared = Arc::new(Shared {
            threads,
            region: AtomicPtr::new(ptr::null_mut()),
            started: Event::new(),
            inside: AtomicUsize::new(0),
            left: Event::new(),
            arrived: AtomicUsize::new(0),
            passed: Event::new(),
            aborted: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Pool { shared, turn: Mutex::new(()), workers: Vec::new() };
        for index in 1..threads {
            let shared = pool.shared.clone();
            let thread = thread::Builder::new().name(format!("exec-{index}"));
            pool.workers.push(thread.spawn(move || shared.work(index))?);
        }
        Ok(pool)
    }

    /// Number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Runs `body` once on every thread and returns when all have finished.
    ///
    /// # Panics
    /// With the payload of a thread that panicked; if called from within a region.
    pub fn run(&self, body: impl Fn(&Worker<'_>) + Sync) {
        assert!(!IN_REGION.get(), "a parallel region inside a parallel region");
        let turn = lock(&self.turn);
        let shared = &*self.shared;
        let region = Region(&body);
        shared.aborted.store(false, SeqCst);
        shared.arrived.store(0, SeqCst);
        let left = shared.left.value();
        if shared.threads > 1 {
            shared.inside.store(shared.threads - 1, SeqCst);
            shared.region.store(ptr::from_ref(&region).cast_mut().cast(), SeqCst);
            shared.started.advance();
        }
        shared.enter(0, &region);
        if shared.threads > 1 {
            shared.left.wait_past(left);
        }
        let panic = lock(&shared.panic).take();
        drop(turn);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.region.store(ptr::null_mut(), SeqCst);
        self.shared.started.advance();
        for worker in self.workers.drain(..) {
            // A worker catches all panics of the regions.
            let _ = worker.join();
        }
    }
}

impl Worker<'_> {
    /// The thread's number, 0 for the caller.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Number of threads in the region.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// This thread's part of `0..tiles`: contiguous, and one longer than others at most.
    pub fn share(&self, tiles: i64) -> Range<i64> {
        let cut = |i: usize| {
            let cut = tiles.max(0) as i128 * i as i128 / self.threads() as i128;
            i64::try_from(cut).unwrap_or(i64::MAX)
        };
        cut(self.index)..cut(self.index + 1)
    }

    /// Waits until all threads are here.
    pub fn barrier(&self) {
        let shared = self.shared;
        // Before the check: an abort after it advances the event past this value.
        let seen = shared.passed.value();
        if shared.aborted.load(SeqCst) {
            resume_unwind(Box::new(Aborted));
        }
        if shared.arrived.fetch_add(1, SeqCst) + 1 == shared.threads {
            shared.arrived.store(0, SeqCst);
            shared.passed.advance();
        } else {
            shared.passed.wait_past(seen);
        }
        if shared.aborted.load(SeqCst) {
            resume_unwind(Box::new(Aborted));
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            seen = self.started.wait_past(seen);
            let region = self.region.load(SeqCst);
            if region.is_null() {
                return;
            }
            // SAFETY: `Pool::run` keeps the region alive until every worker has counted itself out
            // of `inside`, which this one does below; the next region starts only after that.
            let region = unsafe { &*region };
            self.enter(index, region);
            if self.inside.fetch_sub(1, SeqCst) == 1 {
                self.left.advance();
            }
        }
    }

    fn enter(&self, index: usize, region: &Region<'_>) {
        IN_REGION.set(true);
        let body = || (region.0)(&Worker { index, shared: self });
        let result = catch_unwind(AssertUnwindSafe(body));
        IN_REGION.set(false);
        if let Err(payload) = result {
            if !payload.is::<Aborted>() {
                lock(&self.panic).get_or_insert(payload);
            }
            self.aborted.store(true, SeqCst);
            self.passed.advance();
        }
    }
}

/// A counter that threads wait on.
#[derive(Debug)]
struct Event {
    count: AtomicU32,
    /// Less after each spin in vain, more after each that was not.
    spin_ns: AtomicU64,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Event {
    fn new() -> Event {
        Event {
            count: AtomicU32::new(0),
            spin_ns: AtomicU64::new(*SPIN_NS.end()),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            changed: Condvar::new(),
        }
    }

    fn value(&self) -> u32 {
        self.count.load(SeqCst)
    }

    fn advance(&self) {
        self.count.fetch_add(1, SeqCst);
        if self.sleepers.load(SeqCst) > 0 {
            // A sleeper holds the lock between its last look at the count and its sleep.
            drop(lock(&self.lock));
            self.changed.notify_all();
        }
    }

    /// Waits until the count differs from `seen` and returns it.
    fn wait_past(&self, seen: u32) -> u32 {
        if let Some(value) = self.spin_past(seen) {
            return value;
        }
        let mut guard = lock(&self.lock);
        self.sleepers.fetch_add(1, SeqCst);
        while self.value() == seen {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, SeqCst);
        self.value()
    }

    fn spin_past(&self, seen: u32) -> Option<u32> {
        let spin_ns = self.spin_ns.load(Relaxed);
        let spin = Duration::from_nanos(spin_ns);
        let set = |ns: u64| self.spin_ns.store(ns.clamp(*SPIN_NS.start(), *SPIN_NS.end()), Relaxed);
        let mut start = None;
        while start.get_or_insert_with(Instant::now).elapsed() < spin {
            for _ in 0..64 {
                let value = self.value();
                if value != seen {
                    if spin_ns < *SPIN_NS.end() {
                        set(spin_ns + spin_ns / 16);
                    }
                    return Some(value);
                }
                std::hint::spin_loop();
            }
        }
        set(spin_ns / 2);
        None
    }
}

/// Nothing that these mutexes guard can be left half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicI64;

    use super::*;

    fn pool(threads: usize) -> Pool {
        Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap()
    }

    #[test]
    fn shares_cover_every_tile_once_and_evenly() {
        for threads in [1, 2, 3, 7] {
            let pool = pool(threads);
            for tiles in [0, 1, 5, 64, i64::MAX] {
                let shares = Mutex::new(Vec::new());
                pool.run(|w| shares.lock().unwrap().push((w.index(), w.share(tiles))));
                let mut shares = shares.into_inner().unwrap();
                shares.sort_by_key(|(index, _)| *index);
                let mut end = 0;
                for (_, share) in shares {
                    assert_eq!(share.start, end);
                    let size = share.end - share.start;
                    let least = tiles / threads as i64;
                    assert!(size == least || size - 1 == least);
                    end = share.end;
                }
                assert_eq!(end, tiles);
            }
        }
    }

    #[test]
    fn barriers_separate_phases() {
        let pool = pool(4);
        let cells: Vec<AtomicI64> = (0..4).map(|_| AtomicI64::new(0)).collect();
        for _ in 0..50 {
            pool.run(|w| {
                for phase in 0..40 {
                    let before = cells[w.index()].load(SeqCst);
                    w.barrier();
                    cells[w.index()].store(before + 1, SeqCst);
                    w.barrier();
                    let left = cells[(w.index() + 1) % 4].load(SeqCst);
                    assert_eq!(left, before + 1, "phase {phase}");
                }
            });
        }
        assert_eq!(cells[0].load(SeqCst), 2000);
    }

    #[test]
    fn sleeping_threads_wake() {
        let pool = pool(3);
        let count = AtomicUsize::new(0);
        for _ in 0..20 {
            pool.run(|w| {
                if w.index() == 1 {
                    thread::sleep(Duration::from_millis(1));
                }
                w.barrier();
                count.fetch_add(1, SeqCst);
            });
            thread::sleep(Duration::from_micros(300));
        }
        assert_eq!(count.into_inner(), 60);
    }

    #[test]
    fn callers_take_turns() {
        let pool = pool(2);
        let inside = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(|w| {
                            assert!(inside.fetch_add(1, SeqCst) < 2);
                            w.barrier();
                            inside.fetch_sub(1, SeqCst);
                        });
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = pool(3);
        for culprit in [0, 1, 2] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(|w| {
                    w.barrier();
                    assert!(w.index() != culprit, "thread {culprit} fails");
                    w.barrier();
                    unreachable!("nobody passes");
                });
            }));
            let message = result.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(*message, format!("thread {culprit} fails"));
            let count = AtomicUsize::new(0);
            pool.run(|_| {
                count.fetch_add(1, SeqCst);
            });
            assert_eq!(count.into_inner(), 3);
        }
    }

    #[test]
    fn nesting_is_refused() {
        let pool = pool(2);
        let nested = catch_unwind(AssertUnwindSafe(|| pool.run(|_| pool.run(|_| ()))));
        assert!(nested.is_err());
    }
}
