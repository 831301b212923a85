//! Layers as exporters of PyTorch models spell them.

use ir::{Attr, Attrs, Builder, DType, Dim, Env, Module, Tensor, TensorType, Value};

use super::tests::optimized;
use crate::{
    Report,
    testing::{assert_near, count, eval, sample},
};

const H: i64 = 32;
const D: i64 = 8;

fn bs() -> [Dim; 2] {
    [Dim::symbol("B"), Dim::symbol("N")]
}

fn f32s(shape: impl IntoIterator<Item = impl Into<Dim>>) -> TensorType {
    TensorType::new(DType::F32, shape)
}

fn env() -> Env {
    [("B".into(), 2), ("N".into(), 5)].into_iter().collect()
}

/// A function over `x [B, N, H]` and a padding mask `[B, N]`.
fn model(build: impl FnOnce(&mut Builder<'_>, Value, Value) -> Value) -> Module {
    let mut module = Module::new("imported");
    module.symbol("B", 1, 8);
    module.symbol("N", 1, 64);
    for (name, shape) in [
        ("q", vec![H, H]),
        ("k", vec![H, H]),
        ("v", vec![H, H]),
        ("k_few", vec![H, H / 2]),
        ("v_few", vec![H, H / 2]),
        ("up", vec![H, 48]),
        ("down", vec![48, H]),
        ("bias", vec![H]),
        ("norm", vec![H]),
    ] {
        module.weight(name, f32s(shape));
    }
    let mut b = module.builder("main");
    let [batch, n] = bs();
    let x = b.param("x", f32s([batch.clone(), n.clone(), H.into()])).unwrap();
    let mask = b.param("mask", TensorType::new(DType::Bool, [batch, n])).unwrap();
    let y = build(&mut b, x, mask);
    b.output("y", y);
    let main = b.finish();
    module.add(main);
    module.entries.push("main".into());
    module
}

/// Optimises, checks that the result computes the same, and returns both.
fn check(module: &Module) -> (Module, Report) {
    let (out, report) = optimized(module, &env());
    let x = sample(&f32s([Dim::from(2i64), 5.into(), H.into()]), &env(), 1);
    // The second sequence is three tokens long.
    let mask = Tensor::from_i64s(DType::Bool, &[2, 5], [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
    let [got, want] = [&out, module].map(|m| eval(m, "main", &[x.clone(), mask.clone()], &env()));
    assert_near(&got, &want, 1e-6);
    (out, report)
}

fn product(b: &mut Builder<'_>, x: Value, w: &str) -> Value {
    let w = b.weight(w).unwrap();
    b.matmul(x, w).unwrap()
}

/// `[B, N, heads · D]` as `[B, heads, N, D]`.
fn heads(b: &mut Builder<'_>, x: Value, heads: i64) -> Value {
    let [batch, n] = bs();
    let x = b.reshape(x, vec![batch, n, heads.into(), D.into()]).unwrap();
    b.transpose(x, &[0, 2, 1, 3]).unwrap()
}

/// `[B, heads, N, D]` as `[B, N, heads · D]`.
fn merge_heads(b: &mut Builder<'_>, x: Value) -> Value {
    let [batch, n] = bs();
    let x = b.transpose(x, &[0, 2, 1, 3]).unwrap();
    b.reshape(x, vec![batch, n, H.into()]).unwrap()
}

fn scalar(b: &mut Builder<'_>, v: f64) -> Value {
    b.scalar(DType::F32, v).unwrap()
}

fn softmax(b: &mut Builder<'_>, x: Value) -> Value {
    b.op1("softmax", Attrs::none(), &[x]).unwrap()
}

/// 0 where a key is seen, `low` where it is padding: `[B, 1, 1, N]`.
fn padding(b: &mut Builder<'_>, mask: Value, low: f64) -> Value {
    let [batch, n] = bs();
    let mask = b.reshape(mask, vec![batch, 1.into(), 1.into(), n]).unwrap();
    let (zero, low) = (scalar(b, 0.0), scalar(b, low));
    b.select(mask, zero, low).unwrap()
}

/// Whether query i may see key j: `[N, N]`.
fn causal(b: &mut Builder<'_>) -> Value {
    let [_, n] = bs();
    let range = b.op1("iota", Attrs::none().with("shape", vec![n.clone()]), &[]).unwrap();
    let rows = b.reshape(range, vec![n, 1.into()]).unwrap();
    b.op1("less_equal", Attrs::none(), &[range, rows]).unwrap()
}

fn node_of<'m>(module: &'m Module, op: &str) -> &'m ir::Node {
    let main = &module.functions["main"];
    let found = main.topo().into_iter().map(|n| main.node(n)).find(|n| n.op.name() == op);
    found.unwrap_or_else(|| panic!("no {op}"))
}

#[test]
fn scaled_scores_with_a_padding_mask_are_attention() {
    let module = model(|b, x, mask| {
        let [q, k, v] = ["q", "k", "v"].map(|w| product(b, x, w));
        let (q, v) = (heads(b, q, 4), heads(b, v, 4));
        let [batch, n] = bs();
        let k = b.reshape(k, vec![batch, n, 4.into(), D.into()]).unwrap();
        let k = b.transpose(k, &[0, 2, 3, 1]).unwrap();
        let s = b.matmul(q, k).unwrap();
        let c = scalar(b, 0.25);
        let s = b.mul(s, c).unwrap();
        let m = padding(b, mask, f64::from(f32::MIN));
        let s = b.add(s, m).unwrap();
        let p = softmax(b, s);
        let y = b.matmul(p, v).unwrap();
        merge_heads(b, y)
    });
    let (out, report) = check(&module);
    let main = &out.functions["main"];
    assert_eq!(["attention", "matmul", "softmax", "linear"].map(|n| count(main, n)), [1, 0, 0, 1]);
    let attention = node_of(&out, "attention");
    assert_eq!(attention.attrs.float("scale"), 0.25);
    let bias = main.ty(attention.inputs()[4].unwrap());
    assert_eq!(bias.to_string(), "f32[B, 1, 1, N]", "the mask is not spread out");
    assert_eq!(report.counts()[0].count, 1);
}

#[test]
fn attention_of_pytorch_with_a_guard_and_factors_on_both_sides() {
    let module = model(|b, x, mask| {
        let [q, k, v] = ["q", "k", "v"].map(|w| product(b, x, w));
        let [q, k, v] = [q, k, v].map(|t| heads(b, t, 4));
        let [batch, n] = bs();
        let c = scalar(b, 0.6);
        let q = b.mul(q, c).unwrap();
        let lead = batch.clone() * Dim::from(4i64);
        let k = b.reshape(k, vec![lead, n.clone(), D.into()]).unwrap();
        let k = b.transpose(k, &[0, 2, 1]).unwrap();
        let k = b.reshape(k, vec![batch, 4.into(), D.into(), n]).unwrap();
        let k = b.mul(k, c).unwrap();
        let s = b.matmul(q, k).unwrap();
        let m = padding(b, mask, f64::NEG_INFINITY);
        let s = b.add(s, m).unwrap();
        let p = softmax(b, s);
        let bad = b.unary("is_nan", p).unwrap();
        let zero = scalar(b, 0.0);
        let p = b.select(bad, zero, p).unwrap();
        let y = b.matmul(p, v).unwrap();
        merge_heads(b, y)
    });
    let (out, _) = check(&module);
    assert_eq!(count(&out.functions["main"], "is_nan"), 0);
    assert!((node_of(&out, "attention").attrs.float("scale") - 0.36).abs() < 1e-6);
}

#[test]
fn repeated_heads_and_a_causal_mask_by_comparison() {
    let module = model(|b, x, _| {
        let [q, k, v] = ["q", "k_few", "v_few"].map(|w| product(b, x, w));
        let (q, k, v) = (heads(b, q, 4), heads(b, k, 2), heads(b, v, 2));
        let [batch, n] = bs();
        let mut repeat = |t: Value| {
            let five = |g: i64| vec![batch.clone(), 2.into(), g.into(), n.clone(), D.into()];
            let t = b.reshape(t, five(1)).unwrap();
            let t = b.op1("broadcast_to", Attrs::none().with("shape", five(2)), &[t]).unwrap();
            b.reshape(t, vec![batch.clone(), 4.into(), n.clone(), D.into()]).unwrap()
        };
        let (k, v) = (repeat(k), repeat(v));
        let k = b.transpose(k, &[0, 1, 3, 2]).unwrap();
        let s = b.matmul(q, k).unwrap();
        let c = scalar(b, 8f64.sqrt());
        let s = b.div(s, c).unwrap();
        let m = causal(b);
        let low = scalar(b, f64::from(f32::MIN));
        let s = b.select(m, s, low).unwrap();
        let p = softmax(b, s);
        let y = b.matmul(p, v).unwrap();
        merge_heads(b, y)
    });
    let (out, _) = check(&module);
    let main = &out.functions["main"];
    let attention = node_of(&out, "attention");
    assert_eq!(attention.attrs.get("mask"), Some(&Attr::from("causal")));
    assert_eq!(attention.inputs()[4], None);
    assert_eq!(main.ty(attention.input(1)).shape[1], Dim::from(2i64));
    assert_eq!(count(main, "broadcast_to") + count(main, "iota"), 0);
}

#[test]
fn a_softmax_by_hand_with_a_softcap_over_merged_heads() {
    let module = model(|b, x, _| {
        let [q, k, v] = ["q", "k", "v"].map(|w| product(b, x, w));
        let [batch, n] = bs();
        let lead = batch.clone() * Dim::from(4i64);
        let three = vec![lead, n.clone(), Dim::from(D)];
        let [q, k, v] = [q, k, v].map(|t| {
            let t = heads(b, t, 4);
            b.reshape(t, three.clone()).unwrap()
        });
        let k = b.transpose(k, &[0, 2, 1]).unwrap();
        let s = b.matmul(q, k).unwrap();
        let c = scalar(b, 5.0);
        let s = b.div(s, c).unwrap();
        let s = b.tanh(s).unwrap();
        let s = b.mul(s, c).unwrap();
        let top = b.reduce("reduce_max", s, &[-1], true).unwrap();
        let e = b.sub(s, top).unwrap();
        let e = b.exp(e).unwrap();
        let sum = b.reduce("reduce_sum", e, &[-1], true).unwrap();
        let p = b.div(e, sum).unwrap();
        let y = b.matmul(p, v).unwrap();
        let y = b.reshape(y, vec![batch, 4.into(), n, D.into()]).unwrap();
        merge_heads(b, y)
    });
    let (out, _) = check(&module);
    assert_eq!(node_of(&out, "attention").attrs.float("softcap"), 5.0);
    assert_eq!(count(&out.functions["main"], "reduce_max"), 0);
}

#[test]
fn norms_and_an_mlp_by_hand() {
    let module = model(|b, x, _| {
        // RMS norm by power, mean, square root and reciprocal.
        let two = scalar(b, 2.0);
        let sq = b.op1("pow", Attrs::none(), &[x, two]).unwrap();
        let mean = b.reduce("reduce_mean", sq, &[-1], true).unwrap();
        let eps = scalar(b, 1e-5);
        let mean = b.add(mean, eps).unwrap();
        let root = b.unary("sqrt", mean).unwrap();
        let r = b.unary("reciprocal", root).unwrap();
        let y = b.mul(x, r).unwrap();
        let w = b.weight("norm").unwrap();
        let y = b.mul(w, y).unwrap();
        // Linear, GELU by the error function, linear, residual.
        let y = product(b, y, "up");
        let c = scalar(b, std::f64::consts::SQRT_2);
        let e = b.div(y, c).unwrap();
        let e = b.unary("erf", e).unwrap();
        let one = scalar(b, 1.0);
        let e = b.add(e, one).unwrap();
        let y = b.mul(y, e).unwrap();
        let half = scalar(b, 0.5);
        let y = b.mul(y, half).unwrap();
        let y = product(b, y, "down");
        let bias = b.weight("bias").unwrap();
        let y = b.add(bias, y).unwrap();
        let y = b.add(y, x).unwrap();
        // Layer norm by its definition.
        let mean = b.reduce("reduce_mean", y, &[2], true).unwrap();
        let d = b.sub(y, mean).unwrap();
        let sq = b.op1("pow", Attrs::none(), &[d, two]).unwrap();
        let var = b.reduce("reduce_mean", sq, &[2], true).unwrap();
        let var = b.add(var, eps).unwrap();
        let std = b.unary("sqrt", var).unwrap();
        let y = b.div(d, std).unwrap();
        let y = b.mul(y, w).unwrap();
        b.add(y, bias).unwrap()
    });
    let (out, report) = check(&module);
    let main = &out.functions["main"];
    let names = ["rms_norm", "layer_norm", "linear", "erf", "sqrt", "add", "mul"];
    assert_eq!(names.map(|n| count(main, n)), [1, 1, 2, 0, 0, 0, 0]);
    let counts: Vec<_> = report.counts().iter().map(|c| (c.kind, c.count)).collect();
    assert_eq!(counts, [("norm", 2), ("mlp", 1)]);
}

#[test]
fn what_is_not_fused_says_why() {
    let module = model(|b, x, _| {
        let [q, k, v] = ["q", "k", "v"].map(|w| product(b, x, w));
        let [q, k, v] = [q, k, v].map(|t| heads(b, t, 4));
        let kt = b.transpose(k, &[0, 1, 3, 2]).unwrap();
        let s = b.matmul(q, kt).unwrap();
        b.at("clip");
        let s = b.unary("relu", s).unwrap();
        b.at("softmax");
        let p = softmax(b, s);
        let y = b.matmul(p, v).unwrap();
        merge_heads(b, y)
    });
    let (_, report) = check(&module);
    let [fusion] = report.fusions.as_slice() else { panic!("{report:?}") };
    assert_eq!((fusion.kind, fusion.fused, fusion.count), ("attention", false, 1));
    let why = fusion.why_not.as_deref().unwrap();
    assert_eq!(why, "relu `clip` is not a scale, softcap, bias or mask that attention takes");
}
