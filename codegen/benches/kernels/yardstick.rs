//! What the machine can do: reading memory and multiplying, by generated loops.

use std::ops::Range;

use brolly_codegen::{
    Isa, Kernel,
    emit::{Elem, Emitter, Ty, Val},
    image, mlir,
};
use ir::Target;

use crate::testing::{Line, Loaded, Scratch, pointer, thread_seconds};

/// Bytes to read, far more than caches hold.
const READ_BYTES: usize = 256 << 20;

/// Tiles of the multiplying loop, and its steps of 24 vectors a tile.
const PEAK_TILES: i64 = 2000;
const PEAK_STEPS: i64 = 1000;

/// The loops, and memory to read.
pub(crate) struct Yardsticks {
    memory: Vec<Line>,
    read: [Loaded; 4],
    peak: Loaded,
    lanes: f64,
}

impl Yardsticks {
    pub(crate) fn new(target: &Target) -> Yardsticks {
        let isa = Isa::of(target);
        let cpu = mlir::Cpu::of(target);
        let load = |kernel: &Kernel| {
            let object = mlir::compile(kernel, &cpu).unwrap();
            let image = image::link(&[(&kernel.symbol, &object)]).unwrap();
            Loaded::new(&image.bytes, &image.symbols)
        };
        Yardsticks {
            // Not zero, or the system would give one page many times.
            memory: vec![Line([1; 64]); READ_BYTES / 64],
            read: [1, 2, 4, 8].map(|streams| load(&read_kernel(streams))),
            peak: load(&peak_kernel(&isa)),
            lanes: f64::from(isa.vector_lanes),
        }
    }

    /// f32 operations a second of all threads together.
    pub(crate) fn peak_flops(&self, threads: usize) -> f64 {
        let seconds = time(threads, PEAK_TILES, 64, |tiles, scratch| {
            self.peak.call("peak", &[], &[], scratch, tiles);
        });
        PEAK_TILES as f64 * PEAK_STEPS as f64 * 48.0 * self.lanes / seconds
    }

    /// Bytes a second that all threads read together, by the best number of streams.
    pub(crate) fn bandwidth(&self, threads: usize) -> f64 {
        let lines = self.memory.len() as i64;
        let seconds = |read: &Loaded| {
            time(threads, lines, 64, |tiles, scratch| {
                read.call("read", &[pointer(&self.memory)], &[], scratch, tiles);
            })
        };
        READ_BYTES as f64 / self.read.iter().map(seconds).fold(f64::MAX, f64::min)
    }
}

/// CPU seconds that the slowest of the threads takes for its part of `0..tiles`.
pub(crate) fn time(
    threads: usize,
    tiles: i64,
    scratch_bytes: u64,
    body: impl Fn(Range<i64>, &mut Scratch) + Sync,
) -> f64 {
    let barrier = std::sync::Barrier::new(threads);
    std::thread::scope(|scope| {
        let spans: Vec<_> = (0..threads as i64)
            .map(|thread| {
                let (body, barrier) = (&body, &barrier);
                scope.spawn(move || {
                    let part = |i: i64| tiles * i / threads as i64;
                    let mut scratch = Scratch::new(scratch_bytes);
                    barrier.wait();
                    let start = thread_seconds();
                    body(part(thread)..part(thread + 1), &mut scratch);
                    thread_seconds() - start
                })
            })
            .collect();
        spans.into_iter().map(|span| span.join().unwrap()).fold(0.0, f64::max)
    })
}

/// Lower quartile, median and upper quartile.
pub(crate) fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    [last / 4, last / 2, last - last / 4].map(|i| values[i])
}

/// Chains of multiply-adds in registers.
fn peak_kernel(isa: &Isa) -> Kernel {
    let e = Emitter::new("peak");
    let ty = Ty::Vector(Elem::F32, isa.vector_lanes);
    let chains = 12_u32;
    let factor = e.load(ty, e.scratch());
    let init: Vec<Val> = (0..chains).map(|i| e.float(ty, f64::from(i))).collect();
    let steps = |e: &Emitter, sums: &[Val]| {
        e.for_loop(e.i64(0), e.i64(PEAK_STEPS), 1, sums, |_, sums| {
            let once: Vec<Val> = sums.iter().map(|&sum| e.fma(sum, factor, factor)).collect();
            once.iter().map(|&sum| e.fma(sum, factor, factor)).collect()
        })
    };
    let sums = e.for_loop(e.tile_begin(), e.tile_end(), 1, &init, |_, sums| steps(&e, sums));
    let total = sums.into_iter().reduce(|a, b| e.add(a, b)).unwrap();
    e.store(total, e.scratch());
    bare("peak", e)
}

/// Reads 64-byte tiles in `streams` interleaved streams.
fn read_kernel(streams: i64) -> Kernel {
    let e = Emitter::new("read");
    let ty = Ty::Vector(Elem::I32, 16);
    let from = e.arg(0);
    let length = e.div(e.sub(e.tile_end(), e.tile_begin()), e.i64(streams));
    let init = vec![e.zero(ty); streams as usize];
    let sums = e.for_loop(e.i64(0), length, 1, &init, |i, sums| {
        (0..streams)
            .zip(sums)
            .map(|(stream, &sum)| {
                let line = e.add(e.add(e.tile_begin(), e.mul_const(length, stream)), i);
                let line = e.at(from, Elem::I32, e.mul_const(line, 16));
                e.xor(sum, e.load(ty, line))
            })
            .collect()
    });
    let total = sums.into_iter().reduce(|a, b| e.xor(a, b)).unwrap();
    e.store(e.extract(total, 3), e.scratch());
    bare("read", e)
}

fn bare(symbol: &str, e: Emitter) -> Kernel {
    Kernel {
        symbol: symbol.to_owned(),
        mlir: e.finish(),
        scratch_bytes: 64,
        args: vec![],
        dims: vec![],
    }
}
