//! Elementary functions against f64 over sweeps.

#![allow(clippy::cast_possible_truncation, reason = "sizes and samples are small")]

use super::*;
use crate::emit::Emitter;
use crate::mlir::{Cpu, compile};
use crate::testing::{Loaded, Scratch, pointer};
use crate::{Kernel, image};

/// Runs `function` on 8 lanes at a time.
fn evaluate(function: fn(&Emitter, Val) -> Val, inputs: &[f32]) -> Vec<f32> {
    let e = Emitter::new("f");
    let (x, y, n) = (e.arg(0), e.arg(1), e.dim(0));
    e.for_each(e.i64(0), n, 8, |i| {
        e.store_at(function(&e, e.load_at(Emitter::f32s(8), x, i)), y, i);
    });
    let kernel = Kernel {
        symbol: "f".to_owned(),
        mlir: e.finish(),
        scratch_bytes: 0,
        args: vec!["x", "y"],
        dims: vec!["n"],
    };
    let object = compile(&kernel, &Cpu::x86_64_v3()).unwrap();
    let image = image::link(&[("f", &object)]).unwrap();
    let mut padded = inputs.to_vec();
    padded.resize(inputs.len().next_multiple_of(8), 0.0);
    let output = vec![f32::NAN; padded.len()];
    let dims = [i64::try_from(padded.len()).unwrap()];
    let args = [pointer(&padded), pointer(&output)];
    Loaded::new(&image.bytes, &image.symbols).call("f", &args, &dims, &mut Scratch::new(64), 0..1);
    output[..inputs.len()].to_vec()
}

/// Evenly spaced points, plus small ones of both signs.
fn sweep(lo: f32, hi: f32) -> Vec<f32> {
    let steps = 1_000_000_u32;
    let width = f64::from(hi) - f64::from(lo);
    let even =
        (0..=steps).map(|i| (f64::from(lo) + width * f64::from(i) / f64::from(steps)) as f32);
    let small = (0..2000).map(|i| 10_f32.powf(-8.0 + f32::from(i as i16) * 0.004));
    even.chain(small.flat_map(|x| [x, -x])).filter(|x| (lo..=hi).contains(x)).collect()
}

/// Greatest error over the inputs, each weighted by `scale(x, reference)`.
fn worst(
    function: fn(&Emitter, Val) -> Val,
    reference: impl Fn(f64) -> f64,
    inputs: &[f32],
    scale: impl Fn(f64, f64) -> f64,
) -> f64 {
    let outputs = evaluate(function, inputs);
    let mut worst = (0.0, 0.0, 0.0);
    for (&x, &y) in inputs.iter().zip(&outputs) {
        let (x, y) = (f64::from(x), f64::from(y));
        let right = reference(x);
        let error = (y - right).abs() / scale(x, right);
        assert!(!error.is_nan(), "f({x}) = {y}, expected {right}");
        if error > worst.0 {
            worst = (error, x, y);
        }
    }
    println!("worst error {:.2e} at {} -> {}", worst.0, worst.1, worst.2);
    worst.0
}

fn relative(_: f64, right: f64) -> f64 {
    right.abs().max(f64::MIN_POSITIVE)
}

fn absolute(_: f64, _: f64) -> f64 {
    1.0
}

fn grows(x: f64, _: f64) -> f64 {
    x.abs().max(1.0)
}

/// erf by its Maclaurin series and, further out, its continued fraction.
fn erf_reference(x: f64) -> f64 {
    let a = x.abs();
    let y = if a < 3.0 {
        let mut term = a;
        let mut sum = a;
        for n in 1..120 {
            let n = f64::from(n);
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let fraction = (1..60).rev().fold(a, |tail, n| a + f64::from(n) / 2.0 / tail);
        1.0 - (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    y.copysign(x)
}

#[test]
fn exp_is_accurate() {
    assert!(worst(exp, f64::exp, &sweep(-86.6, 88.72), relative) < 1.1e-7);
}

#[test]
fn exp_is_exact_where_it_must_be() {
    let inputs =
        [0.0, -0.0, f32::NEG_INFINITY, -1e30, -104.0, -88.0, 88.73, f32::INFINITY, f32::NAN];
    let outputs = evaluate(exp, &inputs);
    assert_eq!(outputs[..8], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY]);
    assert!(outputs[8].is_nan());
}

#[test]
fn log_is_accurate() {
    let mut inputs = sweep(1e-6, 20.0);
    inputs.extend((1..=2_139_095).map(|i| f32::from_bits(i * 1000)));
    let scale = |_: f64, right: f64| right.abs().max(0.5);
    assert!(worst(log, f64::ln, &inputs, scale) < 1.2e-7);
    let special = evaluate(log, &[0.0, -1.0, f32::INFINITY, f32::NAN, 1.0]);
    assert_eq!((special[0], special[2], special[4]), (f32::NEG_INFINITY, f32::INFINITY, 0.0));
    assert!(special[1].is_nan() && special[3].is_nan());
}

#[test]
fn sin_and_cos_are_accurate() {
    for limit in [8.0, 1e3, 1e5] {
        let inputs = sweep(-limit, limit);
        assert!(worst(sin, f64::sin, &inputs, absolute) < 1e-7);
        assert!(worst(cos, f64::cos, &inputs, absolute) < 1e-7);
    }
    assert!(worst(sin, f64::sin, &sweep(-0.7, 0.7), relative) < 1.2e-7);
    assert!(evaluate(sin, &[f32::INFINITY, f32::NAN]).iter().all(|y| y.is_nan()));
}

#[test]
fn tanh_and_erf_are_accurate_and_bounded() {
    let inputs = sweep(-12.0, 12.0);
    assert!(worst(tanh, f64::tanh, &inputs, relative) < 3.5e-7);
    assert!(worst(erf, erf_reference, &inputs, relative) < 3.6e-7);
    for function in [tanh, erf] {
        let inputs = [f32::INFINITY, f32::NEG_INFINITY, 0.0, f32::NAN, 5.0, 8.9, 9.5];
        let outputs = evaluate(function, &inputs);
        assert!((outputs[0] - 1.0).abs() < 4e-7 && (outputs[1] + 1.0).abs() < 4e-7);
        assert!(outputs[2] == 0.0 && outputs[3].is_nan());
        assert!(outputs.iter().all(|y| y.is_nan() || y.abs() <= 1.0));
    }
}

#[test]
fn activations_are_accurate() {
    let inputs = sweep(-30.0, 30.0);
    let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
    let gelu = |x: f64| 0.5 * x * (1.0 + erf_reference(x / 2_f64.sqrt()));
    let inner = |x: f64| (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
    assert!(worst(sigmoid, logistic, &inputs, relative) < 3e-7);
    assert!(worst(silu, |x| x * logistic(x), &inputs, relative) < 3e-7);
    assert!(worst(gelu_erf, gelu, &inputs, grows) < 3e-7);
    assert!(worst(gelu_tanh, |x| 0.5 * x * (1.0 + inner(x).tanh()), &inputs, grows) < 4e-7);
    assert_eq!(evaluate(relu, &[-1.0, 0.0, 2.0]), [0.0, 0.0, 2.0]);
    assert!(evaluate(relu, &[f32::NAN])[0].is_nan());
}

#[test]
fn roots_are_correctly_rounded() {
    let inputs = sweep(1e-3, 1e3);
    let expected: Vec<f32> = inputs.iter().map(|x| 1.0 / x.sqrt()).collect();
    assert_eq!(evaluate(rsqrt, &inputs), expected);
}
