//! Kernels of training against f32 fused multiply-adds in registers, measured in the same run.
//!
//! `cargo bench -p brolly-codegen --bench training`: a table. Runs of a kernel and of its yardstick
//! alternate; the ratios printed are quartiles of the ratios. Operations count what a causal mask
//! leaves, and products that a kernel computes again only once.

#![allow(clippy::print_stdout, reason = "a bench prints")]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a bench may stop")]

#[path = "../src/testing.rs"]
mod testing;
#[path = "kernels/yardstick.rs"]
mod yardstick;

use std::sync::Arc;

use brolly_codegen::Codegen;
use ir::{Attrs, DType, KernelSpec, Layout, Symbols, Target, TensorType};
use testing::{Loaded, pointer};
use yardstick::{Yardsticks, quartiles, time};

const ROUNDS: usize = 5;

/// An operator, its attributes, the shapes of its f32 operands, of its i32 ones, and of its
/// results.
struct Case {
    name: String,
    op: &'static str,
    attrs: Attrs,
    floats: Vec<Vec<i64>>,
    /// Values of the integer operand, if any, and its place among the operands.
    ints: Option<(usize, Vec<i32>)>,
    results: Vec<Vec<i64>>,
    /// Whether the first operand and the result lie in memory with their axes exchanged.
    exchanged: bool,
    flops: f64,
}

fn main() {
    let yardsticks = Yardsticks::new(&Target::x86_64_v3());
    for threads in [1, 2] {
        println!(
            "threads {threads}: GF/s and ratio to FMA peak, lower quartile, median, upper; FMA \
             {:.0} GF/s, reading {:.1} GB/s",
            yardsticks.peak_flops(threads) / 1e9,
            yardsticks.bandwidth(threads) / 1e9
        );
        for (t, heads, kv_heads, d) in [(512, 8, 8, 64), (2048, 8, 2, 64), (1024, 8, 8, 128)] {
            attention(&yardsticks, t, [heads, kv_heads, d], threads);
        }
        for (t, k, n) in [(2048, 384, 1024), (2048, 1024, 384), (2048, 384, 384), (512, 2048, 2048)]
        {
            products(&yardsticks, [t, k, n], threads);
        }
        for (t, k, n) in [(512, 512, 8192), (1024, 2048, 4096)] {
            head(&yardsticks, [t, k, n], threads);
        }
    }
}

fn attention(yardsticks: &Yardsticks, t: i64, heads: [i64; 3], threads: usize) {
    let [heads, kv_heads, d] = heads;
    let attrs = Attrs::none().with("scale", 0.125).with("mask", "causal").with("window", 0i64);
    let attrs = attrs.with("softcap", 0.0);
    let (q, kv, lse) = (vec![t, heads, d], vec![t, kv_heads, d], vec![t, heads]);
    // Multiply-adds of one product.
    let product = (t * (t + 1) / 2 * heads * d) as f64;
    let end = i32::try_from(t).unwrap();
    let name = format!("T {t} heads {heads}/{kv_heads} of {d}");
    run(
        yardsticks,
        &Case {
            name: format!("attention_lse  {name}"),
            op: "attention_lse",
            attrs: attrs.clone(),
            floats: vec![q.clone(), kv.clone(), kv.clone()],
            ints: Some((3, vec![0, end])),
            results: vec![q.clone(), lse.clone()],
            exchanged: false,
            flops: 4.0 * product,
        },
        threads,
    );
    run(
        yardsticks,
        &Case {
            name: format!("attention_grad {name}"),
            op: "attention_grad",
            attrs,
            floats: vec![q.clone(), kv.clone(), kv.clone(), q.clone(), lse, q.clone()],
            ints: Some((6, vec![0, end])),
            results: vec![q, kv.clone(), kv],
            exchanged: false,
            flops: 10.0 * product,
        },
        threads,
    );
}

/// A layer's product, and those of its gradients.
fn products(yardsticks: &Yardsticks, [t, k, n]: [i64; 3], threads: usize) {
    let (x, dy, w) = (vec![t, k], vec![t, n], vec![n, k]);
    let case = |what: &str, op, attrs, floats, result: Vec<i64>, exchanged| Case {
        name: format!("{what} T {t} K {k} N {n}"),
        op,
        attrs,
        floats,
        ints: None,
        results: vec![result],
        exchanged,
        flops: 2.0 * (t * k * n) as f64,
    };
    let packed = vec![n.div_euclid(16), k, 16];
    let attrs = Attrs::none().with("n", n).with("act", "none");
    let cases = [
        case("linear", "linear", attrs, vec![x.clone(), packed], dy.clone(), false),
        case("by x", "matmul", Attrs::none(), vec![dy.clone(), w], x.clone(), false),
        case("by w", "matmul", Attrs::none(), vec![vec![k, t], dy], vec![k, n], true),
    ];
    for case in cases {
        run(yardsticks, &case, threads);
    }
}

fn head(yardsticks: &Yardsticks, [t, k, n]: [i64; 3], threads: usize) {
    let (x, w) = (vec![t, k], vec![n, k]);
    let product = (t * k * n) as f64;
    let targets = vec![7; usize::try_from(t).unwrap()];
    let name = format!("T {t} K {k} N {n}");
    run(
        yardsticks,
        &Case {
            name: format!("linear_cross_entropy {name}"),
            op: "linear_cross_entropy",
            attrs: Attrs::none(),
            floats: vec![x.clone(), w.clone()],
            ints: Some((2, targets.clone())),
            results: vec![vec![t], vec![t]],
            exchanged: false,
            flops: 2.0 * product,
        },
        threads,
    );
    run(
        yardsticks,
        &Case {
            name: format!("linear_cross_entropy_grad {name}"),
            op: "linear_cross_entropy_grad",
            attrs: Attrs::none(),
            floats: vec![x.clone(), w.clone(), vec![t], vec![t]],
            ints: Some((2, targets)),
            results: vec![x, w],
            exchanged: false,
            flops: 6.0 * product,
        },
        threads,
    );
}

fn run(yardsticks: &Yardsticks, case: &Case, threads: usize) {
    let layout = |dtype: DType, shape: &[i64]| {
        Layout::contiguous(&TensorType::new(dtype, shape.iter().copied()))
    };
    let count = |shape: &Vec<i64>| usize::try_from(shape.iter().product::<i64>()).unwrap();
    let mut operands: Vec<_> = case.floats.iter().map(|s| Some(layout(DType::F32, s))).collect();
    if let Some((place, ints)) = &case.ints {
        let length = i64::try_from(ints.len()).unwrap();
        operands.insert(*place, Some(layout(DType::I32, &[length])));
    }
    let mut spec = KernelSpec {
        op: case.op,
        attrs: case.attrs.clone(),
        operands,
        results: case.results.iter().map(|s| layout(DType::F32, s)).collect(),
        body: None,
        symbols: Arc::new(Symbols::default()),
    };
    if case.exchanged {
        for layout in spec.operands[0].iter_mut().chain(&mut spec.results) {
            layout.strides = [1.into(), layout.ty.shape[0].clone()].into_iter().collect();
        }
    }
    let compiled = Codegen::new(Target::x86_64_v3()).compile(&[spec], &|_, _| {}).unwrap();
    let kernel = &compiled.kernels[0];
    let symbols = [(kernel.symbol.clone(), kernel.code_offset)].into_iter().collect();
    let loaded = Loaded::new(&compiled.image, &symbols);
    // Small numbers that differ, so that weights are neither all alike nor all but one zero.
    let noise = |i: usize| (i.wrapping_mul(2_654_435_761) >> 8 & 0xffff) as f32 / 65536.0 - 0.5;
    let floats: Vec<Vec<f32>> =
        case.floats.iter().map(|s| (0..count(s)).map(noise).collect()).collect();
    let results: Vec<Vec<f32>> = case.results.iter().map(|s| vec![0.0; count(s)]).collect();
    let mut args: Vec<usize> = floats.iter().map(|f| pointer(f) as usize).collect();
    if let Some((place, ints)) = &case.ints {
        args.insert(*place, pointer(ints) as usize);
    }
    args.extend(results.iter().map(|r| pointer(r) as usize));
    let tiles = kernel.tiles.as_const().unwrap_or_default();
    let sizes: Vec<i64> = kernel.dims.iter().map(|dim| dim.as_const().unwrap()).collect();
    let (mut ratios, mut speeds) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let peak = yardsticks.peak_flops(threads);
        let seconds = time(threads, tiles, kernel.scratch_bytes, |tiles, scratch| {
            let args: Vec<*mut u8> = args.iter().map(|a| *a as *mut u8).collect();
            loaded.call(&kernel.symbol, &args, &sizes, scratch, tiles);
        });
        ratios.push(case.flops / seconds / peak);
        speeds.push(case.flops / seconds / 1e9);
    }
    let ([low, ratio, high], [_, speed, _]) = (quartiles(ratios), quartiles(speeds));
    println!("  {:48} {speed:7.1} GF/s {low:5.2} {ratio:5.2} {high:5.2}", case.name);
}
