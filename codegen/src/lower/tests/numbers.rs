//! Numbers at the ends of their types, to the last bit: conversions, remainders, means of nothing.

use std::sync::Arc;

use ir::{Attrs, DType, Env, Layout, Tensor};

use super::run::{Case, Runner, type_of};

/// Runs all cases and compares with the interpreter exactly.
fn check(cases: &[Case]) {
    let (specs, wanted): (Vec<_>, Vec<_>) = cases.iter().map(Case::expected).unzip();
    let runner = Runner::new(specs);
    for (i, (case, want)) in cases.iter().zip(&wanted).enumerate() {
        let got = runner.run(i, &case.args, &Env::new(), 1).remove(0);
        let pairs = got.to_f64s().into_iter().zip(want[0].to_f64s());
        for (j, (g, w)) in pairs.enumerate() {
            let same = g == w || (g.is_nan() && w.is_nan());
            assert!(
                same,
                "{} {:?} {:?}: element {j} is {g}, not {w}",
                case.op, case.attrs, case.args
            );
        }
    }
}

fn cast(x: &Tensor, to: DType) -> Case {
    Case::new("cast", Attrs::none().with("to", to), &[x])
}

const NAN: f64 = f64::NAN;
const INF: f64 = f64::INFINITY;

#[test]
fn floats_beyond_an_integers_range_give_its_end() {
    let mut values = vec![NAN, INF, -INF, 0.0, -0.5, 255.9, 300.0, -129.0, 32768.0, 3e9, -3e9];
    values.extend([2147483520.0, 2147483648.0, -2147483648.0, 1e19, -1e19, 9223372036854775808.0]);
    let mut cases = Vec::new();
    for from in [DType::F64, DType::F32, DType::Bf16, DType::F16] {
        let x = Tensor::from_f64s(from, &[values.len()], values.clone());
        for to in [DType::I64, DType::I32, DType::I16, DType::I8, DType::U8, DType::Bool] {
            cases.push(cast(&x, to));
        }
    }
    let saturated = Tensor::from_f64s(DType::I32, &[3], [3e9, -INF, NAN]);
    assert_eq!(saturated.to_i64s(), [i64::from(i32::MAX), i64::from(i32::MIN), 0]);
    check(&cases);
}

#[test]
fn doubles_round_once_to_narrow_floats() {
    // Just above, at and just below the middle between two neighbours, where rounding to f32 first
    // gives the middle for all three.
    let around = |low: f64, unit: f64| {
        [-1.0, 0.0, 1.0].map(|side| low + unit / 2.0 + side * unit * 2f64.powi(-36))
    };
    let mut values = vec![NAN, INF, -INF, 0.0, 1e300, -1e300, 1e-300, -1e-42, 65519.999, 65520.0];
    for (low, unit) in [(1.0, 2f64.powi(-10)), (1.0, 2f64.powi(-7)), (-3.0, -2f64.powi(-9))] {
        values.extend(around(low, unit));
        values.extend(around(low + unit, unit));
    }
    values.extend(around(3.0 * 2f64.powi(-24), 2f64.powi(-24)));
    values.extend(around(2f64.powi(-133), 2f64.powi(-133)));
    let x = Tensor::from_f64s(DType::F64, &[values.len()], values);
    check(&[DType::F16, DType::Bf16].map(|to| cast(&x, to)));
    let middle = Tensor::from_f64s(DType::F64, &[2], [1.0 + 2f64.powi(-8), 1.0 + 2f64.powi(-11)]);
    let above: Vec<f64> = middle.to_f64s().iter().map(|v| v + 2f64.powi(-45)).collect();
    let above = |to| Tensor::from_f64s(to, &[2], above.clone()).to_f64s();
    assert_eq!(above(DType::Bf16)[0], 1.0 + 2f64.powi(-7));
    assert_eq!(above(DType::F16)[1], 1.0 + 2f64.powi(-10));
}

#[test]
fn remainders_of_floats_are_exact() {
    let values =
        [0.0, 5.0, -5.5, 3.0, 0.1, 1e10, -1e10, 7e-30, 1e-45, 3.4e38, -3.4e38, INF, -INF, NAN];
    let pairs = || values.iter().flat_map(|a| values.iter().map(move |b| (*a, *b)));
    let count = values.len() * values.len();
    let case = |dtype| {
        let a = Tensor::from_f64s(dtype, &[count], pairs().map(|p| p.0));
        let b = Tensor::from_f64s(dtype, &[count], pairs().map(|p| p.1));
        Case::new("rem", Attrs::none(), &[&a, &b])
    };
    let doubles = |values: [f64; 6]| Tensor::from_f64s(DType::F64, &[6], values);
    let far = [
        doubles([1e300, -1e300, 1e17, f64::MAX, 3.0, 1e-300]),
        doubles([3.0, 0.7, 1e-5, 1.1, 1e-300, 3e-323]),
    ];
    let far = Case::new("rem", Attrs::none(), &[&far[0], &far[1]]);
    check(&[case(DType::F32), case(DType::Bf16), case(DType::F64), far]);
}

#[test]
fn the_mean_of_no_integers_is_zero() {
    let attrs = Attrs::none().with("axes", vec![0]).with("keep", false);
    let none = Tensor::from_i64s(DType::I64, &[0], []);
    let some = Tensor::from_i64s(DType::I64, &[5], [-7, 3, 9, -100, 4]);
    let (mut spec, _) = Case::new("reduce_mean", attrs.clone(), &[&some]).expected();
    let mut ty = type_of(&some);
    ty.shape[0] = ir::Dim::symbol("N");
    spec.operands[0] = Some(Layout::contiguous(&ty));
    let runner = Runner::new(vec![spec]);
    for x in [some, none] {
        let want = Case::new("reduce_mean", attrs.clone(), &[&x]).expected().1;
        let env = Env::from([(Arc::from("N"), x.len() as i64)]);
        assert_eq!(runner.run(0, &[Some(x)], &env, 1), want);
    }
}

#[test]
fn numbers_that_are_too_small_for_a_scale_become_zeros() {
    let mut values = vec![0.0; 4 * 64];
    for (i, least) in [1e-38, 3e-37, 1e-45, 1e-30].into_iter().enumerate() {
        values[64 * i..][..64].fill(-least / 2.0);
        values[64 * i + 5] = least;
        values[64 * i + 40] = least;
    }
    let x = Tensor::from_f64s(DType::F32, &[4, 64], values);
    let mut cases = vec![Case::new("quantize_heads", Attrs::none(), &[&x])];
    for bits in [4i64, 8] {
        let attrs = Attrs::none().with("weight_bits", bits);
        cases.push(Case::new("quantize_rows", attrs, &[&x]));
    }
    let integers = cases[0].expected().1.remove(0);
    assert!(integers.slice(0, 0, 3, 1).to_i64s().iter().all(|q| *q == 0));
    assert!(integers.slice(0, 3, 1, 1).to_i64s().contains(&127));
    cases.push(Case::new("quantize_heads", Attrs::none().with("format", "e4m3"), &[&x]));
    let floats = cases[cases.len() - 1].expected().1.remove(0);
    assert!(floats.slice(0, 0, 3, 1).to_f64s().iter().all(|q| *q == 0.0));
    assert!(floats.slice(0, 3, 1, 1).to_f64s().contains(&448.0));
    check(&cases);
}
