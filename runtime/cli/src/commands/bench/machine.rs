//! What this machine, or its GPU, can do: the speed of memory and of multiplying.
//!
//! Shared machines are as fast as their neighbours let them be, so only ratios within one run mean
//! anything: both are measured between the rounds of a benchmark, by the same number of threads,
//! and the best counts.

#![allow(unsafe_code, reason = "calls functions compiled for features that were found")]

use std::{
    array,
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use exec::{Device, ExecError};
use ir::Target;
use serde::Serialize;

/// Bytes to read, far more than caches hold; less on small machines.
const READ_BYTES: usize = 512 << 20;

/// How long one multiplying loop runs.
const FMA_TIME: Duration = Duration::from_millis(20);

/// Independent accumulators, enough to fill two units of four cycles' latency.
const ACCUMULATORS: usize = 12;

/// Words of a cache line.
const LINE: usize = 8;

/// Bytes that a GPU copies to see how fast its memory is.
const COPY_BYTES: u64 = 512 << 20;

/// The machine's best so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Roofline {
    /// Bytes a second that all threads read from memory together; of a GPU, that a copy within its
    /// memory reads and writes.
    pub(super) read_bandwidth: f64,
    /// Single-precision operations a second of all threads together; of a GPU, what its data sheet
    /// states for bf16.
    pub(super) peak_flops: f64,
}

/// Memory to read, kept between measurements.
#[derive(Debug)]
pub(super) struct Machine {
    device: Device,
    threads: usize,
    memory: Vec<u64>,
    best: Roofline,
}

impl Machine {
    /// Prepares to measure; takes memory of [`READ_BYTES`] or a sixteenth of what there is.
    pub(super) fn new(device: &Device, target: &Target) -> Machine {
        let (device, threads) = (device.clone(), device.pool().threads());
        if device.facts().is_some() {
            let best = Roofline { read_bandwidth: 0.0, peak_flops: target.peak_flops };
            return Machine { device, threads, memory: Vec::new(), best };
        }
        let limit = exec::memory_limit_bytes()
            .map_or(READ_BYTES, |b| usize::try_from(b / 16).unwrap_or(READ_BYTES));
        // Not zero, or the system would give one page many times.
        let memory = vec![1; READ_BYTES.min(limit) / size_of::<u64>()];
        Machine { device, threads, memory, best: Roofline::default() }
    }

    /// Measures once more; returns the best so far.
    ///
    /// # Errors
    /// What a GPU's driver says.
    pub(super) fn measure(&mut self) -> Result<Roofline, ExecError> {
        if let Some(bandwidth) = self.device.copy_bandwidth(COPY_BYTES)? {
            self.best.read_bandwidth = self.best.read_bandwidth.max(bandwidth);
            return Ok(self.best);
        }
        for read in [read::<1>, read::<2>, read::<4>, read::<8>] {
            let share = self.memory.len() / self.threads;
            let seconds = together(self.threads, |thread| {
                black_box(read(&self.memory[thread * share..][..share]));
            });
            let bytes = (self.threads * share * size_of::<u64>()) as f64;
            self.best.read_bandwidth = self.best.read_bandwidth.max(bytes / seconds);
        }
        self.best.peak_flops = self.best.peak_flops.max(peak_flops(self.threads));
        Ok(self.best)
    }
}

/// Runs something on every thread at once; returns the seconds until all have ended.
fn together(threads: usize, work: impl Fn(usize) + Sync) -> f64 {
    let start = Instant::now();
    thread::scope(|scope| {
        for thread in 1..threads {
            let work = &work;
            // Fewer threads measure less, never wrong.
            let _ = thread::Builder::new().spawn_scoped(scope, move || work(thread));
        }
        work(0);
    });
    start.elapsed().as_secs_f64()
}

/// Sums memory in `S` streams at once, a cache line of each in turn.
fn read<const S: usize>(memory: &[u64]) -> u64 {
    let length = memory.len() / S / LINE * LINE;
    let streams: [&[u64]; S] = array::from_fn(|s| &memory[s * length..][..length]);
    let mut sums = [[0u64; LINE]; S];
    for at in (0..length).step_by(LINE) {
        for (sum, stream) in sums.iter_mut().zip(&streams) {
            let line = &stream[at..at + LINE];
            for (sum, word) in sum.iter_mut().zip(line) {
                *sum = sum.wrapping_add(*word);
            }
        }
    }
    sums.iter().flatten().fold(0, |a, b| a.wrapping_add(*b))
}

/// Operations a second of all threads, each in its own registers.
fn peak_flops(threads: usize) -> f64 {
    let (fma, lanes) = fastest();
    let rounds = std::sync::atomic::AtomicU64::new(0);
    let seconds = together(threads, |_| {
        let start = Instant::now();
        while start.elapsed() < FMA_TIME {
            fma(1000);
            rounds.fetch_add(1000, std::sync::atomic::Ordering::Relaxed);
        }
    });
    let rounds = rounds.into_inner() as f64;
    rounds * (ACCUMULATORS * lanes * 2) as f64 / seconds
}

/// The widest loop that this processor runs, and its lanes.
#[cfg(target_arch = "x86_64")]
fn fastest() -> (fn(u64), usize) {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the feature was found.
        return (|rounds| unsafe { x86::fma_512(rounds) }, 16);
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the features were found.
        return (|rounds| unsafe { x86::fma_256(rounds) }, 8);
    }
    (scalar, 1)
}

#[cfg(not(target_arch = "x86_64"))]
fn fastest() -> (fn(u64), usize) {
    (scalar, 1)
}

fn scalar(rounds: u64) {
    let mut sums = [black_box(0.5f32); ACCUMULATORS];
    let (a, b) = (black_box(0.5f32), black_box(0.25f32));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = *sum * a + b;
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{
        arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_set1_ps},
        hint::black_box,
    };

    use super::ACCUMULATORS;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn fma_256(rounds: u64) {
        let [a, b] = [0.5, 0.25].map(|v: f32| _mm256_set1_ps(black_box(v)));
        let mut sums = [b; ACCUMULATORS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn fma_512(rounds: u64) {
        let [a, b] = [0.5, 0.25].map(|v: f32| _mm512_set1_ps(black_box(v)));
        let mut sums = [b; ACCUMULATORS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_streams_reads_all_of_it() {
        let memory: Vec<u64> = (0..1024).collect();
        let want = 1024 * 1023 / 2;
        assert_eq!(
            [read::<1>, read::<2>, read::<4>, read::<8>].map(|read| read(&memory)),
            [want; 4]
        );
    }

    #[test]
    fn multiplying_has_a_speed() {
        assert!(peak_flops(1) > 1e7);
    }
}
