//! Products on tensor cores: every variant, shapes with tails in every direction, and one result
//! whatever the number of rows.

use ::ptx::FaultKind;
use ir::{Attrs, DType, Dim, Target, Tensor};

use super::{
    case::{Case, first_far, noise},
    device::{Same, Trial, ptx_of, run_text, targets},
};

/// A product with a packed weight of `n` columns.
pub(super) fn linear(rows: usize, k: usize, n: usize, x: DType, w: DType, act: &str) -> Case {
    let attrs = Attrs::none().with("n", n as i64).with("act", act);
    let x = noise(x, w, &[rows, k], 1);
    let w = noise(w, w, &[n.div_ceil(16), k, 16], 2);
    if act == "none" {
        return Case::new("linear", attrs, &[Some(&x), Some(&w)]).with_rows(&[0]);
    }
    let bias = noise(x.dtype(), x.dtype(), &[n], 3);
    let residual = noise(x.dtype(), x.dtype(), &[rows, n], 4);
    let args = [Some(&x), Some(&w), Some(&bias), Some(&residual)];
    Case::new("linear", attrs, &args).with_rows(&[0, 3])
}

pub(super) fn gated(rows: usize, k: usize, n: usize, x: DType, w: DType) -> Case {
    let attrs = Attrs::none().with("n", n as i64).with("act", "silu");
    let x = noise(x, w, &[rows, k], 1);
    let w = noise(w, w, &[2 * n.div_ceil(16), k, 16], 2);
    Case::new("gated_linear", attrs, &[Some(&x), Some(&w)]).with_rows(&[0])
}

fn matmul(rows: usize, k: usize, n: usize, dtype: DType) -> Case {
    let a = noise(dtype, dtype, &[rows, k], 1);
    let b = noise(dtype, dtype, &[k, n], 2);
    Case::new("matmul", Attrs::none(), &[Some(&a), Some(&b)]).with_rows(&[0])
}

/// Runs every variant; asserts that all agree bit for bit, and with the interpreter. Unless rows
/// are `odd`, and copied in words or less, no two accesses may meet in a bank of shared memory.
/// Returns the results on the last GPU.
pub(super) fn check(what: &str, case: &Case) -> Vec<Tensor> {
    check_to(what, case, 1e-5)
}

/// As [`check`], to another tolerance.
pub(super) fn check_to(what: &str, case: &Case, tolerance: f64) -> Vec<Tensor> {
    let odd = what.contains("odd");
    let mut results = Vec::new();
    let (spec, want) = case.expected();
    for target in targets() {
        let kernels = case.kernels(&spec, &target);
        let mut first: Option<Vec<u8>> = None;
        let trial = Trial {
            what,
            family: "products",
            case,
            spec: &spec,
            target: &target,
            want: &want,
            tolerance,
            same: &[Same::Variants],
        };
        for (seed, kernel) in (0..).zip(&kernels) {
            let (got, report) = trial.run(kernel, seed);
            let conflicts = report.bank_conflicts;
            assert!(odd || conflicts == 0, "{what}: bank conflicts in {}", kernel.symbol);
            let bits: Vec<u8> = got.iter().flat_map(Tensor::to_bytes).collect();
            assert!(first.get_or_insert(bits.clone()) == &bits, "{what}: variants disagree");
            results = got;
        }
    }
    results
}

#[test]
fn packed_weights() {
    use DType::{Bf16, F16, F32};
    let _ = check("few rows", &linear(5, 272, 96, Bf16, Bf16, "none"));
    let _ = check("few f32 rows", &linear(3, 392, 64, F32, Bf16, "none"));
    let _ = check("aligned", &linear(70, 128, 96, Bf16, Bf16, "none"));
    let _ = check("odd k", &linear(5, 19, 37, Bf16, Bf16, "none"));
    let _ = check("f32 rows", &linear(17, 72, 50, F32, Bf16, "gelu"));
    let _ = check("odd f32 rows", &linear(3, 19, 37, F32, F16, "silu"));
    let _ = check("several tiles", &linear(131, 80, 271, F16, F16, "relu"));
    let _ = check("tiles of 224 columns", &linear(129, 72, 448, Bf16, Bf16, "none"));
    let _ = check("tiles of 256 columns", &linear(129, 72, 500, F32, Bf16, "none"));
}

/// Kernels for few rows read their weight, and nothing else, before they wait for other grids; what
/// the emulator says where a declaration is missing shows that it looks.
#[test]
fn few_rows_read_their_weight_early() {
    for x in [DType::Bf16, DType::F32] {
        let case = linear(3, 1416, 96, x, DType::Bf16, "silu");
        let (spec, _) = case.expected();
        let target = Target::sm_90a();
        let mut kernel = case.kernels(&spec, &target).remove(0);
        assert_eq!(kernel.early, [1]);
        let text = ptx_of(&kernel, &target);
        let wait = "griddepcontrol.wait;";
        assert_eq!(text.matches(wait).count(), 2, "copying and multiplying warps");
        assert!(text.contains("cp.async.bulk.prefetch.L2.global"), "more than the ring holds");
        let late = text.replace(wait, "");
        let fault = run_text(&late, &case, &spec, &kernel, &target, 1).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::BeforeWait { .. }), "{fault}");
        kernel.early.clear();
        let fault = run_text(&text, &case, &spec, &kernel, &target, 1).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::BeforeWait { .. }), "{fault}");
    }
}

#[test]
fn gates() {
    let _ = check("gate", &gated(67, 96, 80, DType::Bf16, DType::Bf16));
    let _ = check("odd gate", &gated(7, 53, 37, DType::F32, DType::F16));
}

#[test]
fn plain_matrices() {
    let _ = check("dense rows", &matmul(67, 72, 136, DType::Bf16));
    let _ = check("dense columns", &matmul(67, 72, 136, DType::F16).transposed(&[1]));
    let _ = check("odd rows", &matmul(9, 37, 41, DType::F16));
    let _ = check("odd columns", &matmul(9, 37, 41, DType::Bf16).transposed(&[1]));
}

/// Rows of an odd number of f32 that begin at multiples of sixteen bytes, as logits have them: all
/// but the last are written in pairs.
#[test]
fn padded_rows() {
    let case = matmul(67, 72, 137, DType::Bf16).transposed(&[1]);
    let (mut spec, want) = case.expected();
    spec.results[0].ty.dtype = DType::F32;
    spec.results[0].strides[0] = Dim::from(144);
    for target in &targets() {
        let (what, family, case, spec, want) = ("padded", "products", &case, &spec, &want[..]);
        let same = &[Same::Variants];
        let trial = Trial { what, family, case, spec, target, want, tolerance: 1e-2, same };
        for kernel in &case.kernels(spec, target) {
            let text = ptx_of(kernel, target);
            assert!(text.contains("st.global.v2"), "{text}");
            let _ = trial.run(kernel, 1);
        }
    }
}

/// Two blocks that walk over six tiles each: the ring runs on from tile to tile.
#[test]
fn blocks_have_several_tiles() {
    for x in [DType::Bf16, DType::F32] {
        let case = linear(300, 328, 128, x, DType::Bf16, "silu");
        let (spec, want) = case.expected();
        let target = Target::sm_90a();
        let mut kernels = case.kernels(&spec, &target);
        assert!(!kernels.is_empty());
        for kernel in &mut kernels {
            assert!(kernel.grid[0].eval(&case.env()).unwrap() >= 3, "several tiles");
            kernel.grid[0] = 2.into();
            let trial = Trial {
                what: "several tiles of a block",
                family: "products",
                case: &case,
                spec: &spec,
                target: &target,
                want: &want,
                tolerance: 1e-5,
                same: &[Same::Variants],
            };
            assert_eq!(trial.run(kernel, 3).1.bank_conflicts, 0);
        }
    }
}

#[test]
fn a_row_is_the_same_bits_among_others() {
    for (x, w) in [(DType::Bf16, DType::Bf16), (DType::F32, DType::F16)] {
        let many = linear(131, 80, 50, x, w, "none");
        let mut one = many.clone();
        one.args[0] = many.args[0].as_ref().map(|x| x.slice(0, 77, 1, 1));
        for target in targets() {
            let name = &format!("a row of {x} alone and among others");
            let result = |case: &Case, first: usize| {
                let (spec, want) = case.expected();
                let kernel = &case.kernels(&spec, &target)[0];
                let trial = Trial {
                    what: "a row",
                    family: "products",
                    case,
                    spec: &spec,
                    target: &target,
                    want: &want,
                    tolerance: 1e-5,
                    same: &[Same::Rows(name, first, 1)],
                };
                trial.run(kernel, 1).0.remove(0)
            };
            let (many, one) = (result(&many, 77), result(&one, 0));
            assert_eq!(many.slice(0, 77, 1, 1).to_bytes(), one.to_bytes(), "{}", target.cpu);
        }
    }
}

/// Changes that must not go unnoticed: the emulator faults, or the result is wrong.
#[test]
fn mistakes_are_seen() {
    // More steps over k than a ring has stages.
    let case = linear(70, 1216, 96, DType::Bf16, DType::Bf16, "none");
    let (spec, want) = case.expected();
    let trans = "ldmatrix.sync.aligned.m8n8.x4.trans";
    // The descriptor of a packed weight's stages: strides of 2048 and 256 bytes, and a permutation
    // over 32 bytes, or over 64.
    let descriptor =
        |layout: i64| ((2048 >> 4) << 16 | (256 >> 4) << 32 | layout << 62).to_string();
    let (right, wrong) = (descriptor(3), descriptor(2));
    let changes: [(Target, &str, &str); 7] = [
        // Tensor cores read rows before they see them.
        (Target::sm_90a(), "fence.proxy.async.shared::cta;", ""),
        // A warp's rows are said to be there before its other lanes have written them.
        (Target::sm_90a(), "bar.warp.sync \t-1;", ""),
        (Target::sm_90a(), &right, &wrong),
        // A stage is read before its copies are waited for.
        (Target::sm_80(), "cp.async.wait_group 2;", "cp.async.wait_group 3;"),
        // Weights as if their columns were dense.
        (Target::sm_80(), trans, "ldmatrix.sync.aligned.m8n8.x4"),
        // Sums are read before the products are done.
        (Target::sm_90a(), "wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;"),
        // Stages are released while the products still read them.
        (Target::sm_90a(), "wgmma.wait_group.sync.aligned 1;", "wgmma.wait_group.sync.aligned 2;"),
    ];
    for (target, from, to) in changes {
        let kernel = &case.kernels(&spec, &target)[0];
        let text = ptx_of(kernel, &target);
        assert!(text.contains(from), "there is no {from}");
        let text = text.replace(from, to);
        let seen = (0..4).any(|seed| match run_text(&text, &case, &spec, kernel, &target, seed) {
            Ok((got, _)) => first_far(&got[0], &want[0], 1e-5).is_some(),
            Err(_) => true,
        });
        assert!(seen, "{to} on {} went unnoticed", target.cpu);
    }
}
