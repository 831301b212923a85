//! Paged attention alone, by the type of keys and values: 32 query heads over 8 key/value heads of
//! 64, in as many memories as a model has layers, so that they do not stay in caches.
//!
//! `cargo bench -p brolly-codegen --bench attention [-- CONTEXT]`: microseconds a layer, and bytes
//! of keys and values a second, medians of rounds that alternate between the types.

#![allow(clippy::print_stdout, reason = "a bench prints")]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a bench may stop")]

#[path = "../src/testing.rs"]
mod testing;

use std::sync::Arc;

use brolly_codegen::Codegen;
use ir::{Attrs, DType, KernelSpec, Layout, Symbols, Target, TensorType};
use testing::{Loaded, Scratch};

const ROUNDS: usize = 9;
const LAYERS: usize = 16;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const SIZE: usize = 64;
const BLOCK: usize = 16;

/// Memory of one operand, in whole lines.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read by generated code")] [u8; 64]);

fn main() {
    let context = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(4096);
    for tokens in [1, 64] {
        for threads in [1, 2] {
            let types = [DType::F32, DType::Bf16, DType::F16, DType::I8, DType::F8E4M3];
            let benches = types.map(|dtype| Bench::new(dtype, tokens, context));
            let mut times = types.map(|_| Vec::new());
            for _ in 0..ROUNDS {
                for (bench, times) in benches.iter().zip(&mut times) {
                    times.push(bench.time(threads) / LAYERS as f64);
                }
            }
            println!("{tokens} tokens at {context} keys, {threads} threads");
            let plain = median(&mut times[0].clone());
            for ((dtype, bench), times) in types.iter().zip(&benches).zip(&mut times) {
                let time = median(times);
                let (micros, rate) = (time * 1e6, bench.kv_bytes / time / 1e9);
                let ratio = plain / time;
                println!("  {dtype:5} {micros:9.1} us a layer {rate:6.2} GB/s {ratio:5.2} x f32");
            }
        }
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

struct Bench {
    kernel: Loaded,
    symbol: String,
    tiles: i64,
    scratch_bytes: u64,
    /// Operands and result of each layer.
    layers: Vec<Vec<Vec<Line>>>,
    /// Bytes of keys, values and scales of a layer.
    kv_bytes: f64,
}

impl Bench {
    fn new(dtype: DType, tokens: usize, context: usize) -> Bench {
        let blocks = context / BLOCK;
        let ty = |dtype, shape: &[usize]| TensorType::new(dtype, shape.iter().copied());
        let mut types = vec![
            ty(DType::F32, &[tokens, HEADS, SIZE]),
            ty(dtype, &[blocks, KV_HEADS, SIZE, BLOCK]),
            ty(dtype, &[blocks, KV_HEADS, BLOCK, SIZE]),
            ty(DType::I32, &[1, blocks]),
            ty(DType::I32, &[2]),
            ty(DType::I32, &[tokens]),
        ];
        if matches!(dtype, DType::I8 | DType::F8E4M3) {
            types.extend(vec![ty(DType::F32, &[blocks, KV_HEADS, BLOCK]); 2]);
        }
        let spec = KernelSpec {
            op: "paged_attention",
            attrs: Attrs::none()
                .with("scale", 0.125)
                .with("mask", "causal")
                .with("window", 0i64)
                .with("softcap", 0.0),
            operands: types.iter().map(|ty| Some(Layout::contiguous(ty))).collect(),
            results: vec![Layout::contiguous(&types[0])],
            body: None,
            symbols: Arc::new(Symbols::default()),
        };
        let compiled = Codegen::new(Target::x86_64_v3()).compile(&[spec], &|_, _| {}).unwrap();
        let kernel = &compiled.kernels[0];
        assert!(kernel.dims.is_empty(), "sizes are constants");
        let offsets = [(kernel.symbol.clone(), kernel.code_offset)].into();
        let bytes = |ty: &TensorType| ty.bytes().as_const().unwrap() as usize;
        let lines = |ty: &TensorType, number: usize| {
            let value = |i: usize| -> i32 {
                match number {
                    // Blocks in no order; the ends of the one sequence; its last positions.
                    3 => (i * 97 % blocks) as i32,
                    4 => (i * tokens) as i32,
                    5 => (context - tokens + i) as i32,
                    // Small numbers of any type.
                    _ => 0x3c01_3c01_i32 + (i % 7) as i32,
                }
            };
            let words: Vec<i32> = (0..bytes(ty).div_ceil(64) * 16).map(value).collect();
            let lines = words.chunks_exact(16).map(|line| {
                let bytes = line.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
                Line(bytes.try_into().unwrap())
            });
            lines.collect::<Vec<Line>>()
        };
        let all = types.iter().chain([&types[0]]).enumerate();
        let layer: Vec<Vec<Line>> = all.map(|(i, ty)| lines(ty, i)).collect();
        let kv = types.iter().enumerate().filter(|(i, _)| matches!(i, 1 | 2 | 6 | 7));
        Bench {
            kernel: Loaded::new(&compiled.image, &offsets),
            symbol: kernel.symbol.clone(),
            tiles: kernel.tiles.as_const().unwrap(),
            scratch_bytes: kernel.scratch_bytes,
            layers: vec![layer; LAYERS],
            kv_bytes: kv.map(|(_, ty)| bytes(ty) as f64).sum(),
        }
    }

    /// Seconds of a pass over all layers; of several threads, of the slowest.
    fn time(&self, threads: i64) -> f64 {
        let run = |thread: i64| {
            let mut scratch = Scratch::new(self.scratch_bytes);
            let range = self.tiles * thread / threads..self.tiles * (thread + 1) / threads;
            let start = testing::thread_seconds();
            for layer in &self.layers {
                let args: Vec<*mut u8> = layer.iter().map(|o| testing::pointer(o)).collect();
                self.kernel.call(&self.symbol, &args, &[], &mut scratch, range.clone());
            }
            testing::thread_seconds() - start
        };
        std::thread::scope(|scope| {
            let run = &run;
            let others: Vec<_> = (0..threads).map(|t| scope.spawn(move || run(t))).collect();
            others.into_iter().map(|t| t.join().unwrap()).fold(0.0, f64::max)
        })
    }
}
