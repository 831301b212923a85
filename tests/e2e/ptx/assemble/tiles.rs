//! Products of f32, and those in any layout, of a smaller model and of its training.

use std::slice;

use ir::{Attrs, DType, Dim, KernelSpec, Layout};

use super::{layout, spec};

/// Names, an instruction that there must be, and specifications.
pub(super) fn all() -> Vec<(&'static str, &'static str, KernelSpec)> {
    use DType::{Bf16, F32, I32};
    let none = Attrs::none;
    let act = |n: i64, act: &str| none().with("n", n).with("act", act);
    let (x, y) = (layout(F32, &["T", "768"]), layout(F32, &["T", "3072"]));
    let grad = |w| {
        let (w, dw) = (layout(w, &["3072", "768"]), layout(F32, &["3072", "768"]));
        spec("linear_grad", none(), &[y.clone(), x.clone(), w], &[x.clone(), dw])
    };
    let head = |op: &str, w| {
        let (rows, logits) = (layout(F32, &["T"]), layout(F32, &["T", "50257"]));
        let mut operands =
            vec![x.clone(), layout(w, &["50257", "768"]), layout(I32, &["T"]), rows.clone()];
        let dlogits = op.ends_with("dlogits");
        operands.truncate(if dlogits { 4 } else { 3 });
        spec(op, none(), &operands, &[rows.clone(), if dlogits { logits } else { rows }])
    };
    let head_grad = |w| {
        let rows = layout(F32, &["T"]);
        let w = layout(w, &["50257", "768"]);
        let operands = [x.clone(), w.clone(), layout(I32, &["T"]), rows.clone(), rows];
        spec("linear_cross_entropy_grad", none(), &operands, &[x.clone(), w])
    };
    let heads = layout(Bf16, &["B", "T", "64"]);
    let turned = Layout {
        strides: ["64*T", "1", "64"].map(|s| s.parse::<Dim>().unwrap()).into(),
        ..layout(Bf16, &["B", "64", "T"])
    };
    let offsets = layout(I32, &["65"]);
    let experts = layout(Bf16, &["64", "192", "2048", "16"]);
    let (wide, narrow) = (layout(F32, &["T", "2048"]), layout(F32, &["T", "1536"]));
    vec![
        (
            "linear-f32-f32",
            "FFMA",
            spec(
                "linear",
                act(3072, "gelu"),
                &[x.clone(), layout(F32, &["192", "768", "16"]), layout(F32, &["3072"])],
                slice::from_ref(&y),
            ),
        ),
        (
            "gated-f32-f32",
            "FFMA",
            spec(
                "gated_linear",
                act(3072, "silu"),
                &[x.clone(), layout(F32, &["384", "768", "16"])],
                slice::from_ref(&y),
            ),
        ),
        (
            "matmul-f32",
            "FFMA",
            spec(
                "matmul",
                none(),
                &[x.clone(), layout(F32, &["768", "3072"])],
                slice::from_ref(&y),
            ),
        ),
        ("grad-f32", "FFMA", grad(F32)),
        ("grad-bf16", "HMMA", grad(Bf16)),
        ("loss-f32", "FFMA", head("linear_cross_entropy", F32)),
        ("loss-bf16", "HMMA", head("linear_cross_entropy", Bf16)),
        ("dlogits-f32", "FFMA", head("linear_cross_entropy_dlogits", F32)),
        ("dlogits-bf16", "HMMA", head("linear_cross_entropy_dlogits", Bf16)),
        ("head-grad-f32", "FFMA", head_grad(F32)),
        ("head-grad-bf16", "HMMA", head_grad(Bf16)),
        (
            "matmul-batch",
            "HMMA",
            spec("matmul", none(), &[heads, turned], &[layout(Bf16, &["B", "T", "T"])]),
        ),
        (
            "grouped-bf16",
            "HMMA",
            spec("grouped_gated_linear", act(1536, "silu"), &[wide, experts, offsets], &[narrow]),
        ),
    ]
}
