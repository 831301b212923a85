//! Orders of elements: to the last index, over lengths around a pool's and a block's.

use std::sync::Arc;

use ir::{Attrs, Bounds, DType, Dim, Env, Layout, Symbols, Tensor};

use super::run::{Case, Runner, noise};

/// Runs all cases and compares every result with the interpreter, exactly.
fn check(cases: &[Case]) {
    let (specs, wanted): (Vec<_>, Vec<_>) = cases.iter().map(Case::expected).unzip();
    let runner = Runner::new(specs);
    for (i, (case, want)) in cases.iter().zip(&wanted).enumerate() {
        for parts in [1, 3] {
            same(case, &runner.run(i, &case.args, &Env::new(), parts), want);
        }
    }
}

fn same(case: &Case, got: &[Tensor], want: &[Tensor]) {
    for (r, (got, want)) in got.iter().zip(want).enumerate() {
        let pairs = got.to_f64s().into_iter().zip(want.to_f64s());
        for (i, (g, w)) in pairs.enumerate() {
            let same = g.to_bits() == w.to_bits() || (g.is_nan() && w.is_nan());
            assert!(same, "{} {:?}: element {i} of {r} is {g}, not {w}", case.op, case.attrs);
        }
    }
}

fn topk(x: &Tensor, axis: i64, k: i64, largest: bool) -> Case {
    let attrs = Attrs::none().with("k", vec![Dim::from(k)]).with("axis", axis);
    Case::new("topk", attrs.with("largest", largest), &[x])
}

/// Numbers in `0..levels` as if drawn at random: many are equal.
fn levels(dtype: DType, shape: &[usize], levels: f64) -> Tensor {
    let values = noise(DType::F64, shape, 11).to_f64s();
    Tensor::from_f64s(dtype, shape, values.into_iter().map(|v| (v * levels).floor()))
}

#[test]
fn the_best_of_long_rows() {
    let mut cases = Vec::new();
    for (n, k) in [(257, 1), (331, 7), (4099, 50), (20011, 256), (641, 300), (129, 129)] {
        let shape = [2, n];
        let rising: Vec<f64> = (0..2 * n).map(|i| i as f64).collect();
        let falling: Vec<f64> = rising.iter().map(|v| -v).collect();
        for x in [
            noise(DType::F32, &shape, n as u64),
            Tensor::from_f64s(DType::F32, &shape, rising),
            Tensor::from_f64s(DType::F32, &shape, falling),
            levels(DType::F32, &shape, 3.0),
            Tensor::from_f64s(DType::F32, &shape, vec![f64::NAN; 2 * n]),
        ] {
            cases.push(topk(&x, -1, k, true));
            cases.push(topk(&x, 1, k, false));
        }
    }
    check(&cases);
}

#[test]
fn every_element_type_at_the_ends_of_its_range() {
    let mut cases = Vec::new();
    for dtype in [DType::I64, DType::I32, DType::I16, DType::I8, DType::U8, DType::Bool] {
        let (lo, hi) = dtype.int_range().unwrap_or((0, 1));
        let ends = [lo, hi, 0, 1, hi - 1, hi, lo, (lo + 1).min(hi)];
        let values = (0..3 * 701).map(|i| ends[i * 5 % 8]);
        let x = Tensor::from_i64s(dtype, &[3, 701], values);
        for up in [true, false] {
            cases.push(topk(&x, 1, 9, up));
            let attrs = Attrs::none().with("descending", up);
            cases.push(Case::new("sort", attrs.clone().with("axis", 0i64), &[&x]));
            cases.push(Case::new("argsort", attrs, &[&x]));
        }
    }
    for dtype in [DType::F64, DType::F32, DType::Bf16, DType::F16] {
        let odd = [f64::INFINITY, -0.0, 0.0, f64::NAN, -1e-7, 1e-7, f64::NEG_INFINITY, -3.5];
        let values = (0..3 * 701).map(|i| odd[i * 5 % 8]).collect::<Vec<_>>();
        let x = Tensor::from_f64s(dtype, &[3, 701], values);
        for up in [true, false] {
            cases.push(topk(&x, 1, 400, up));
            cases.push(topk(&x, 1, 9, up));
            cases.push(topk(&noise(dtype, &[2, 5003], 5), 1, 9, up));
            let attrs = Attrs::none().with("descending", up);
            cases.push(Case::new("sort", attrs, &[&noise(dtype, &[2, 1009], 6)]));
        }
    }
    check(&cases);
}

#[test]
fn rows_of_a_symbolic_length() {
    let mut symbols = Symbols::default();
    symbols.insert("N".into(), Bounds { lo: 2, hi: 3000 });
    symbols.insert("K".into(), Bounds { lo: 0, hi: 40 });
    let case = |op: &'static str, n: usize, k: i64| {
        let x = levels(DType::Bf16, &[n, 3], 50.0);
        match op {
            "topk" => topk(&x, 0, k, true),
            _ => Case::new(op, Attrs::none().with("axis", 0i64), &[&x]),
        }
    };
    let mut specs = Vec::new();
    for op in ["topk", "sort", "argsort"] {
        let (mut spec, _) = case(op, 5, 2).expected();
        let resize = |layout: &mut Layout, to: &str| {
            layout.ty.shape[0] = Dim::symbol(to);
            *layout = Layout::contiguous(&layout.ty);
        };
        spec.operands.iter_mut().flatten().for_each(|l| resize(l, "N"));
        spec.results.iter_mut().for_each(|l| resize(l, if op == "topk" { "K" } else { "N" }));
        spec.symbols = Arc::new(symbols.clone());
        specs.push(spec);
    }
    let runner = Runner::new(specs);
    for (i, op) in ["topk", "sort", "argsort"].into_iter().enumerate() {
        for (n, k) in [(2, 1), (64, 40), (227, 3), (2999, 40), (2999, 0)] {
            let case = case(op, n, k);
            let env = Env::from([("N".into(), n as i64), ("K".into(), k)]);
            same(&case, &runner.run(i, &case.args, &env, 2), &case.expected().1);
        }
    }
}
