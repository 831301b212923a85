//! What training computes besides products and attention: updates, gradients of norms and tables,
//! panels of weights.

use ir::{Attrs, DType, Dim, Layout, NORM_GRAD_ROWS, Tensor};

use super::{
    case::{Case, noise},
    device::{Trial, targets},
    families::{check, check_spec},
};

fn random(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    noise(dtype, dtype, shape, seed)
}

#[test]
fn updates_in_place() {
    let scalar = |x: f64| Tensor::from_f64s(DType::F32, &[], [x]);
    let scalars = [0.01, 0.271, 0.1426, 0.5].map(scalar);
    let [lr, c1, c2, scale] = &scalars;
    for (shape, dtype) in
        [(&[2051][..], DType::F32), (&[37, 64], DType::Bf16), (&[3, 5, 7], DType::F16)]
    {
        let (p, g) = (random(DType::F32, shape, 1), random(dtype, shape, 2));
        let m = random(DType::F32, shape, 3);
        let v = Tensor::from_f64s(DType::F32, shape, m.to_f64s().iter().map(|x| x * x + 1e-4));
        let betas = Attrs::none().with("beta1", 0.9).with("beta2", 0.95);
        let decayed = betas.with("weight_decay", 0.1);
        let adam = decayed.clone().with("eps", 1e-8);
        let momentum = Attrs::none().with("momentum", 0.9).with("nesterov", true);
        let keep = scalar(0.9);
        let cases: [(&'static str, Attrs, Vec<&Tensor>); 5] = [
            ("accumulate", Attrs::none(), vec![&p, &g, &keep]),
            ("adamw_step", adam, vec![&p, &g, &m, &v, lr, c1, c2, scale]),
            ("lion_step", decayed, vec![&p, &g, &m, lr, scale]),
            ("sgd_step", Attrs::none(), vec![&p, &g, lr, scale]),
            ("sgd_momentum_step", momentum, vec![&p, &g, &m, lr, scale]),
        ];
        for (op, attrs, args) in cases {
            let args: Vec<_> = args.into_iter().map(Some).collect();
            let rows: Vec<usize> =
                (0..args.len()).filter(|i| args[*i].unwrap().rank() > 0).collect();
            check(op, &Case::new(op, attrs.clone(), &args), 2e-6);
            check(op, &Case::new(op, attrs, &args).with_rows(&rows), 2e-6);
        }
    }
}

#[test]
fn gradients_of_norms() {
    for (rows, width) in [(1, 1), (67, 131), (130, 64), (65, 1028)] {
        for centred in [false, true] {
            let attrs = Attrs::none().with("eps", 1e-5).with("centred", centred);
            for dtype in [DType::F32, DType::Bf16] {
                let x = random(dtype, &[rows, width], 1);
                let w = random(dtype, &[width], 2);
                let dy = random(dtype, &[rows, width], 3);
                let case = Case::new("norm_grad", attrs.clone(), &[Some(&x), Some(&w), Some(&dy)]);
                let case = case.with_rows(&[0, 2]);
                let (mut spec, want) = case.expected();
                let blocks = Dim::symbol("T").ceil_div(NORM_GRAD_ROWS as i64);
                for sums in &mut spec.results[1..] {
                    sums.ty.shape[0] = blocks.clone();
                    *sums = Layout::contiguous(&sums.ty);
                }
                let what = format!("norm_grad {rows}x{width} {dtype}, centred: {centred}");
                check_spec(&what, &case, &spec, &want, 2e-4);
            }
        }
    }
    for (width, rounded) in [(128, DType::F32), (128, DType::Bf16), (37, DType::F16)] {
        let [x, dy, residual] = [1, 3, 4].map(|seed| random(DType::F32, &[67, width], seed));
        let w = random(DType::F32, &[width], 2);
        let attrs = Attrs::none().with("eps", 1e-5).with("centred", true);
        let attrs = attrs.with("rounded", rounded);
        let args = [Some(&x), Some(&w), Some(&dy), Some(&residual)];
        let case = Case::new("norm_grad", attrs, &args).with_rows(&[0, 2, 3]);
        let (mut spec, want) = case.expected();
        for sums in &mut spec.results[1..3] {
            sums.ty.shape[0] = Dim::symbol("T").ceil_div(NORM_GRAD_ROWS as i64);
            *sums = Layout::contiguous(&sums.ty);
        }
        let what = format!("norm_grad of {width} with a residual, {rounded} too");
        check_spec(&what, &case, &spec, &want, 2e-4);
    }
    let [x, dy] = [1, 3].map(|seed| random(DType::F32, &[67, 21], seed));
    let w = random(DType::F32, &[21], 2);
    let attrs = Attrs::none().with("eps", 1e-5).with("centred", true);
    let case = Case::new("norm_grad", attrs, &[Some(&x), Some(&w), Some(&dy)]);
    check("exchanged axes", &case.transposed(&[0]), 2e-4);
}

/// Rows of so many logits that begin so far apart: losses alone, and with gradients in a type.
#[test]
fn losses_of_logits() {
    for (rows, words, pitch, dtype) in [
        (3, 37, 37, DType::F32),
        (2, 1000, 1000, DType::F16),
        (4, 261, 264, DType::Bf16),
        (2, 9_157, 9_160, DType::Bf16),
        (1, 3, 8, DType::F32),
    ] {
        let logits = random(DType::F32, &[rows, words], 1).to_f64s();
        let logits = logits.into_iter().enumerate();
        let logits = logits.map(|(i, x)| if i % words == 2 { f64::NEG_INFINITY } else { 9.0 * x });
        let logits = Tensor::from_f64s(DType::F32, &[rows, words], logits);
        let target = |row: usize| if row == 1 { -100 } else { (row * 37 % words) as i64 };
        let targets_of_rows = Tensor::from_i64s(DType::I32, &[rows], (0..rows).map(target));
        let dloss = random(DType::F32, &[rows], 3);
        let args = [Some(&logits), Some(&targets_of_rows), Some(&dloss)];
        for target in targets() {
            let losses = [2, 3].map(|count| {
                let rows: Vec<usize> = (0..count).collect();
                let case = Case::new("cross_entropy", Attrs::none(), &args[..count]);
                let case = case.with_rows(&rows);
                let (mut spec, want) = case.expected();
                let logits = spec.operands[0].as_mut().unwrap();
                logits.strides[0] = Dim::from(pitch as i64);
                if let Some(dlogits) = spec.results.get_mut(1) {
                    dlogits.strides[0] = Dim::from(pitch as i64);
                    dlogits.ty.dtype = dtype;
                }
                let kernels = case.kernels(&spec, &target);
                let [kernel] = &kernels[..] else { panic!("{} kernels", kernels.len()) };
                let what = &format!("losses of {words} words, {count} operands");
                let (family, spec, want) = ("families", &spec, &want[..]);
                let (case, target) = (&case, &target);
                let trial =
                    Trial { what, family, case, spec, target, want, tolerance: 2e-6, same: &[] };
                let (mut got, report) = trial.run(kernel, 1);
                assert_eq!(report.bank_conflicts, 0, "{what}: bank conflicts");
                got.swap_remove(0).to_bytes()
            });
            assert_eq!(losses[0], losses[1], "{words} words: what gradients change of losses");
        }
    }
}

#[test]
fn gradients_of_tables() {
    for (rows, width, tokens) in [(1, 1, 3), (13, 67, 257), (70, 64, 2100), (5, 1, 4100)] {
        let ids = (0..tokens).map(|t| (t * 7919 + t * t) as i64 % (rows + 2) - 1);
        let ids = Tensor::from_i64s(DType::I64, &[tokens], ids);
        for dtype in [DType::F32, DType::F16] {
            let dy = random(dtype, &[tokens, width], 1);
            let attrs = Attrs::none().with("rows", rows);
            let case = Case::new("embedding_grad", attrs, &[Some(&dy), Some(&ids)]);
            let case = case.with_rows(&[0, 1]);
            let (mut spec, want) = case.expected();
            spec.results[0].ty.shape[0] = Dim::from(rows);
            let what = format!("embedding_grad {rows} {width} {tokens} {dtype}");
            check_spec(&what, &case, &spec, &want, 1e-5);
        }
    }
    let dy = random(DType::F32, &[31, 33], 1);
    let ids = Tensor::from_i64s(DType::I32, &[31], (0..31).map(|t| t % 4));
    let attrs = Attrs::none().with("rows", 4i64);
    let case = Case::new("embedding_grad", attrs, &[Some(&dy), Some(&ids)]);
    check("exchanged axes", &case.transposed(&[0]), 1e-5);
}

#[test]
fn matrices_are_packed_from_any_layout() {
    for (k, n) in [(1, 1), (37, 16), (9, 33)] {
        for dtype in [DType::F32, DType::Bf16] {
            let case = Case::new("pack", Attrs::none(), &[Some(&random(dtype, &[k, n], 1))]);
            check("pack", &case, 0.0);
            check("pack", &case.transposed(&[0]), 0.0);
        }
    }
    let experts = random(DType::F32, &[3, 5, 18], 3);
    check("experts", &Case::new("pack", Attrs::none(), &[Some(&experts)]), 0.0);
}
