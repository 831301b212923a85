//! A thread pool for short parallel regions.
//!
//! All threads of the pool, the caller among them, run one closure and meet at barriers within it.
//! They share out work through [`TileQueue`]s. Waiting threads spin, because the next launch is
//! usually near, and then sleep, so that an idle pool costs nothing.
//!
//! No nesting.

#![allow(unsafe_code, reason = "a region's closure borrows from the caller's stack")]

use std::{
    any::Any,
    cell::Cell,
    io,
    num::NonZeroUsize,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicI64, AtomicPtr, AtomicU32, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a thread spins before it sleeps: some times what the kernels between two large ones
/// take, and short where others compete for the cores and the thread that is waited for may have
/// lost its own.
const SPIN: Duration = Duration::from_micros(25);

/// Threads that the process may use: its affinity mask, and the quota of its control group.
pub fn available_threads() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// A fixed set of threads.
///
/// ```
/// # use brolly_exec::{Pool, TileQueue};
/// # use std::{num::NonZeroUsize, sync::atomic::{AtomicI64, Ordering}};
/// let pool = Pool::new(NonZeroUsize::new(3).unwrap())?;
/// let (queue, sum) = (TileQueue::default(), AtomicI64::new(0));
/// pool.run(|worker| {
///     while let Some(tiles) = queue.take(100, worker.threads()) {
///         sum.fetch_add(tiles.sum(), Ordering::Relaxed);
///     }
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

/// The tiles of a launch that no thread has taken yet.
///
/// Threads take ranges in order, long ones first and then ever shorter ones, so that they finish
/// together even where one of them is slower: on shared machines cores differ from moment to moment
/// by half. Guided self-scheduling, Polychronopoulos & Kuck 1987, doi:10.1109/TC.1987.5009495.
#[derive(Debug, Default)]
pub struct TileQueue(AtomicI64);

impl TileQueue {
    /// The next range of `0..tiles`, if any is left.
    pub fn take(&self, tiles: i64, threads: usize) -> Option<Range<i64>> {
        let threads = i64::try_from(threads).unwrap_or(i64::MAX).max(1);
        let least = (tiles / threads / LEAST_PART).max(1);
        let take = |first: i64| {
            let left = tiles - first;
            let part = if threads == 1 { left } else { left / threads / 4 * 3 };
            (left > 0).then(|| first + part.max(least).min(left))
        };
        // Whoever waits at the next barrier sees what the tiles have written.
        let first = self.0.fetch_update(Relaxed, Relaxed, take).ok()?;
        Some(first..take(first)?)
    }

    /// Makes all tiles available again, which only a thread that is alone with the queue may do.
    pub fn refill(&self) {
        self.0.store(0, Relaxed);
    }
}

/// A range is never shorter than this part of a thread's even share.
const LEAST_PART: i64 = 64;

/// A counter that threads wait on.
#[derive(Debug)]
struct Event {
    count: AtomicU32,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Event {
    fn new() -> Event {
        Event {
            count: AtomicU32::new(0),
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
        let mut start = None;
        while start.get_or_insert_with(Instant::now).elapsed() < SPIN {
            for _ in 0..64 {
                let value = self.value();
                if value != seen {
                    return Some(value);
                }
                std::hint::spin_loop();
            }
        }
        None
    }
}

/// Nothing that these mutexes guard can be left half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> Pool {
        Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap()
    }

    #[test]
    fn every_tile_is_taken_once() {
        for threads in [1, 2, 3, 7] {
            let (pool, queue) = (pool(threads), TileQueue::default());
            for tiles in [0, 1, 5, 64, 100_003, i64::MAX] {
                let taken = Mutex::new(Vec::new());
                queue.refill();
                pool.run(|w| {
                    while let Some(range) = queue.take(tiles, w.threads()) {
                        assert!(!range.is_empty());
                        taken.lock().unwrap().push(range);
                    }
                });
                let mut taken = taken.into_inner().unwrap();
                taken.sort_by_key(|range| range.start);
                let end = taken.iter().fold(0, |end, range| {
                    assert_eq!(range.start, end);
                    range.end
                });
                assert_eq!(end, tiles);
                assert!(taken.len() < 1000, "{} ranges", taken.len());
            }
        }
    }

    #[test]
    fn a_slow_thread_takes_less() {
        let (pool, queue) = (pool(2), TileQueue::default());
        let taken = [0, 1].map(|_| AtomicI64::new(0));
        pool.run(|w| {
            while let Some(range) = queue.take(1000, w.threads()) {
                let tiles = range.end - range.start;
                taken[w.index()].fetch_add(tiles, SeqCst);
                let tile_us = if w.index() == 0 { 20 } else { 60 };
                thread::sleep(Duration::from_micros(tile_us * tiles.unsigned_abs()));
            }
        });
        let [fast, slow] = taken.map(AtomicI64::into_inner);
        assert_eq!(fast + slow, 1000);
        assert!(slow < 450, "the slow thread took {slow}");
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
