//! Products of the training step.

use ir::{Attrs, DType, Dim, Target, Tensor};

use super::{
    case::{Case, first_far, noise},
    device::{Same, Trial, ptx_of, run_text, targets},
    products::{check, check_to},
};

/// Rows, columns and inner dimension; the type of the weight, which f32 rows are rounded to.
fn linear_grad(what: &str, [t, n, k]: [usize; 3], x: DType, w: DType) {
    let dy = noise(x, w, &[t, n], 1);
    let x = noise(x, w, &[t, k], 2);
    let w = noise(w, w, &[n, k], 3);
    let case = Case::new("linear_grad", Attrs::none(), &[Some(&dy), Some(&x), Some(&w)]);
    let _ = check(&format!("{what}, {}", w.dtype()), &case.with_rows(&[0, 1]).with_fixed(&[1]));
}

#[test]
fn gradients_of_products() {
    use DType::{Bf16, F16, F32};
    for w in [F32, Bf16, F16] {
        linear_grad("whole", [96, 64, 72], F32, w);
        linear_grad("odd", [37, 41, 19], F32, w);
        linear_grad("one row", [1, 16, 8], F32, w);
    }
    linear_grad("several tiles", [70, 136, 200], F32, Bf16);
    linear_grad("narrow rows", [40, 48, 80], Bf16, Bf16);
}

/// `xᵀ · dy` of so many tokens, of which k is one; both in a narrow type, the result in f32.
fn weight_gradient(what: &str, [t, m, n]: [usize; 3], dtype: DType) {
    let x = noise(DType::F32, dtype, &[m, t], 1);
    let dy = noise(DType::F32, dtype, &[t, n], 2);
    let mut case = Case::new("matmul", Attrs::none(), &[Some(&x), Some(&dy)]).transposed(&[0]);
    let (mut spec, want) = case.expected();
    for (i, operand) in spec.operands.iter_mut().flatten().enumerate() {
        operand.ty.dtype = dtype;
        operand.ty.shape[1 - i] = Dim::symbol("T");
        case.args[i] = case.args[i].as_ref().map(|arg| arg.cast(dtype));
    }
    case.rows = vec![1];
    // A device so small that no tile is shared.
    let mut small = Target::sm_90a();
    small.cuda.as_mut().expect("a GPU").multiprocessors = 1;
    for target in targets().iter().chain([&small]) {
        let (family, case, spec, want) = ("products", &case, &spec, &want[..]);
        let same = if *target == small { &[][..] } else { &[Same::Variants] };
        let trial = Trial { what, family, case, spec, target, want, tolerance: 1e-5, same };
        let kernels = case.kernels(spec, target);
        let bulk = target.cpu == "sm_90a" && m >= 64 && n >= 32 && m % 8 == 0 && n % 8 == 0;
        for (seed, kernel) in (0..).zip(&kernels) {
            let (_, report) = trial.run(kernel, seed);
            assert!(m % 8 != 0 || report.bank_conflicts == 0, "{what}: bank conflicts");
            assert_eq!(ptx_of(kernel, target).contains("wgmma"), bulk, "{what}");
            assert_eq!(kernel.cluster > 1, bulk && *target != small, "{what}");
        }
    }
}

#[test]
fn gradients_of_weights() {
    use DType::{Bf16, F16};
    weight_gradient("whole tiles of a weight", [128, 128, 128], Bf16);
    weight_gradient("tails of a weight", [200, 136, 200], Bf16);
    weight_gradient("several tiles of a weight", [70, 272, 328], F16);
    weight_gradient("one token's weight", [1, 64, 32], Bf16);
    weight_gradient("a weight of long sums", [1100, 128, 192], Bf16);
    weight_gradient("a small weight", [40, 24, 16], Bf16);
    weight_gradient("an odd weight", [40, 67, 35], Bf16);
}

/// Blocks that share a tile: what they forget shows.
#[test]
fn parts_of_a_sum_meet() {
    let dtype = DType::Bf16;
    let x = noise(DType::F32, dtype, &[64, 300], 1);
    let dy = noise(DType::F32, dtype, &[300, 64], 2);
    let mut case = Case::new("matmul", Attrs::none(), &[Some(&x), Some(&dy)]).transposed(&[0]);
    let (mut spec, want) = case.expected();
    for (i, operand) in spec.operands.iter_mut().flatten().enumerate() {
        operand.ty.dtype = dtype;
        case.args[i] = case.args[i].as_ref().map(|arg| arg.cast(dtype));
    }
    let target = Target::sm_90a();
    let kernel = &case.kernels(&spec, &target)[0];
    assert_eq!(kernel.cluster, 4);
    let text = ptx_of(kernel, &target);
    for (from, to) in [
        // The other warpgroup still multiplies from where sums are put.
        ("bar.sync 1, 256;", ""),
        // Parts of others are read before they are there.
        ("barrier.cluster.wait.acquire.aligned;", ""),
        ("barrier.cluster.arrive.release.aligned;", "barrier.cluster.arrive.relaxed.aligned;"),
    ] {
        assert!(text.contains(from), "there is no {from}");
        let text = text.replace(from, to);
        let seen = (0..4).any(|seed| match run_text(&text, &case, &spec, kernel, &target, seed) {
            Ok((got, _)) => first_far(&got[0], &want[0], 1e-5).is_some(),
            Err(_) => true,
        });
        assert!(seen, "{to} went unnoticed");
    }
}

/// The case, and the same for one of its rows alone.
fn losses(op: &'static str, [t, n, k]: [usize; 3], w: DType, row: usize) -> [Case; 2] {
    let x = noise(DType::F32, w, &[t, k], 1);
    let w = noise(w, w, &[n, k], 2);
    let target = |i: usize| if i % 5 == 3 { -100 } else { (i * 37 % n) as i64 };
    let targets = Tensor::from_i64s(DType::I32, &[t], (0..t).map(target));
    let dloss = noise(DType::F32, DType::F32, &[t], 3);
    let case = |x: &Tensor, targets: &Tensor, dloss: &Tensor| {
        let args = [Some(x), Some(&w), Some(targets), Some(dloss)];
        let args = if op.ends_with("dlogits") { &args[..] } else { &args[..3] };
        let rows: Vec<usize> = (0..args.len()).filter(|i| *i != 1).collect();
        Case::new(op, Attrs::none(), args).with_rows(&rows)
    };
    let one = |t: &Tensor| t.slice(0, row, 1, 1);
    [case(&x, &targets, &dloss), case(&one(&x), &one(&targets), &one(&dloss))]
}

#[test]
fn losses_of_the_head() {
    for op in ["linear_cross_entropy", "linear_cross_entropy_dlogits"] {
        for w in [DType::F32, DType::Bf16, DType::F16] {
            for (what, sizes) in [("whole", [70, 264, 40]), ("odd", [9, 37, 19])] {
                let [all, one] = losses(op, sizes, w, 6);
                let what = format!("{what} {op}, {w}");
                let (all, one) = (check(&what, &all), check(&format!("a row, {what}"), &one));
                for (all, one) in all.iter().zip(&one) {
                    assert_eq!(all.slice(0, 6, 1, 1).to_bytes(), one.to_bytes(), "{what}");
                }
            }
        }
    }
}

#[test]
fn gradients_of_the_head() {
    for w in [DType::F32, DType::Bf16, DType::F16] {
        for (what, sizes) in [("odd whole", [70, 264, 40]), ("odd", [9, 37, 19])] {
            let [case, _] = losses("linear_cross_entropy_dlogits", sizes, w, 6);
            let [Some(x), Some(weight), targets, dloss] = &case.args[..] else { unreachable!() };
            let args = [Some(x), Some(weight), targets.as_ref()];
            let lse =
                Case::new("linear_cross_entropy", Attrs::none(), &args).expected().1[1].clone();
            let lse = lse.cast(DType::F32);
            let args = [Some(x), Some(weight), targets.as_ref(), Some(&lse), dloss.as_ref()];
            let case = Case::new("linear_cross_entropy_grad", Attrs::none(), &args);
            let case = case.with_rows(&[0, 2, 3, 4]).with_fixed(&[1]);
            // Gradients of logits are rounded to the weight's type before they are multiplied.
            let tolerance = if w == DType::F32 { 1e-5 } else { 1e-2 };
            let _ = check_to(&format!("{what} gradients, {w}"), &case, tolerance);
        }
    }
}
