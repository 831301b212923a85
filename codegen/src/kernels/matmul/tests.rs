//! Products against a naive sum, bit by bit across variants.

#![allow(clippy::cast_possible_truncation, reason = "sizes and samples are small")]

use super::*;
use crate::image;
use crate::mlir::{Cpu, compile};
use crate::testing::{Loaded, Scratch, pointer};
use half::{bf16, f16};

/// Deterministic numbers in [-1, 1).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn floats(&mut self, count: u64) -> Vec<f32> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 40) as f32 / 8_388_608.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }
}

/// A compiled product with random weights, kept as rounded f32 for the reference.
struct Case {
    spec: Matmul,
    loaded: Loaded,
    scratch_bytes: u64,
    /// `[K, N]`, or `[2, K, N]` when gated.
    w: Vec<f32>,
    packed: Vec<u8>,
    bias: Vec<f32>,
}

fn round(elem: Elem, value: f32) -> f32 {
    match elem {
        Elem::Bf16 => bf16::from_f32(value).to_f32(),
        Elem::F16 => f16::from_f32(value).to_f32(),
        _ => value,
    }
}

fn bytes(elem: Elem, value: f32) -> Vec<u8> {
    match elem {
        Elem::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        Elem::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

impl Case {
    fn new(spec: Matmul, cpu: &Cpu, isa: &Isa) -> Self {
        let mut random = Random(spec.n * 1000 + spec.k);
        let halves = if spec.gated { 2 } else { 1 };
        let w: Vec<f32> = random.floats(halves * spec.k * spec.n);
        let w: Vec<f32> = w.into_iter().map(|value| round(spec.weight, value)).collect();
        let mut packed = Vec::new();
        for panel in 0..spec.panels() {
            for k in 0..spec.k {
                for lane in 0..PANEL {
                    let column = panel / halves * PANEL + lane;
                    let index = (panel % halves * spec.k + k) * spec.n + column;
                    let value = if column < spec.n { w[index as usize] } else { 0.0 };
                    packed.extend(bytes(spec.weight, value));
                }
            }
        }
        assert_eq!(packed.len() as u64, spec.weight_bytes());
        let kernel = matmul(&spec, isa).unwrap();
        let object = compile(&kernel, cpu).unwrap();
        let image = image::link(&[(&spec.symbol, &object)]).unwrap();
        Self {
            loaded: Loaded::new(&image.bytes, &image.symbols),
            scratch_bytes: kernel.scratch_bytes,
            w,
            packed,
            bias: random.floats(halves * spec.n),
            spec,
        }
    }

    fn baseline(spec: Matmul) -> Self {
        Self::new(spec, &Cpu::x86_64_v3(), &Isa::x86_64_v3())
    }

    /// Runs the tiles in the given ranges; `x` is `[m, x_stride]`, `y` `[m, y_stride]`.
    fn run<T>(&self, x: &[f32], y: &[T], residual: Option<&[f32]>, m: usize, splits: &[i64]) {
        let spec = &self.spec;
        assert_eq!((x.len(), y.len()), (m * spec.x_stride as usize, m * spec.y_stride as usize));
        let mut args = vec![pointer(x), pointer(&self.packed)];
        args.extend(spec.bias.then(|| pointer(&self.bias)));
        args.extend(spec.residual.map(|_| residual.map_or(pointer(y), pointer)));
        args.push(pointer(y));
        let mut scratch = Scratch::new(self.scratch_bytes);
        let mut from = 0;
        let blocks = m.div_ceil(spec.row_block(&Isa::x86_64_v3()) as usize);
        let tiles = spec.tiles() as i64 * if spec.split_rows { blocks as i64 } else { 1 };
        for &to in splits.iter().chain([&tiles]) {
            self.loaded.call(&spec.symbol, &args, &[m as i64], &mut scratch, from..to);
            from = to;
        }
    }

    /// `[m, N]` of a run with dense rows of x.
    fn rows(&self, x: &[f32], m: usize) -> Vec<f32> {
        let stride = self.spec.y_stride as usize;
        let y = vec![f32::NAN; m * stride];
        self.run(x, &y, None, m, &[]);
        let n = self.spec.n as usize;
        y.chunks(stride).flat_map(|row| row[..n].to_vec()).collect()
    }

    /// The sum for one output in f64, and the sum of magnitudes.
    fn dot(&self, x: &[f32], half: u64, column: u64) -> (f64, f64) {
        let Matmul { n, k, .. } = self.spec;
        let w = |i: u64| f64::from(self.w[((half * k + i) * n + column) as usize]);
        let products = (0..k).map(|i| f64::from(x[i as usize]) * w(i));
        products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()))
    }
}

/// The specified order, literally: one chain of fma per output.
fn chain(case: &Case, x: &[f32], column: u64) -> f32 {
    let Matmul { n, k, .. } = case.spec;
    (0..k).fold(0.0, |sum, i| x[i as usize].mul_add(case.w[(i * n + column) as usize], sum))
}

#[test]
fn every_row_count_gives_the_one_specified_chain() {
    for (n, k, weight) in [
        (1, 1, Elem::F32),
        (16, 7, Elem::Bf16),
        (37, 64, Elem::F16),
        (97, 129, Elem::Bf16),
        (64, 31, Elem::F32),
        (131, 601, Elem::Bf16),
        (48, 1031, Elem::F32),
        (33, 1500, Elem::Bf16),
    ] {
        let case = Case::baseline(Matmul::new("mm", n, k, weight));
        let x = Random(7).floats(61 * k);
        let expected: Vec<f32> = x
            .chunks(k as usize)
            .flat_map(|x| (0..n).map(|column| chain(&case, x, column)).collect::<Vec<_>>())
            .collect();
        for m in (1..=20).chain([29, 40, 48, 49, 53, 55, 61]) {
            let y = case.rows(&x[..m * k as usize], m);
            assert_eq!(y, expected[..m * n as usize], "n {n}, k {k}, {weight}, m {m}");
        }
    }
}

#[test]
fn widths_agree_bit_for_bit() {
    if !std::arch::is_x86_feature_detected!("avx512bw") {
        println!("skipped: no AVX-512 here");
        return;
    }
    for (n, k, weight) in [(150, 700, Elem::Bf16), (80, 1300, Elem::F32), (33, 90, Elem::F16)] {
        let spec = Matmul { bias: true, ..Matmul::new("mm", n, k, weight) };
        let narrow = Case::baseline(spec.clone());
        let wide = Case::new(spec, &Cpu::named("x86-64-v4"), &Isa::x86_64_v4());
        let x = Random(3).floats(61 * k);
        for m in (1..=26).chain([49, 55, 61]) {
            let x = &x[..m * k as usize];
            assert_eq!(narrow.rows(x, m), wide.rows(x, m), "n {n}, k {k}, m {m}");
        }
    }
}

#[test]
fn large_batches_cross_row_and_column_blocks() {
    let case = Case::baseline(Matmul::new("mm", 331, 900, Elem::Bf16));
    let m = 787;
    let x = Random(11).floats(m * 900);
    let all = case.rows(&x, m as usize);
    let bounded = Case::baseline(Matmul { max_rows: 7, ..case.spec.clone() });
    assert!(bounded.scratch_bytes < case.scratch_bytes / 4);
    assert_eq!(all, bounded.rows(&x, m as usize));
    for row in [0, 1, 100, 262, 263, 400, 525, 786] {
        let x = &x[row * 900..(row + 1) * 900];
        let alone = case.rows(x, 1);
        assert_eq!(all[row * 331..(row + 1) * 331], alone[..], "row {row}");
        for column in [0, 15, 16, 255, 256, 330] {
            let (sum, size) = case.dot(x, 0, column);
            let error = (f64::from(alone[column as usize]) - sum).abs();
            assert!(error <= size * 1e-6, "row {row}, column {column}: {error}");
        }
    }
}

#[test]
fn splits_of_the_tiles_do_not_matter() {
    let schedule = Schedule { row_block: Some(60), ..Schedule::default() };
    for gated in [false, true] {
        let spec = Matmul { gated, panels_per_tile: 2, ..Matmul::new("mm", 200, 300, Elem::Bf16) };
        let split = Matmul { split_rows: true, schedule, ..spec.clone() };
        let [case, split] = [spec, split].map(Case::baseline);
        for m in [1, 5, 33, 60, 61, 110] {
            let x = Random(5).floats(m as u64 * 300);
            let whole = case.rows(&x, m);
            let run = |case: &Case, splits: &[i64]| {
                let parts = vec![f32::NAN; m * 200];
                case.run(&x, &parts, None, m, splits);
                parts
            };
            assert_eq!(whole, run(&case, &[1, 4, 4]));
            // Tiles of one block, of several, and none.
            assert_eq!(whole, run(&split, &[]));
            assert_eq!(whole, run(&split, &[1, 4, 4]));
            let blocks = m.div_ceil(split.spec.row_block(&Isa::x86_64_v3()) as usize) as i64;
            let last = split.spec.tiles() as i64 * blocks - 1;
            assert_eq!(whole, run(&split, &[last / 3, last / 2, last]));
        }
    }
}

fn activation(activation: Activation, x: f64) -> f64 {
    let gelu = |inner: f64| 0.5 * x * (1.0 + inner);
    match activation {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            gelu(((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
        Activation::GeluErf => gelu(math_erf(x / 2_f64.sqrt())),
    }
}

/// erf by its Maclaurin series; enough for the small arguments here.
fn math_erf(x: f64) -> f64 {
    let mut term = x;
    let sum: f64 = (1..150).fold(x, |sum, n| {
        term *= -x * x / f64::from(n);
        sum + term / f64::from(2 * n + 1)
    });
    (sum * std::f64::consts::FRAC_2_SQRT_PI).clamp(-1.0, 1.0)
}

#[test]
fn epilogues_in_wide_buffers() {
    let all = [
        Activation::None,
        Activation::Relu,
        Activation::GeluErf,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Tanh,
        Activation::Sigmoid,
    ];
    for (index, act) in all.into_iter().enumerate() {
        // Each activation plain and gated; residuals of y's stride and of another, biases, by
        // turns.
        for gated in [false, true] {
            let residual = [None, Some(41), Some(40)][(index + usize::from(gated)) % 3];
            let spec = Matmul {
                x_stride: 23,
                y_stride: 41,
                bias: (index + usize::from(gated)) % 2 == 0,
                activation: act,
                residual,
                gated,
                ..Matmul::new("mm", 37, 19, Elem::F32)
            };
            let case = Case::baseline(spec);
            for m in [1, 4, 9, 50] {
                check_epilogue(&case, m);
            }
        }
    }
}

fn check_epilogue(case: &Case, m: usize) {
    let spec = &case.spec;
    let mut random = Random(m as u64);
    let x = random.floats(m as u64 * spec.x_stride);
    let residual = random.floats(m as u64 * spec.residual.unwrap_or(1));
    let y = vec![f32::NAN; m * spec.y_stride as usize];
    case.run(&x, &y, Some(&residual), m, &[]);
    for row in 0..m {
        let x = &x[row * spec.x_stride as usize..];
        for column in 0..spec.n {
            let part = |half: u64| {
                let bias =
                    if spec.bias { case.bias[(half * spec.n + column) as usize] } else { 0.0 };
                case.dot(x, half, column).0 + f64::from(bias)
            };
            let mut expected = activation(spec.activation, part(0));
            if spec.gated {
                expected *= part(1);
            }
            if let Some(stride) = spec.residual {
                expected += f64::from(residual[row * stride as usize + column as usize]);
            }
            let got = y[row * spec.y_stride as usize + column as usize];
            let error = (f64::from(got) - expected).abs() / expected.abs().max(1.0);
            assert!(error < 4e-6, "{spec:?}: row {row}, column {column}: {got} for {expected}");
        }
        let rest =
            &y[row * spec.y_stride as usize + spec.n as usize..(row + 1) * spec.y_stride as usize];
        assert!(rest.iter().all(|y| y.is_nan()), "wrote beyond the row");
    }
}

#[test]
fn the_residual_may_be_y_itself() {
    let spec = Matmul { residual: Some(100), ..Matmul::new("mm", 100, 1200, Elem::Bf16) };
    let case = Case::baseline(spec);
    for m in [1, 3, 17, 250] {
        let mut random = Random(m as u64);
        let x = random.floats(m as u64 * 1200);
        let residual = random.floats(m as u64 * 100);
        let (apart, inside) = (vec![f32::NAN; m * 100], residual.clone());
        case.run(&x, &apart, Some(&residual), m, &[]);
        case.run(&x, &inside, None, m, &[]);
        assert_eq!(apart, inside);
    }
}

#[test]
fn narrow_outputs_round_once() {
    for (output, n) in [(Elem::Bf16, 64), (Elem::Bf16, 45), (Elem::F16, 29)] {
        let exact = Case::baseline(Matmul::new("mm", n, 90, Elem::F32));
        let narrow = Case::baseline(Matmul { output, ..exact.spec.clone() });
        for m in [1, 7] {
            let x = Random(1).floats(m as u64 * 90);
            let y = vec![0_u16; m * n as usize];
            narrow.run(&x, &y, None, m, &[]);
            let expected: Vec<u16> = exact
                .rows(&x, m)
                .into_iter()
                .map(|y| u16::from_le_bytes(bytes(output, y).try_into().unwrap()))
                .collect();
            assert_eq!(y, expected);
        }
    }
}

#[test]
fn no_rows_write_nothing() {
    let case = Case::baseline(Matmul::new("mm", 20, 20, Elem::F32));
    case.run::<f32>(&[], &[], None, 0, &[]);
}

#[test]
fn contradictions_are_refused() {
    let plain = Matmul::new("mm", 20, 20, Elem::F32);
    let odd = Matmul { gated: true, panels_per_tile: 3, ..plain.clone() };
    let short = Matmul { x_stride: 19, ..plain.clone() };
    let integers = Matmul { weight: Elem::I8, ..plain.clone() };
    let empty = Matmul { k: 0, x_stride: 0, ..plain };
    for bad in [odd, short, integers, empty] {
        let text = matmul(&bad, &Isa::x86_64_v3()).unwrap_err().to_string();
        assert!(text.starts_with("matmul `mm`: "), "{text}");
    }
}

#[test]
fn the_inner_loops_are_tight() {
    let kernel = matmul(&Matmul::new("mm", 4096, 4096, Elem::Bf16), &Isa::x86_64_v3()).unwrap();
    let text = crate::mlir::assembly(&kernel, &Cpu::x86_64_v3()).unwrap();
    let widest = innermost_loops(&text).into_iter().map(|body| {
        let count = |name: &str| body.iter().filter(|line| line.contains(name)).count();
        (count("vfmadd"), count("%rsp"))
    });
    let spilling: Vec<_> =
        widest.clone().filter(|(fmas, spills)| *fmas > 0 && *spills > 0).collect();
    assert!(spilling.is_empty(), "loops with FMAs and spills: {spilling:?}");
    assert!(widest.clone().any(|(fmas, _)| fmas >= 12), "no 12-register tile");
    assert!(!text.contains("call"), "the kernel calls something");
}

/// Bodies of loops that contain no other label: from a label to a jump back to it.
fn innermost_loops(text: &str) -> Vec<Vec<&str>> {
    let mut loops = Vec::new();
    let mut body: Vec<&str> = Vec::new();
    let mut label = "";
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_suffix(':').filter(|name| name.starts_with(".L")) {
            (label, body) = (name, Vec::new());
        } else if line.starts_with('j') && line.ends_with(label) && !label.is_empty() {
            loops.push(std::mem::take(&mut body));
        } else {
            body.push(line);
        }
    }
    loops
}
