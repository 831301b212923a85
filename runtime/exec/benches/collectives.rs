//! How fast ranks that are threads reduce: `cargo bench -p brolly-exec --bench collectives`.
//!
//! Checks, then times, in turns with a copy between two vectors of the same length by as many
//! threads. Prints a line of JSON a case with medians: `gb_per_s` is the vector's length over the
//! time, and `bus_gb_per_s` that times 2 (n - 1) / n, which is what each rank has to pass on.

#![allow(clippy::print_stdout, reason = "a bench prints")]
#![allow(clippy::unwrap_used, reason = "a bench may stop")]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use brolly_exec::collectives::{CollectiveError, Options, Reduce, World, run_threads};
use ir::DType;

const ROUNDS: usize = 15;

fn main() {
    for ranks in [2, 4] {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            for bytes in [4 << 10, 256 << 10, 4 << 20, 64 << 20] {
                let body = |world: &World| time(world, dtype, bytes);
                let results = run_threads(ranks, &Options::default(), body);
                let (reduce, copy) = results.into_iter().next().unwrap().unwrap();
                report(ranks, dtype, bytes, reduce, copy);
            }
        }
    }
}

/// Medians of an `all_reduce` and of a copy.
fn time(
    world: &World,
    dtype: DType,
    bytes: usize,
) -> Result<(Duration, Duration), CollectiveError> {
    let group = world.all();
    let one: &[u8] = match dtype {
        DType::F32 => &1f32.to_ne_bytes(),
        DType::Bf16 => &half::bf16::ONE.to_ne_bytes(),
        _ => &half::f16::ONE.to_ne_bytes(),
    };
    let mut data = one.repeat(bytes / one.len());
    group.all_reduce(Reduce::Max, dtype, &mut data)?;
    assert!(data.chunks(one.len()).all(|element| element == one));
    let (source, mut target) = (vec![1u8; bytes], vec![0u8; bytes]);
    let (mut reduce, mut copy) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        data.fill(0);
        group.barrier()?;
        let begun = Instant::now();
        group.all_reduce(Reduce::Sum, dtype, &mut data)?;
        reduce.push(begun.elapsed());
        group.barrier()?;
        let begun = Instant::now();
        target.copy_from_slice(black_box(&source));
        black_box(&mut target);
        copy.push(begun.elapsed());
    }
    Ok((median(reduce), median(copy)))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[allow(clippy::cast_precision_loss, reason = "shown with two digits")]
fn report(ranks: usize, dtype: DType, bytes: usize, reduce: Duration, copy: Duration) {
    let speed = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;
    let (us, gb) = (reduce.as_secs_f64() * 1e6, speed(reduce));
    let bus = gb * 2.0 * (ranks - 1) as f64 / ranks as f64;
    println!(
        "{{\"ranks\":{ranks},\"dtype\":\"{}\",\"bytes\":{bytes},\"all_reduce_us\":{us:.1},\
         \"gb_per_s\":{gb:.2},\"bus_gb_per_s\":{bus:.2},\"copy_gb_per_s\":{:.2}}}",
        dtype.name(),
        speed(copy),
    );
}
