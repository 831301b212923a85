//! The launches of a program with every pointer resolved, and the loop that walks them.

#![allow(unsafe_code, reason = "calls generated code")]

use std::{
    ops::Range,
    ptr,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{
    code::KernelFn,
    pool::{Pool, TileQueue, Worker},
};

/// Launches in order.
#[derive(Debug, Default)]
pub(crate) struct LaunchList {
    kernels: Vec<Kernel>,
    launches: Vec<Launch>,
    args: Vec<*mut u8>,
    dims: Vec<i64>,
}

#[derive(Debug)]
struct Kernel {
    entry: KernelFn,
    first_dim: usize,
    tiles: i64,
    /// So little work that one thread does it all.
    is_small: bool,
}

#[derive(Debug)]
struct Launch {
    kernel: usize,
    first_arg: usize,
    queue: TileQueue,
}

/// Scratch memory of all threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scratch {
    /// That of thread 0, aligned to 64 bytes.
    pub(crate) base: *mut u8,
    /// From one thread's to the next one's.
    pub(crate) stride: usize,
}

// SAFETY: the pointers are plain values here; what they point to is used by `run` alone, whose
// caller vouches for it.
unsafe impl Send for LaunchList {}
// SAFETY: as above.
unsafe impl Sync for LaunchList {}
// SAFETY: every thread uses its own part.
unsafe impl Sync for Scratch {}

impl Scratch {
    /// That of one thread.
    fn of(&self, thread: usize) -> *mut u8 {
        self.base.wrapping_add(thread * self.stride)
    }
}

impl LaunchList {
    /// Adds a kernel with so many sizes; returns its number.
    pub(crate) fn add_kernel(&mut self, entry: KernelFn, dims: usize) -> usize {
        self.kernels.push(Kernel { entry, first_dim: self.dims.len(), tiles: 0, is_small: false });
        self.dims.resize(self.dims.len() + dims, 0);
        self.kernels.len() - 1
    }

    /// Adds a launch of a kernel with so many arguments; returns the number of the first one.
    pub(crate) fn add_launch(&mut self, kernel: usize, args: usize) -> usize {
        let first_arg = self.args.len();
        self.launches.push(Launch { kernel, first_arg, queue: TileQueue::default() });
        self.args.resize(first_arg + args, ptr::null_mut());
        first_arg
    }

    /// Sizes that the kernels read, all in a row in the order of [`add_kernel`](Self::add_kernel).
    pub(crate) fn dims_mut(&mut self) -> &mut [i64] {
        &mut self.dims
    }

    /// Sets a kernel's number of tiles, and whether one thread computes them all.
    pub(crate) fn set_work(&mut self, kernel: usize, tiles: i64, is_small: bool) {
        self.kernels[kernel].tiles = tiles;
        self.kernels[kernel].is_small = is_small;
    }

    pub(crate) fn set_arg(&mut self, index: usize, pointer: *mut u8) {
        self.args[index] = pointer;
    }

    /// Runs these launches on all threads of the pool; `times` receives how long each one took.
    ///
    /// # Safety
    /// The kernels have the signature of [`KernelFn`]; for its sizes each one reads and writes only
    /// memory that its arguments and `scratch.stride` bytes of scratch memory of its thread cover,
    /// all of it alive and used by nobody else meanwhile; and tiles of one launch are independent.
    pub(crate) unsafe fn run(
        &self,
        pool: &Pool,
        scratch: Scratch,
        launches: Range<usize>,
        times: Option<&mut Vec<Duration>>,
    ) {
        let times = times.map(Mutex::new);
        let launches = &self.launches[launches];
        launches.iter().for_each(|launch| launch.queue.refill());
        let walk = |worker: Option<&Worker<'_>>| {
            let (index, threads) = worker.map_or((0, 1), |w| (w.index(), w.threads()));
            let mut times = times.as_ref().filter(|_| index == 0).and_then(|t| t.lock().ok());
            let mut start = times.as_ref().map(|_| Instant::now());
            // A launch ends when the next one may begin.
            let mut lap = || {
                if let Some((times, start)) = times.as_mut().zip(start.as_mut()) {
                    let end = Instant::now();
                    times.push(end - *start);
                    *start = end;
                }
            };
            let scratch = scratch.of(index);
            // Small launches in a row are one thread's, in order.
            let mut is_after_small = true;
            for (i, launch) in launches.iter().enumerate() {
                let kernel = &self.kernels[launch.kernel];
                if let Some(worker) = worker.filter(|_| threads > 1)
                    && i > 0
                    && !(is_after_small && kernel.is_small)
                {
                    worker.barrier();
                }
                if i > 0 {
                    lap();
                }
                is_after_small = kernel.is_small;
                let args = self.args[launch.first_arg..].as_ptr();
                let dims = self.dims[kernel.first_dim..].as_ptr();
                let compute = |tiles: Range<i64>| {
                    // SAFETY: the caller's promise; `args` and `dims` begin at this launch's.
                    unsafe { (kernel.entry)(args, dims, scratch, tiles.start, tiles.end) };
                };
                if !kernel.is_small {
                    while let Some(tiles) = launch.queue.take(kernel.tiles, threads) {
                        compute(tiles);
                    }
                } else if index == 0 && kernel.tiles > 0 {
                    compute(0..kernel.tiles);
                }
            }
            lap();
        };
        if launches.iter().all(|launch| self.kernels[launch.kernel].is_small) {
            walk(None);
        } else {
            pool.run(|worker| walk(Some(worker)));
        }
    }
}
