//! Products with weights of 8 and 4 bits: every variant, shapes with tails in every direction, and
//! one result whatever the number of rows.

use ir::{Attr, Attrs, DType, Target, Tensor};

use super::{
    case::{Case, first_far, noise},
    device::{Same, Trial, ptx_of, run_text, targets},
};

/// A weight of so many panels in lanes, by the interpreter.
fn weight(k: usize, panels: usize, bits: i64) -> Tensor {
    let w = noise(DType::F32, DType::F32, &[panels, k, 16], 2);
    let attrs = Attrs::none().with("bits", bits).with("layout", "lanes");
    Case::new("quantize_weight", attrs, &[Some(&w)]).expected().1.remove(0)
}

/// The type that rows are multiplied as.
fn half(x: DType) -> DType {
    if x == DType::F16 { DType::F16 } else { DType::Bf16 }
}

/// With bias, activation and residual, or with none of these.
pub(super) fn linear(rows: usize, k: usize, n: usize, bits: i64, x: DType, act: &str) -> Case {
    let attrs = Attrs::none().with("n", n as i64).with("act", act);
    let w = weight(k, n.div_ceil(16), bits);
    let x = noise(x, half(x), &[rows, k], 1);
    if act == "none" {
        return Case::new("quantized_linear", attrs, &[Some(&x), Some(&w)]).with_rows(&[0]);
    }
    let bias = noise(x.dtype(), x.dtype(), &[n], 3);
    let residual = noise(x.dtype(), x.dtype(), &[rows, n], 4);
    let args = [Some(&x), Some(&w), Some(&bias), Some(&residual)];
    Case::new("quantized_linear", attrs, &args).with_rows(&[0, 3])
}

fn gated(rows: usize, k: usize, n: usize, bits: i64, x: DType) -> Case {
    let attrs = Attrs::none().with("n", n as i64).with("act", "silu");
    let attrs = attrs.with("gated", Attr::Bool(true));
    let w = weight(k, 2 * n.div_ceil(16), bits);
    let x = noise(x, half(x), &[rows, k], 1);
    Case::new("quantized_linear", attrs, &[Some(&x), Some(&w)]).with_rows(&[0])
}

/// Runs every variant that takes so many rows, `variants` of them and, on `sm_80`, one for devices
/// with less shared memory; asserts that all agree bit for bit, and with the interpreter. Unless
/// rows are `odd`, and copied in words or less, no two accesses may meet in a bank of shared
/// memory.
fn check(what: &str, case: &Case, variants: usize) {
    let odd = what.contains("odd");
    let (spec, want) = case.expected();
    for target in targets() {
        let kernels = case.kernels(&spec, &target);
        let variants = variants + usize::from(target.cpu == "sm_80");
        assert_eq!(kernels.len(), variants, "{what} on {}", target.cpu);
        let mut first: Option<Vec<u8>> = None;
        let trial = Trial {
            what,
            family: "quantized",
            case,
            spec: &spec,
            target: &target,
            want: &want,
            tolerance: 2e-5,
            same: &[Same::Variants],
        };
        for (seed, kernel) in (0..).zip(&kernels) {
            let (got, report) = trial.run(kernel, seed);
            assert!(odd || report.bank_conflicts == 0, "{what}: bank conflicts");
            let bits = got[0].to_bytes();
            assert!(first.get_or_insert(bits.clone()) == &bits, "{what}: variants disagree");
        }
    }
}

#[test]
fn few_rows() {
    use DType::{Bf16, F16, F32};
    for bits in [4, 8] {
        check("one row", &linear(1, 512, 48, bits, Bf16, "none"), 4);
        check("f16", &linear(3, 320, 37, bits, F16, "relu"), 4);
        check("f32 rows", &linear(8, 200, 33, bits, F32, "gelu"), 4);
        check("sixteen", &linear(13, 1024, 32, bits, Bf16, "silu"), 3);
    }
}

/// Parts of k longer than the ring: an even number of groups, an odd one, and unequal ones.
#[test]
fn rings_turn() {
    for bits in [4, 8] {
        check("even parts", &linear(2, 3072, 16, bits, DType::Bf16, "none"), 4);
        check("odd parts", &linear(1, 2816, 16, bits, DType::F16, "none"), 4);
        check("unequal parts", &linear(3, 2888, 16, bits, DType::F32, "none"), 4);
    }
}

#[test]
fn many_rows() {
    use DType::{Bf16, F16, F32};
    for bits in [4, 8] {
        check("tail of rows", &linear(70, 256, 144, bits, Bf16, "none"), 1);
        check("f32 rows", &linear(37, 328, 50, bits, F32, "tanh"), 2);
        check("several tiles", &linear(131, 96, 271, bits, F16, "relu"), 1);
    }
}

#[test]
fn odd_rows_and_short_sums() {
    use DType::{Bf16, F16, F32};
    check("odd k", &linear(5, 83, 37, 4, Bf16, "none"), 2);
    check("odd f32 rows", &linear(3, 35, 17, 8, F32, "silu"), 2);
    check("odd f16 rows", &linear(66, 67, 19, 4, F16, "gelu_tanh"), 1);
    check("one block", &linear(2, 32, 16, 8, F16, "none"), 4);
}

#[test]
fn gates() {
    check("gate", &gated(67, 192, 80, 4, DType::Bf16), 1);
    check("gate of few rows", &gated(4, 320, 40, 8, DType::Bf16), 4);
    check("gate of f32 rows", &gated(9, 264, 37, 4, DType::F32), 3);
    check("odd gate", &gated(7, 53, 37, 8, DType::F16), 2);
}

#[test]
fn a_row_is_the_same_bits_among_others() {
    for (x, bits) in [(DType::Bf16, 4), (DType::F32, 8)] {
        let many = linear(131, 448, 50, bits, x, "none");
        for target in targets() {
            let result = |case: &Case, same: &[Same<'_>]| {
                let (spec, want) = case.expected();
                let kernel = &case.kernels(&spec, &target)[0];
                let trial = Trial {
                    what: "a row",
                    family: "quantized",
                    case,
                    spec: &spec,
                    target: &target,
                    want: &want,
                    tolerance: 2e-5,
                    same,
                };
                trial.run(kernel, 1).0.remove(0)
            };
            let counts = [1, 9, 20];
            let names = counts.map(|count| format!("{count} rows of {x} alone and among others"));
            let same = |i: usize, first| Same::Rows(&names[i], first, counts[i]);
            let whole = result(&many, &[0, 1, 2].map(|i| same(i, 77)));
            for (i, count) in counts.into_iter().enumerate() {
                let mut some = many.clone();
                some.args[0] = many.args[0].as_ref().map(|x| x.slice(0, 77, count, 1));
                let want = whole.slice(0, 77, count, 1).to_bytes();
                assert_eq!(
                    want,
                    result(&some, &[same(i, 0)]).to_bytes(),
                    "{count} rows on {}",
                    target.cpu
                );
            }
        }
    }
}

/// Changes that must not go unnoticed: the emulator faults, or the result is wrong.
#[test]
fn mistakes_are_seen() {
    let changes = [
        // A stage is read before its copies are waited for.
        (70, 4, "cp.async.wait_group 2;", "cp.async.wait_group 3;"),
        (1, 4, "cp.async.wait_group 7;", "cp.async.wait_group 8;"),
        // The parts of k are added before they are there.
        (1, 8, "bar.sync \t0;", ""),
        // The sign of eight bits, and the offset of four, are not taken off.
        (70, 8, ", 8388736;", ", 0;"),
        (1, 4, "-1022835960", "-1022836000"),
    ];
    let target = Target::sm_80();
    for (rows, bits, from, to) in changes {
        let case = linear(rows, 448, 96, bits, DType::Bf16, "none");
        let (spec, want) = case.expected();
        let kernel = &case.kernels(&spec, &target)[0];
        let text = ptx_of(kernel, &target);
        assert!(text.contains(from), "there is no {from}:\n{text}");
        let text = text.replace(from, to);
        let seen = (0..4).any(|seed| match run_text(&text, &case, &spec, kernel, &target, seed) {
            Ok((got, _)) => first_far(&got[0], &want[0], 2e-5).is_some(),
            Err(_) => true,
        });
        assert!(seen, "{to} on {} went unnoticed", target.cpu);
    }
}
