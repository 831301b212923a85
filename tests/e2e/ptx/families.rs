//! Kernels without tensor cores: every family, on both GPUs, in shapes with and without tails.

use ir::{Attr, Attrs, DType, KernelSpec, Tensor};

use super::{
    case::{Case, noise},
    device::{Trial, targets},
};

/// Runs the one kernel of a case on both GPUs under two orders of warps.
pub(super) fn check(what: &str, case: &Case, tolerance: f64) {
    let (spec, want) = case.expected();
    check_spec(what, case, &spec, &want, tolerance);
}

/// As [`check`], for a specification of one's own.
pub(super) fn check_spec(
    what: &str,
    case: &Case,
    spec: &KernelSpec,
    want: &[Tensor],
    tolerance: f64,
) {
    for target in targets() {
        let kernels = case.kernels(spec, &target);
        let [kernel] = &kernels[..] else { panic!("{what}: {} kernels", kernels.len()) };
        let (family, target) = ("families", &target);
        let trial = Trial { what, family, case, spec, target, want, tolerance, same: &[] };
        for seed in [1, 2] {
            let (_, report) = trial.run(kernel, seed);
            // Data alone says where these go in shared memory.
            if !matches!(spec.op, "topk" | "sort" | "argsort" | "scatter_nd" | "embedding_grad") {
                assert_eq!(report.bank_conflicts, 0, "{what}: bank conflicts");
            }
        }
    }
}

fn floats(shape: &[usize], seed: u64) -> Tensor {
    noise(DType::F32, DType::F32, shape, seed)
}

#[test]
fn norms_and_softmax() {
    let eps = || Attrs::none().with("eps", 1e-5);
    for (n, dtype) in [(37, DType::F32), (384, DType::Bf16), (1028, DType::F32), (4096, DType::F16)]
    {
        // The interpreter rounds narrow types at every step of the definition.
        let tolerance = if dtype == DType::F32 { 1e-5 } else { 1e-2 };
        let x = noise(dtype, dtype, &[3, n], 1);
        let [w, b] = [2, 3].map(|seed| noise(dtype, dtype, &[n], seed));
        let case = Case::new("rms_norm", eps(), &[Some(&x), Some(&w)]).with_rows(&[0]);
        check("rms_norm", &case, tolerance);
        let case = Case::new("layer_norm", eps(), &[Some(&x), Some(&w), Some(&b)]).with_rows(&[0]);
        check("layer_norm", &case, tolerance);
        let attrs = Attrs::none().with("axis", -1i64);
        check("softmax", &Case::new("softmax", attrs, &[Some(&x)]).with_rows(&[0]), tolerance);
    }
    let x = floats(&[2, 65], 1);
    check("l2_normalize", &Case::new("l2_normalize", eps(), &[Some(&x)]), 1e-5);
}

#[test]
fn reductions() {
    for op in ["reduce_sum", "reduce_sum_square", "reduce_max", "reduce_mean"] {
        for axes in [vec![-1], vec![0], vec![0, 2]] {
            let attrs =
                Attrs::none().with("axes", Attr::Ints(axes)).with("keep", Attr::Bool(false));
            let x = floats(&[3, 5, 67], 1);
            check(op, &Case::new(op, attrs, &[Some(&x)]), 1e-5);
        }
    }
}

/// What a block shares: columns of many rows, and rows that are long or of which there are few.
#[test]
fn reductions_of_many() {
    let attrs = |axes: &[i64]| {
        Attrs::none().with("axes", Attr::Ints(axes.to_vec())).with("keep", Attr::Bool(false))
    };
    for op in ["reduce_sum", "reduce_sum_square", "reduce_max", "reduce_mean"] {
        for (shape, axes, dtype) in [
            (&[301, 43][..], &[0][..], DType::F32),
            (&[1100, 96], &[0], DType::Bf16),
            (&[67, 3, 20], &[0], DType::F16),
            (&[67, 3, 20], &[0, 1], DType::F32),
            (&[1, 40], &[0], DType::F32),
            (&[70, 43], &[0, 1], DType::F32),
            (&[2, 2500], &[1], DType::Bf16),
            (&[35, 1100], &[1], DType::F32),
        ] {
            let x = noise(DType::F32, dtype, shape, 1);
            let case = Case::new(op, attrs(axes), &[Some(&x)]);
            let case = if axes.contains(&0) { case.with_rows(&[0]).with_fixed(&[0]) } else { case };
            let (mut spec, want) = case.expected();
            let mut case = case;
            spec.operands[0].as_mut().unwrap().ty.dtype = dtype;
            case.args[0] = Some(x.cast(dtype));
            let what = format!("{op} of {shape:?} {dtype} along {axes:?}");
            check_spec(&what, &case, &spec, &want, 1e-5);
        }
    }
    let x = Tensor::from_i64s(DType::I64, &[90, 3], (0..270).map(|i| i * i - 1000));
    let case = Case::new("reduce_sum", attrs(&[0]), &[Some(&x)]).with_rows(&[0]).with_fixed(&[0]);
    check("whole numbers", &case, 0.0);
}

#[test]
fn rotations() {
    for (style, size, half) in [("half", 16, 8), ("half", 20, 8), ("interleaved", 10, 5)] {
        let attrs = Attrs::none().with("style", style);
        let x = floats(&[7, 3, size], 1);
        let [cos, sin] = [2, 3].map(|seed| floats(&[7, half], seed));
        let args = [Some(&x), Some(&cos), Some(&sin)];
        check(style, &Case::new("rope", attrs, &args).with_rows(&[0, 1, 2]), 1e-6);
    }
}

#[test]
fn gathers_and_cache_writes() {
    let ints = |shape: &[usize], v: &[i64]| Tensor::from_i64s(DType::I32, shape, v.iter().copied());
    let axis = || Attrs::none().with("axis", 0i64);
    for width in [24, 13] {
        let table = noise(DType::Bf16, DType::Bf16, &[11, width], 1);
        let ids = ints(&[5], &[10, 0, -1, 11, 3]);
        check("gather", &Case::new("gather", axis(), &[Some(&table), Some(&ids)]), 0.0);
    }
    let half = |shape: &[usize], seed| noise(DType::F16, DType::F16, shape, seed);
    let (k, v) = (half(&[4, 2, 8, 16], 1), half(&[4, 2, 16, 7], 2));
    let (new_k, new_v) = (half(&[5, 2, 8], 3), half(&[5, 2, 7], 4));
    let slots = ints(&[5], &[17, 3, -1, 63, 0]);
    let args = [Some(&k), Some(&v), Some(&new_k), Some(&new_v), Some(&slots)];
    check("kv_write", &Case::new("kv_write", Attrs::none(), &args), 0.0);
}

#[test]
fn rotations_into_the_cache() {
    let ints = |shape: &[usize], v: &[i64]| Tensor::from_i64s(DType::I32, shape, v.iter().copied());
    // Heads of whole strips and of single elements; a grid of several blocks.
    let forms = [("half", 32, 16, 32), ("half", 11, 4, 7), ("interleaved", 10, 5, 8)];
    for (dtype, (style, size, half, value)) in
        [DType::Bf16, DType::F16, DType::F32].into_iter().zip(forms)
    {
        let memory = |shape: &[usize], seed| noise(dtype, dtype, shape, seed);
        let (k_cache, v_cache) = (memory(&[4, 2, size, 16], 1), memory(&[4, 2, 16, value], 2));
        let (q, k) = (floats(&[9, 8, size], 3), floats(&[9, 2, size], 4));
        let v = noise(DType::F32, DType::F32, &[9, 2, value], 5);
        let [cos, sin] = [6, 7].map(|seed| floats(&[9, half], seed));
        let slots = ints(&[9], &[17, 3, -1, 63, 0, -2, 40, 41, 16]);
        let args = [&k_cache, &v_cache, &q, &k, &v, &slots, &cos, &sin].map(Some);
        let case = Case::new("rope_kv_write", Attrs::none().with("style", style), &args);
        check(style, &case.with_rows(&[2, 3, 4, 5, 6, 7]).with_fixed(&[0, 1]), 1e-6);
    }
}

/// To memories of eight bits a warp has a head; the last ones have no whole number of lanes.
#[test]
fn rotations_into_the_cache_in_eight_bits() {
    let slots = [17, 3, -1, 63, 0, -2, 40, 41, 16];
    let slots = Tensor::from_i64s(DType::I32, &[9], slots);
    let forms = [
        (DType::I8, "half", 128, 64, 64),
        (DType::F8E4M3, "half", 64, 32, 128),
        (DType::I8, "interleaved", 10, 5, 8),
        (DType::F8E4M3, "half", 43, 9, 35),
    ];
    for (dtype, style, size, half, value) in forms {
        let memory = |shape: &[usize], seed| noise(dtype, DType::F32, shape, seed);
        let (k_cache, v_cache) = (memory(&[4, 2, size, 16], 1), memory(&[4, 2, 16, value], 2));
        let (q, k) = (floats(&[9, 8, size], 3), floats(&[9, 2, size], 4));
        let v = noise(DType::F32, DType::F32, &[9, 2, value], 5);
        let [cos, sin] = [6, 7].map(|seed| floats(&[9, half], seed));
        let [k_scales, v_scales] = [8, 9].map(|seed| floats(&[4, 2, 16], seed));
        let args = [&k_cache, &v_cache, &q, &k, &v, &slots, &cos, &sin, &k_scales, &v_scales];
        let attrs = Attrs::none().with("style", style);
        let case = Case::new("rope_kv_write", attrs, &args.map(Some));
        let case = case.with_rows(&[2, 3, 4, 5, 6, 7]).with_fixed(&[0, 1, 3, 4]);
        check(&format!("{style} to {dtype}"), &case, 1e-6);
    }
}

#[test]
fn loops() {
    let (x, y) = (floats(&[9, 64], 1), floats(&[9, 64], 2));
    for op in ["silu", "gelu", "exp", "tanh"] {
        check(op, &Case::new(op, Attrs::none(), &[Some(&x)]).with_rows(&[0]), 1e-6);
    }
    let both = [Some(&x), Some(&y)];
    check("add", &Case::new("add", Attrs::none(), &both).with_rows(&[0, 1]), 1e-6);
    let (row, odd) = (floats(&[64], 3), floats(&[9, 61], 4));
    check("mul by a row", &Case::new("mul", Attrs::none(), &[Some(&x), Some(&row)]), 1e-6);
    check("odd rows", &Case::new("neg", Attrs::none(), &[Some(&odd)]), 0.0);
    let transposed = Case::new("neg", Attrs::none(), &[Some(&odd)]).transposed(&[0]);
    check("exchanged axes", &transposed, 0.0);
    // Blocks of which all threads have two strips, and such that not all have one.
    for (rows, width) in [(70, 64), (9, 40), (5, 37)] {
        let half = |shape: &[usize], seed| noise(DType::Bf16, DType::Bf16, shape, seed);
        let (x, y, row) = (half(&[rows, width], 5), half(&[rows, width], 6), half(&[width], 7));
        let sum = Case::new("add", Attrs::none(), &[Some(&x), Some(&y)]).with_rows(&[0, 1]);
        check("halves", &sum, 1e-6);
        let product = Case::new("mul", Attrs::none(), &[Some(&x), Some(&row)]).with_rows(&[0]);
        check("halves by a row", &product, 1e-6);
    }
    let attrs = Attrs::none().with("to", Attr::DType(DType::Bf16));
    check("cast", &Case::new("cast", attrs, &[Some(&x)]), 1e-6);
}
