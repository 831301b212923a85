//! What the benches measure against, and how they time.

use brolly_codegen::emit::{Elem, Emitter, Ty, Val};
use brolly_codegen::{Isa, Kernel};

use super::testing::{Scratch, thread_seconds};

/// CPU seconds that the slowest of the threads takes for its part of `0..tiles`.
pub(crate) fn time(
    threads: usize,
    tiles: i64,
    scratch_bytes: u64,
    body: impl Fn(std::ops::Range<i64>, &mut Scratch) + Sync,
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

/// Operations of a tile of [`peak_kernel`], for each lane of a vector: 1000 steps of 24
/// multiply-adds.
pub(crate) const PEAK_FLOPS_PER_LANE: f64 = 2.0 * 24_000.0;

/// Chains of multiply-adds in registers: 1000 steps of 24 vectors a tile.
pub(crate) fn peak_kernel(isa: &Isa) -> Kernel {
    let e = Emitter::new("peak");
    let ty = Ty::Vector(Elem::F32, isa.vector_lanes);
    let chains = 12_u32;
    let factor = e.load(ty, e.scratch());
    let init: Vec<Val> = (0..chains).map(|i| e.float(ty, f64::from(i))).collect();
    let steps = |e: &Emitter, sums: &[Val]| {
        e.for_loop(e.i64(0), e.i64(1000), 1, sums, |_, sums| {
            let once: Vec<Val> = sums.iter().map(|&sum| e.fma(sum, factor, factor)).collect();
            once.iter().map(|&sum| e.fma(sum, factor, factor)).collect()
        })
    };
    let sums = e.for_loop(e.tile_begin(), e.tile_end(), 1, &init, |_, sums| steps(&e, sums));
    let total = sums.into_iter().reduce(|a, b| e.add(a, b)).unwrap();
    e.store(total, e.scratch());
    bare("peak", e)
}

/// A kernel without arguments.
pub(crate) fn bare(symbol: &str, e: Emitter) -> Kernel {
    Kernel {
        symbol: symbol.to_owned(),
        mlir: e.finish(),
        scratch_bytes: 64,
        args: vec![],
        dims: vec![],
    }
}
