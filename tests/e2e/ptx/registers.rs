//! Hot kernels besides products and attention, of shapes as models have them: they keep in
//! registers what they compute with. Attention computes while products are in flight.

use codegen::lower::lowering;
use ir::{Attr, Attrs, DType, Dim, KernelSpec, Layout, Target, TensorType};

use super::{
    assemble::{attention, clean, kernels, layout, paged, programs, spec},
    device::targets,
};

fn hot() -> Vec<(&'static str, KernelSpec)> {
    use DType::{Bf16, F32, I32, I64};
    let none = Attrs::none;
    let x = |dtype| layout(dtype, &["T", "4096"]);
    let vector = |n: &str| layout(F32, &[n]);
    let scalar = || layout(F32, &[]);
    let decayed = none().with("beta1", 0.9).with("beta2", 0.95).with("weight_decay", 0.1);
    let matrix = |dtype| layout(dtype, &["4096", "4096"]);
    let norm = |centred: bool, rounded: DType| {
        let sums = layout(F32, &["floor_div(T + 63, 64)", "4096"]);
        let mut results = vec![x(F32), sums.clone()];
        results.extend(centred.then_some(sums));
        let attrs = none().with("eps", 1e-5).with("centred", centred).with("rounded", rounded);
        let mut operands = vec![x(F32), vector("4096"), x(Bf16)];
        if rounded != F32 {
            operands.push(x(F32));
            results.push(x(rounded));
        }
        spec("norm_grad", attrs, &operands, &results)
    };
    let losses = |words: i64, with_gradient: bool| {
        let rows = |dtype| {
            let ty = TensorType::new(dtype, [Dim::symbol("T"), words.into()]);
            Layout { ty, strides: [(words + 7) / 8 * 8, 1].map(Dim::from).into() }
        };
        let of_rows = |dtype| layout(dtype, &["T"]);
        let mut operands = vec![rows(F32), of_rows(I32)];
        let mut results = vec![of_rows(F32)];
        if with_gradient {
            operands.push(of_rows(F32));
            results.push(rows(Bf16));
        }
        spec("cross_entropy", none(), &operands, &results)
    };
    let windows = |strides: [i64; 2], pads: i64| {
        let attrs = none().with("strides", Attr::Ints(strides.to_vec()));
        attrs.with("pads", Attr::Ints(vec![pads; 4])).with("dilations", Attr::Ints(vec![1, 1]))
    };
    let image = |c: &str, n: &str| layout(F32, &["N", c, n, n]);
    let moe = || none().with("experts", 64i64);
    let topk = none().with("k", vec![ir::Dim::from(8)]).with("axis", -1i64).with("largest", true);
    let best = |n: &str| {
        let y = |dtype| layout(dtype, &["T", "8"]);
        spec("topk", topk.clone(), &[layout(F32, &["T", n])], &[y(F32), y(I64)])
    };
    vec![
        (
            "adamw",
            spec(
                "adamw_step",
                decayed.with("eps", 1e-8),
                &[
                    matrix(F32),
                    matrix(Bf16),
                    matrix(F32),
                    matrix(F32),
                    scalar(),
                    scalar(),
                    scalar(),
                    scalar(),
                ],
                &[matrix(F32), matrix(F32), matrix(F32)],
            ),
        ),
        ("rms-norm-grad", norm(false, F32)),
        ("layer-norm-grad", norm(true, F32)),
        ("layer-norm-grad-and-residual", norm(true, Bf16)),
        ("losses", losses(50_257, false)),
        ("losses-and-gradients", losses(50_257, true)),
        (
            "embedding-grad",
            spec(
                "embedding_grad",
                none().with("rows", vec![ir::Dim::from(50257)]),
                &[layout(F32, &["T", "768"]), layout(I32, &["T"])],
                &[layout(F32, &["50257", "768"])],
            ),
        ),
        (
            "group-norm",
            spec(
                "group_norm",
                none().with("groups", 32i64).with("eps", 1e-5),
                &[image("320", "64"), vector("320"), vector("320")],
                &[image("320", "64")],
            ),
        ),
        (
            "conv",
            spec(
                "conv",
                windows([1, 1], 1).with("group", 1i64),
                &[image("64", "56"), layout(F32, &["128", "64", "3", "3"]), vector("128")],
                &[image("128", "56")],
            ),
        ),
        (
            "conv-transpose",
            spec(
                "conv_transpose",
                windows([2, 2], 0).with("group", 1i64).with("output_padding", vec![0i64, 0]),
                &[image("64", "28"), layout(F32, &["64", "32", "2", "2"])],
                &[image("32", "56")],
            ),
        ),
        (
            "depthwise",
            spec(
                "conv",
                windows([1, 1], 1).with("group", 96i64),
                &[image("96", "56"), layout(F32, &["96", "1", "3", "3"])],
                &[image("96", "56")],
            ),
        ),
        ("router", best("64")),
        ("vocabulary", best("128256")),
        (
            "moe-permute",
            spec(
                "moe_permute",
                moe(),
                &[layout(I32, &["T", "8"])],
                &[layout(I32, &["8*T"]), layout(I32, &["T", "8"]), layout(I32, &["65"])],
            ),
        ),
        (
            "moe-combine",
            spec(
                "moe_combine",
                none(),
                &[
                    layout(Bf16, &["8*T", "4096"]),
                    layout(I32, &["T", "8"]),
                    layout(F32, &["T", "8"]),
                ],
                &[x(Bf16)],
            ),
        ),
    ]
}

#[test]
fn hot_kernels_spill_nothing() {
    let Some(folder) = programs() else { return };
    for target in targets() {
        for (name, spec) in hot() {
            let kernels = lowering(spec.op).unwrap().emit_cuda(&spec, &target);
            for kernel in &kernels.unwrap_or_else(|e| panic!("{e}")) {
                let _ = clean(&folder, name, kernel, &target);
            }
        }
    }
}

#[test]
fn attention_overlaps_products_and_exponentials() {
    let Some(folder) = programs() else { return };
    let target = Target::sm_90a();
    for (name, spec) in [("prefill", attention("128")), ("paged-prefill", paged("128"))] {
        let kernel = kernels(&spec, &target).pop().unwrap();
        let sass = clean(&folder, name, &kernel, &target);
        let lines: Vec<&str> = sass.lines().collect();
        let waits =
            |from: usize, what: &str| lines[from..].iter().position(|line| line.contains(what));
        let scores = waits(0, "WARPGROUP.DEPBAR.LE gsb0, 0x1").expect("a wait for scores");
        let sums = waits(scores, "WARPGROUP.DEPBAR.LE gsb0, 0x0").expect("a wait for sums");
        let between = &lines[scores..scores + sums];
        let powers = between.iter().filter(|line| line.contains("MUFU.EX2")).count();
        assert!(powers >= 32, "{name}: {powers} exponentials while values are multiplied");
    }
}
