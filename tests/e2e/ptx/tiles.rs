//! Tiles that no default has: products have the same bits by them, and are assembled without
//! spills.

use codegen::{
    cuda::CudaKernel,
    lower::{gemm, lowering},
    schedule::{Entry, Family, Tuning, Variant},
};
use ir::{DType, KernelSpec, Target, Tensor};

use super::{
    assemble::{clean, fp8 as hopper, products as sizes, programs, quantized as integers},
    case::Case,
    device::{Same, Trial, targets},
    fp8, products, quantized,
};

/// Tiles by architecture, as tables have them.
const MMA: [&str; 4] = [
    "kernel = \"mma\", m = 32, n = 64, k = 32, warps = [2, 1], stages = 3",
    "kernel = \"mma\", m = 16, n = 128, k = 128, warps = [1, 4], stages = 3, copiers = 4",
    "kernel = \"mma\", m = 128, n = 64, k = 64, warps = [4, 2], stages = 2",
    "kernel = \"mma\", m = 64, n = 32, k = 64, warps = [1, 1], stages = 5, copiers = 1",
];
const WGMMA: [&str; 3] = [
    "kernel = \"wgmma\", n = 96, stages = 2",
    "kernel = \"wgmma\", n = 160, stages = 5",
    "kernel = \"wgmma\", n = 32, stages = 11",
];
const LANES: [&str; 3] = [
    "kernel = \"lanes\", m = 32, n = 64, warps = [1, 2], stages = 3",
    "kernel = \"lanes\", m = 16, n = 128, warps = [1, 4], stages = 6",
    "kernel = \"lanes\", m = 128, n = 64, warps = [4, 2], stages = 2",
];
const STREAM: [&str; 2] = [
    "rows = 8, kernel = \"stream\", m = 8, ahead_bytes = 64",
    "rows = 16, kernel = \"stream\", m = 16, ahead_bytes = 320",
];
const FP8: [&str; 3] = [
    "kernel = \"fp8\", warpgroups = 1, n = 96, blocks = 1, stages = 4",
    "kernel = \"fp8\", warpgroups = 2, n = 64, blocks = 2, stages = 6",
    "kernel = \"fp8\", warpgroups = 2, n = 160, blocks = 1, stages = 3",
];
const FMA: [&str; 3] = [
    "kernel = \"fma\", warps = [2, 1], thread_rows = 8",
    "kernel = \"fma\", warps = [1, 4], thread_rows = 8",
    "kernel = \"fma\", warps = [1, 1], thread_rows = 4",
];

/// The kernels of a product by a table with this tile, and the default tile behind it where that is
/// for few rows.
fn by(text: &str, spec: &KernelSpec, target: &Target) -> Vec<CudaKernel> {
    let product = gemm(spec).expect("a product with a weight");
    let family = Family::of_gemm(&product);
    let size = |size: i64| size.cast_unsigned();
    let table = Tuning {
        entries: vec![Entry {
            gated: product.gated,
            ..Entry::of(target, family, size(product.n), size(product.k))
        }],
    };
    let defaults = Tuning::default().tiles(target, &target.cuda.unwrap(), &product);
    let any = defaults.last().copied().unwrap();
    let entry = &table.entries[0];
    let (n, k, name) = (entry.n, entry.k, family.name());
    let text = format!(
        "[[entry]]\ntarget = \"{}\"\nfamily = \"{name}\"\nn = {n}\nk = {k}\ngated = {}\n\
         tiles = [{{ {text} }}{}]\n",
        target.cpu,
        product.gated,
        if text.starts_with("rows") { format!(", {}", inline(any)) } else { String::new() }
    );
    let table = Tuning::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let kernels = lowering(spec.op).unwrap().emit_cuda_tuned(spec, target, &table).unwrap();
    let defaults = lowering(spec.op).unwrap().emit_cuda(spec, target).unwrap();
    let is_new = |kernel: &CudaKernel| defaults.iter().all(|d| d.symbol != kernel.symbol);
    assert!(is_new(&kernels[0]), "{text} is not what it is by default");
    kernels
}

/// A variant as an inline table.
fn inline(variant: Variant) -> String {
    let json = serde_json::to_value(variant).unwrap();
    let fields = json.as_object().unwrap().iter();
    let fields: Vec<String> = fields.map(|(name, value)| format!("{name} = {value}")).collect();
    format!("{{ {} }}", fields.join(", "))
}

/// Runs a case by its default kernel and by each of these tiles: the bits are the same.
fn check(what: &str, case: &Case, target: &Target, tolerance: f64, tiles: &[&str]) {
    let (spec, want) = case.expected();
    let trial = Trial {
        what,
        family: "tiles",
        case,
        spec: &spec,
        target,
        want: &want,
        tolerance,
        same: &[Same::Variants],
    };
    let first = &case.kernels(&spec, target)[0];
    let bits = |got: Vec<Tensor>| got[0].to_bytes();
    let wanted = bits(trial.run(first, 0).0);
    for (seed, tile) in (1..).zip(tiles) {
        let kernels = by(tile, &spec, target);
        let (got, report) = trial.run(&kernels[0], seed);
        assert_eq!(report.bank_conflicts, 0, "{what}, {tile} on {}", target.cpu);
        assert!(bits(got) == wanted, "{what}, {tile} on {}: other bits", target.cpu);
    }
}

#[test]
fn tiles_of_tables_give_the_same_bits() {
    use DType::{Bf16, F16, F32};
    let linear = products::linear(37, 144, 176, Bf16, Bf16, "none");
    let rounded = products::linear(9, 200, 80, F32, F16, "silu");
    let gate = products::gated(20, 136, 72, Bf16, Bf16);
    for target in targets() {
        check("rows of a table", &linear, &target, 1e-5, &MMA);
        check("f32 rows of a table", &rounded, &target, 1e-5, &MMA[..2]);
        check("a gate of a table", &gate, &target, 1e-5, &MMA[..2]);
    }
    let hopper = Target::sm_90a();
    check("rows of a table", &linear, &hopper, 1e-5, &WGMMA);
    check("f32 rows of a table", &rounded, &hopper, 1e-5, &WGMMA[1..2]);
    check("a gate of a table", &gate, &hopper, 1e-5, &WGMMA[..1]);
}

#[test]
fn tiles_of_tables_give_the_same_bits_by_quantised_weights() {
    let [ampere, hopper] = targets();
    let four = quantized::linear(7, 320, 80, 4, DType::Bf16, "none");
    check("4 bits of a table", &four, &ampere, 2e-5, &[&LANES[..], &STREAM].concat());
    let eight = quantized::linear(11, 192, 64, 8, DType::F32, "gelu");
    check("8 bits of a table", &eight, &hopper, 2e-5, &[&LANES[..1], &STREAM[1..]].concat());
    let e4m3 = fp8::linear(66, 512, 176, "none");
    check("e4m3 of a table", &e4m3, &hopper, fp8::DEVICE, &FP8);
    let f32 = products::linear(33, 72, 80, DType::F32, DType::F32, "none");
    check("f32 of a table", &f32, &ampere, 1e-5, &FMA);
}

#[test]
fn tiles_of_tables_are_assembled_without_spills() {
    let Some(folder) = programs() else { return };
    let clean = |name: &str, spec: &KernelSpec, target: &Target, tiles: &[&str]| {
        for (i, tile) in tiles.iter().enumerate() {
            let kernels = by(tile, spec, target);
            let _ = clean(&folder, &format!("table-{name}-{i}"), &kernels[0], target);
        }
    };
    let linear = &sizes()[0].1;
    for target in targets() {
        clean("mma", linear, &target, &MMA);
        clean("q4", &integers()[0].1, &target, &LANES);
    }
    let target = Target::sm_90a();
    clean("wgmma", linear, &target, &WGMMA);
    clean("fp8", &hopper::fp8()[0].1, &target, &FP8);
    clean("stream", &integers()[0].1, &target, &STREAM);
}
