//! Products of e4m3: every variant, tails in every direction, and one result whatever the number of
//! rows; and the activations' way to e4m3.
//!
//! Tensor cores keep some fourteen bits of a block's sum, the emulator all of them: a device may be
//! as far off as [`DEVICE`] says, the emulator not.

use ir::{Attr, Attrs, DType, Target, Tensor};

use super::{
    case::{Case, first_far, noise},
    device::{Same, Trial, ptx_of, run_text},
    operands::quantized,
};

/// Tolerance of a device.
pub(super) const DEVICE: f64 = 1e-2;
/// Tolerance of the emulator.
const EXACT: f64 = 2e-5;

fn format() -> Attrs {
    Attrs::none().with("format", "e4m3")
}

/// Values whose scales differ from block to block.
fn uneven(shape: &[usize], seed: u64) -> Tensor {
    let x = noise(DType::F32, DType::F32, shape, seed);
    let values = x.to_f64s().into_iter().enumerate();
    let scaled = values.map(|(i, v)| v * [0.3, 2.0, 1.0, 0.01, 0.7][i / 64 % 5]);
    Tensor::from_f64s(DType::F32, shape, scaled)
}

fn operands(rows: usize, k: usize, panels: usize) -> [Tensor; 2] {
    let x = quantized("quantize_rows", format(), &uneven(&[rows, k], 1));
    let w = uneven(&[panels, k, 16], 2);
    [x, quantized("quantize_weight", format().with("bits", 8i64), &w)]
}

/// With bias, activation and residual, or with none of these.
pub(super) fn linear(rows: usize, k: usize, n: usize, act: &str) -> Case {
    let attrs = Attrs::none().with("n", n as i64).with("act", act);
    let [x, w] = operands(rows, k, n.div_ceil(16));
    if act == "none" {
        return Case::new("quantized_linear", attrs, &[Some(&x), Some(&w)]).with_rows(&[0]);
    }
    let bias = noise(DType::F32, DType::F32, &[n], 3);
    let residual = noise(DType::F32, DType::F32, &[rows, n], 4);
    let args = [Some(&x), Some(&w), Some(&bias), Some(&residual)];
    Case::new("quantized_linear", attrs, &args).with_rows(&[0, 3])
}

fn gated(rows: usize, k: usize, n: usize) -> Case {
    let attrs = Attrs::none().with("n", n as i64).with("act", "silu");
    let attrs = attrs.with("gated", Attr::Bool(true));
    let [x, w] = operands(rows, k, 2 * n.div_ceil(16));
    Case::new("quantized_linear", attrs, &[Some(&x), Some(&w)]).with_rows(&[0])
}

/// Runs every variant that takes so many rows; asserts that all agree bit for bit, and with the
/// interpreter, and that there are at least so many.
fn check(what: &str, case: &Case, variants: usize) {
    check_on(&Target::sm_90a(), what, case, variants);
}

fn check_on(target: &Target, what: &str, case: &Case, variants: usize) {
    let (spec, want) = case.expected();
    let kernels = case.kernels(&spec, target);
    assert!(kernels.len() >= variants, "{what}: {} variants", kernels.len());
    let mut first: Option<Vec<u8>> = None;
    let trial = Trial {
        what,
        family: "fp8",
        case,
        spec: &spec,
        target,
        want: &want,
        tolerance: DEVICE,
        same: &[Same::Variants],
    };
    for (seed, kernel) in (0..).zip(&kernels) {
        let (got, report) = trial.run(kernel, seed);
        assert_eq!(report.bank_conflicts, 0, "{what}: bank conflicts");
        assert_eq!(first_far(&got[0], &want[0], EXACT), None, "{what}");
        let bits = got[0].to_bytes();
        assert!(first.get_or_insert(bits.clone()) == &bits, "{what}: variants disagree");
    }
}

#[test]
fn few_rows() {
    check("one row, four blocks at once", &linear(1, 512, 48, "none"), 2);
    check("two at once", &linear(3, 768, 37, "relu"), 2);
    check("one at once", &linear(64, 300, 33, "gelu"), 2);
}

#[test]
fn many_rows() {
    check("tail of rows", &linear(70, 256, 144, "none"), 1);
    check("several tiles", &linear(131, 384, 271, "silu"), 1);
}

#[test]
fn gates() {
    check("gate", &gated(67, 192, 80), 1);
    check("gate of few rows", &gated(4, 512, 40), 2);
}

/// Few multiprocessors: wide tiles, of which a block has several, so that its ring turns.
#[test]
fn wide_tiles() {
    let on = |multiprocessors: u32| {
        let mut target = Target::sm_90a();
        target.cuda.as_mut().unwrap().multiprocessors = multiprocessors;
        target
    };
    check_on(&on(1), "128 and 192 columns", &linear(5, 1152, 384, "none"), 2);
    check_on(&on(4), "64 columns", &linear(2, 1792, 250, "none"), 2);
    check_on(&on(1), "192 columns", &linear(300, 128, 200, "none"), 1);
    check_on(&on(1), "192 columns of a gate", &gated(130, 256, 200), 1);
}

#[test]
fn a_row_is_the_same_bits_among_others() {
    let many = linear(131, 640, 50, "none");
    let target = Target::sm_90a();
    let result = |case: &Case, same: &[Same<'_>]| {
        let (spec, want) = case.expected();
        let kernel = &case.kernels(&spec, &target)[0];
        let trial = Trial {
            what: "a row",
            family: "fp8",
            case,
            spec: &spec,
            target: &target,
            want: &want,
            tolerance: DEVICE,
            same,
        };
        trial.run(kernel, 1).0.remove(0)
    };
    let counts = [1, 20];
    let names = counts.map(|count| format!("{count} rows of e4m3 alone and among others"));
    let same = |i: usize, first| Same::Rows(&names[i], first, counts[i]);
    let whole = result(&many, &[0, 1].map(|i| same(i, 77)));
    for (i, count) in counts.into_iter().enumerate() {
        let mut some = many.clone();
        some.args[0] = many.args[0].as_ref().map(|x| x.slice(0, 77, count, 1));
        let want = whole.slice(0, 77, count, 1).to_bytes();
        assert_eq!(want, result(&some, &[same(i, 0)]).to_bytes(), "{count} rows");
    }
}

#[test]
fn rows_become_e4m3() {
    let target = Target::sm_90a();
    let mut odd = uneven(&[3, 77], 5).to_f64s();
    // A row of zeros, and numbers that are too small for their scale.
    odd[77..154].fill(0.0);
    odd[154..].fill(1e-43);
    let odd = Tensor::from_f64s(DType::F32, &[3, 77], odd);
    for (what, x) in [
        ("whole", uneven(&[5, 512], 1)),
        ("a tail", uneven(&[9, 300], 2)),
        ("odd rows", odd),
        ("heads", uneven(&[2, 3, 130], 4)),
    ] {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let x = Tensor::from_f64s(dtype, x.shape(), x.to_f64s());
            let wide = Tensor::from_f64s(DType::F32, x.shape(), x.to_f64s());
            let mut case = Case::new("quantize_rows", format(), &[Some(&wide)]).with_rows(&[0]);
            let (mut spec, want) = case.expected();
            // Kernels read narrow rows as they are.
            case.args[0] = Some(x);
            spec.operands[0].as_mut().unwrap().ty.dtype = dtype;
            let trial = Trial {
                what,
                family: "fp8",
                case: &case,
                spec: &spec,
                target: &target,
                want: &want,
                tolerance: 0.0,
                same: &[],
            };
            for kernel in case.kernels(&spec, &target) {
                let _ = trial.run(&kernel, 1);
            }
        }
    }
}

#[test]
fn other_gpus_refuse_e4m3_and_say_what_to_do() {
    let [case, rows] = [
        linear(1, 128, 16, "none"),
        Case::new("quantize_rows", format(), &[Some(&uneven(&[1, 128], 1))]),
    ];
    for case in [case, rows] {
        let (spec, _) = case.expected();
        let family = codegen::lower::lowering(spec.op).unwrap();
        let error = family.emit_cuda(&spec, &Target::sm_80()).unwrap_err().to_string();
        assert!(error.contains("cuda:sm_90a"), "{error}");
        let error = family.supports(&spec).unwrap_err();
        assert!(error.contains("cuda:sm_90a"), "{error}");
    }
}

/// Changes that must not go unnoticed: the emulator faults, or the result is wrong.
#[test]
fn mistakes_are_seen() {
    let changes = [
        // A stage is given back before all lanes have read its scales.
        (1, "bar.warp.sync \t-1;", ""),
        // Products are read before they are there.
        (1, "wgmma.wait_group.sync.aligned 0;", ""),
        (70, "wgmma.wait_group.sync.aligned 0;", ""),
        // A block adds to the one before.
        (70, ", 0, 1, 1;", ", 1, 1, 1;"),
        // Scales are not counted.
        (1, "], 64, [", "], 48, ["),
    ];
    let target = Target::sm_90a();
    for (rows, from, to) in changes {
        let case = linear(rows, 1280, 96, "none");
        let (spec, want) = case.expected();
        let kernel = &case.kernels(&spec, &target)[0];
        let text = ptx_of(kernel, &target);
        assert!(text.contains(from), "there is no {from}:\n{text}");
        let text = text.replace(from, to);
        let seen = (0..4).any(|seed| match run_text(&text, &case, &spec, kernel, &target, seed) {
            Ok((got, _)) => first_far(&got[0], &want[0], EXACT).is_some(),
            Err(_) => true,
        });
        assert!(seen, "{from} to {to:?} for {rows} rows went unnoticed");
    }
}
