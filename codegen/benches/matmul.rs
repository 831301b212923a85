//! Matrix products against this machine's own limits, measured in the same run: f32 fused
//! multiply-adds in registers (peak), and reading memory in 1 to 8 streams a thread (bandwidth).
//!
//! `cargo bench -p brolly-codegen --bench matmul [-- native] [-- quantized]`: a table, then one
//! line of JSON. Runs of a kernel and of its yardstick alternate; the ratio printed is the median
//! of the ratios.

#![allow(clippy::print_stdout, reason = "a bench prints")]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a bench may stop")]

mod common;
#[path = "../src/testing.rs"]
mod testing;

use brolly_codegen::emit::{Elem, Emitter, Ty};
use brolly_codegen::kernels::matmul::{Activation, Matmul, matmul};
use brolly_codegen::{Isa, Kernel, image, mlir};
use common::{PEAK_FLOPS_PER_LANE, bare, peak_kernel, time};
use testing::{Loaded, pointer};

const ROUNDS: usize = 9;

fn main() {
    let native = std::env::args().any(|arg| arg == "native");
    let wide = native && std::arch::is_x86_feature_detected!("avx512bw");
    let isa = if wide { Isa::x86_64_v4() } else { Isa::x86_64_v3() };
    let cpu = if native { mlir::Cpu::native() } else { mlir::Cpu::x86_64_v3() };
    let bench = Bench { isa, cpu };
    if std::env::args().any(|arg| arg == "asm") {
        let kernel = matmul(&Matmul::new("mm", 8192, 2048, Elem::Bf16), &bench.isa).unwrap();
        println!("{}", mlir::assembly(&kernel, &bench.cpu).unwrap());
        return;
    }
    let mut rows = Vec::new();
    for threads in [1, 2] {
        println!("threads {threads}: quantised, GB/s of W and ratio to reading it, then GF/s");
        for bits in [8, 4] {
            for (n, k) in [(32768, 2048), (2048, 8192), (2048, 2048)] {
                rows.push(bench.gemv(&Matmul::quantized("mm", n, k, bits), threads));
            }
            for m in [2, 3, 4, 8, 16, 64, 256] {
                rows.push(bench.gemm(&Matmul::quantized("mm", 8192, 2048, bits), m, threads));
            }
        }
        if std::env::args().any(|arg| arg == "quantized") {
            continue;
        }
        println!("threads {threads}: gemv, GB/s of W and ratio to reading it");
        for (n, k, weight) in [
            (32768, 2048, Elem::Bf16),
            (2048, 8192, Elem::Bf16),
            (2048, 2048, Elem::Bf16),
            (16384, 2048, Elem::F32),
            (32768, 2048, Elem::F16),
        ] {
            rows.push(bench.gemv(&Matmul::new("mm", n, k, weight), threads));
        }
        println!("threads {threads}: GF/s and ratio to FMA peak");
        for m in [2, 3, 4, 6, 8, 12, 16, 32, 64, 256] {
            rows.push(bench.gemm(&Matmul::new("mm", 8192, 2048, Elem::Bf16), m, threads));
        }
        for (m, n, k) in
            [(512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (1000, 997, 1009)]
        {
            for weight in [Elem::F32, Elem::Bf16] {
                rows.push(bench.gemm(&Matmul::new("mm", n, k, weight), m, threads));
            }
        }
        for (m, n, k) in [(256, 2048, 8192), (2048, 384, 384), (2048, 1536, 384), (2048, 384, 1536)]
        {
            rows.push(bench.gemm(&Matmul::new("mm", n, k, Elem::F32), m, threads));
        }
        let gelu = Matmul {
            activation: Activation::GeluErf,
            bias: true,
            ..Matmul::new("mm", 1536, 384, Elem::F32)
        };
        rows.push(bench.gemm(&gelu, 2048, threads));
        let gated = Matmul {
            activation: Activation::Silu,
            gated: true,
            ..Matmul::new("mm", 8192, 2048, Elem::Bf16)
        };
        rows.push(bench.gemm(&gated, 256, threads));
    }
    println!("[{}]", rows.join(","));
}

struct Bench {
    isa: Isa,
    cpu: mlir::Cpu,
}

impl Bench {
    fn load(&self, kernel: &Kernel) -> Loaded {
        let object = mlir::compile(kernel, &self.cpu).unwrap();
        let image = image::link(&[(&kernel.symbol, &object)]).unwrap();
        Loaded::new(&image.bytes, &image.symbols)
    }

    fn gemv(&self, spec: &Matmul, threads: usize) -> String {
        let runner = Runner::new(self, spec, 1);
        let read: Vec<_> = [1, 2, 4, 8].map(|streams| self.load(&read_kernel(streams))).into();
        let bytes = runner.w.len() as f64 * 64.0;
        let ratios = (0..ROUNDS).map(|_| {
            let yardstick = read
                .iter()
                .map(|read| {
                    let tiles = runner.w.len() as i64;
                    time(threads, tiles, 64, |tiles, scratch| {
                        read.call("read", &[pointer(&runner.w)], &[], scratch, tiles);
                    })
                })
                .fold(f64::MAX, f64::min);
            (runner.time(threads), yardstick)
        });
        report(spec, 1, threads, &ratios.collect::<Vec<_>>(), bytes, "GB/s")
    }

    fn gemm(&self, spec: &Matmul, m: usize, threads: usize) -> String {
        let runner = Runner::new(self, spec, m);
        let peak = self.load(&peak_kernel(&self.isa));
        let halves = if spec.gated { 2.0 } else { 1.0 };
        let flops = 2.0 * m as f64 * spec.n as f64 * spec.k as f64 * halves;
        let per_tile = PEAK_FLOPS_PER_LANE * f64::from(self.isa.vector_lanes);
        let tiles = (flops / per_tile).clamp(100.0, 20_000.0) as i64;
        let ratios = (0..ROUNDS).map(|_| {
            let peak = time(threads, tiles, 64, |tiles, scratch| {
                peak.call("peak", &[], &[], scratch, tiles);
            });
            (runner.time(threads), peak * flops / (tiles as f64 * per_tile))
        });
        report(spec, m, threads, &ratios.collect::<Vec<_>>(), flops, "GF/s")
    }
}

/// 64 bytes of packed W, aligned as in an artifact.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read by generated code")] [u64; 8]);

struct Runner<'a> {
    spec: &'a Matmul,
    kernel: Loaded,
    scratch_bytes: u64,
    m: usize,
    x: Vec<f32>,
    w: Vec<Line>,
    y: Vec<f32>,
    bias: Vec<f32>,
}

impl<'a> Runner<'a> {
    fn new(bench: &Bench, spec: &'a Matmul, m: usize) -> Self {
        let kernel = matmul(spec, &bench.isa).unwrap();
        // Small normal numbers in every weight type.
        let word =
            if spec.weight == Elem::F32 { 0x3c00_1234_3c00_4321 } else { 0x3c01_3c12_3c23_3c34 };
        Self {
            spec,
            kernel: bench.load(&kernel),
            scratch_bytes: kernel.scratch_bytes,
            m,
            x: vec![0.5; m * spec.k as usize],
            w: vec![Line([word; 8]); spec.weight_bytes() as usize / 64],
            y: vec![0.0; m * spec.n as usize],
            bias: vec![0.1; 2 * spec.n as usize],
        }
    }

    fn time(&self, threads: usize) -> f64 {
        let lines = self.m * self.w.len();
        let repeats = (2_500_000 / lines).clamp(1, 50) as i64;
        let mut best = f64::MAX;
        for _ in 0..repeats {
            let tiles = self.spec.tiles() as i64;
            best = best.min(time(threads, tiles, self.scratch_bytes, |tiles, scratch| {
                let mut args = vec![pointer(&self.x), pointer(&self.w)];
                args.extend(self.spec.bias.then(|| pointer(&self.bias)));
                args.push(pointer(&self.y));
                self.kernel.call("mm", &args, &[self.m as i64], scratch, tiles);
            }));
        }
        best
    }
}

fn report(
    spec: &Matmul,
    m: usize,
    threads: usize,
    times: &[(f64, f64)],
    work: f64,
    unit: &str,
) -> String {
    let mut ratios: Vec<f64> = times.iter().map(|(kernel, yardstick)| yardstick / kernel).collect();
    let mut speeds: Vec<f64> = times.iter().map(|(kernel, _)| work / kernel / 1e9).collect();
    ratios.sort_by(f64::total_cmp);
    speeds.sort_by(f64::total_cmp);
    let (ratio, speed) = (ratios[ROUNDS / 2], speeds[ROUNDS / 2]);
    let (low, high) = (ratios[1], ratios[ROUNDS - 2]);
    let Matmul { n, k, weight, bits, .. } = spec;
    let weight = bits.map_or_else(|| weight.to_string(), |bits| format!("q{bits}"));
    let kind = match (spec.gated, spec.bias) {
        (true, _) => " gated",
        (_, true) => " bias+act",
        _ => "",
    };
    println!(
        "  m {m:5} n {n:6} k {k:5} {weight:4}{kind:9} {speed:7.1} {unit} {ratio:5.2} ({low:.2}-{high:.2})"
    );
    format!(
        "{{\"m\":{m},\"n\":{n},\"k\":{k},\"weight\":\"{weight}\",\"gated\":{},\"threads\":{threads},\
         \"speed\":{speed:.1},\"unit\":\"{unit}\",\"ratio\":{ratio:.3}}}",
        spec.gated
    )
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
