//! Mixtures of experts: rows do not depend on what shares the launch, and tokens find their way
//! back.

use std::sync::Arc;

use ir::{Attrs, Bounds, DType, Dim, Env, Layout, Symbols, Tensor};

use super::run::{Case, Runner, assert_close, noise};

/// Rows of each expert: none, few, and more than the direct way takes.
const ROWS: [usize; 6] = [5, 0, 61, 1, 0, 130];

fn offsets(rows: &[usize], first: usize) -> Tensor {
    let mut bounds = vec![first as i64];
    for n in rows {
        bounds.push(bounds[bounds.len() - 1] + *n as i64);
    }
    Tensor::from_i64s(DType::I32, &[bounds.len()], bounds)
}

/// Weights whose sums over k are about one.
fn weights(dtype: DType, shape: &[usize]) -> Tensor {
    let values = noise(DType::F64, shape, 3).to_f64s();
    Tensor::from_f64s(dtype, shape, values.into_iter().map(|v| v / 32.0))
}

/// Of one product: the specification for any number of rows, its rows symbolic.
fn symbolic(case: &Case) -> ir::KernelSpec {
    let (mut spec, _) = case.expected();
    let resize = |layout: &mut Layout| {
        layout.ty.shape[0] = Dim::symbol("R");
        *layout = Layout::contiguous(&layout.ty);
    };
    resize(spec.operands[0].as_mut().unwrap());
    spec.results.iter_mut().for_each(resize);
    let mut symbols = Symbols::default();
    symbols.insert("R".into(), Bounds { lo: 1, hi: 300 });
    spec.symbols = Arc::new(symbols);
    spec
}

#[test]
fn a_row_of_a_group_is_what_linear_makes_of_it() {
    let (n, k) = (83, 1201);
    for (dtype, gated) in [(DType::F32, false), (DType::Bf16, true), (DType::F16, false)] {
        let panels = 6 * (1 + usize::from(gated));
        let w = weights(dtype, &[ROWS.len(), panels, k, 16]);
        let bias = noise(DType::F32, &[ROWS.len(), n], 4);
        let attrs = Attrs::none().with("n", n as i64).with("act", "silu");
        let (many, single) = match gated {
            true => ("grouped_gated_linear", "gated_linear"),
            false => ("grouped_linear", "linear"),
        };
        let (lead, tail) = (3, 4);
        let total = lead + ROWS.iter().sum::<usize>() + tail;
        let x = noise(DType::F32, &[total, k], 5);
        let bounds = offsets(&ROWS, lead);
        let mut args = vec![&x, &w, &bounds];
        args.extend((!gated).then_some(&bias));
        let grouped = Case::new(many, attrs.clone(), &args);
        let weight = |e: usize| w.slice(0, e, 1, 1).reshape(&[panels, k, 16]);
        let plain = |e: usize, x: &Tensor| {
            let bias = bias.slice(0, e, 1, 1).reshape(&[n]);
            let weight = weight(e);
            let mut args = vec![x, &weight];
            args.extend((!gated).then_some(&bias));
            Case::new(single, attrs.clone(), &args)
        };
        let few = x.slice(0, 0, 2, 1);
        let runner = Runner::new(vec![symbolic(&grouped), symbolic(&plain(0, &few))]);
        let env = |rows: usize| Env::from([("R".into(), rows as i64)]);
        let wanted = grouped.expected().1.remove(0);
        for parts in [1, 2, 5] {
            let y = runner.run(0, &grouped.args, &env(total), parts).remove(0);
            assert_close(&format!("{many} {dtype}"), &y, &wanted, 1e-4);
            let mut first = lead;
            for (e, rows) in ROWS.into_iter().enumerate().filter(|(_, rows)| *rows > 0) {
                let ours = y.slice(0, first, rows, 1).to_bytes();
                let all = plain(e, &x.slice(0, first, rows, 1));
                let all = runner.run(1, &all.args, &env(rows), 1).remove(0);
                assert_eq!(ours, all.to_bytes(), "{many} {dtype}: expert {e}");
                let last = plain(e, &x.slice(0, first + rows - 1, 1, 1));
                let last = runner.run(1, &last.args, &env(1), 1).remove(0);
                assert_eq!(ours[ours.len() - 4 * n..], last.to_bytes(), "{many} {dtype}: row");
                first += rows;
            }
        }
    }
}

#[test]
fn tokens_are_sorted_by_expert_and_come_back() {
    let experts = 13;
    let draw = |tokens: usize, k: usize, seed: u64| {
        let drawn = noise(DType::F64, &[tokens, k], seed).to_f64s();
        let drawn = drawn.into_iter().map(|v| ((v + 1.0) * 7.5).floor() - 1.0);
        Tensor::from_f64s(DType::I32, &[tokens, k], drawn)
    };
    let mut cases = Vec::new();
    for (tokens, k) in [(1, 1), (97, 3), (511, 8)] {
        let picked = draw(tokens, k, tokens as u64);
        let attrs = Attrs::none().with("experts", experts);
        let permute = Case::new("moe_permute", attrs, &[&picked]);
        let slots = permute.expected().1.remove(1);
        for dtype in [DType::F32, DType::Bf16] {
            let y = noise(dtype, &[tokens * k, 53], 2);
            let weights = noise(dtype, &[tokens, k], 3);
            cases.push(Case::new("moe_combine", Attrs::none(), &[&y, &slots, &weights]));
        }
        cases.push(permute);
    }
    let (specs, wanted): (Vec<_>, Vec<_>) = cases.iter().map(Case::expected).unzip();
    let runner = Runner::new(specs);
    for (i, (case, want)) in cases.iter().zip(&wanted).enumerate() {
        let whole = runner.run(i, &case.args, &Env::new(), 1);
        let split = runner.run(i, &case.args, &Env::new(), 3);
        for ((whole, split), want) in whole.iter().zip(&split).zip(want) {
            assert_eq!(whole.to_bytes(), split.to_bytes(), "{} in parts", case.op);
            assert_close(case.op, whole, want, 2e-6);
        }
    }
}
