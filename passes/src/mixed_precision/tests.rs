//! What is rounded, and what is not.

use ir::parse_module;

use super::*;

/// A layer with a bias, whose forward keeps what its backward reads.
const TEXT: &str = r#"
module "m"
symbol T in 1..64
entry accumulate
fn layer.cast(%x: f32[16, 16]) {
  %0 = cast(%x) {to = bf16} : bf16[16, 16]
  return y = %0
}
fn layer.forward(%x: f32[T, 16], %g: f32[16], %w: bf16[16, 16]) {
  %0 = rms_norm(%x, %g) {eps = 1e-5} : f32[T, 16]
  %1 = pack(%w) : bf16[1, 16, 16]
  %2 = linear(%0, %1, _, %x) {n = 16} : f32[T, 16]
  return x = %2, kept = %0
}
fn layer.backward(%dy: f32[T, 16], %w: bf16[16, 16], %kept: f32[T, 16]) {
  %0 = cast(%w) {to = f32} : f32[16, 16]
  %1 = transpose(%0) {perm = [1, 0]} : f32[16, 16]
  %2 = matmul(%dy, %1) : f32[T, 16]
  %3 = transpose(%kept) {perm = [1, 0]} : f32[16, T]
  %4 = matmul(%3, %dy) : f32[16, 16]
  %5 = fused(%4) {callee = "layer.cast"} : bf16[16, 16]
  %6 = reduce_sum(%dy) {axes = [0]} : f32[16]
  return dx = %2, dw = %5, db = %6
}
fn accumulate(%x: f32[T, 16], %d: f32[T, 16], %g: f32[16], %w: bf16[16, 16]) {
  %0, %1 = call(%x, %g, %w) {callee = "layer.forward"} : f32[T, 16], f32[T, 16]
  %2 = mul(%0, %d) : f32[T, 16]
  %3, %4, %5 = call(%2, %w, %1) {callee = "layer.backward"} : f32[T, 16], bf16[16, 16], f32[16]
  return y = %0, dx = %3, dw = %4, db = %5
}
"#;

fn operators(module: &Module) -> Vec<String> {
    let graph = &module.functions["accumulate"];
    let name = |id: NodeId| {
        let node = graph.node(id);
        let of = |v: &Value| graph.ty(*v).dtype.to_string();
        let types: Vec<String> = node.inputs().iter().flatten().map(of).collect();
        format!("{} {} {}", node.op.name(), types.join(","), node.results()[0].ty.dtype)
    };
    let order = graph.topo().into_iter();
    order.filter(|id| graph.node(*id).op.name() != "param").map(name).collect()
}

#[test]
fn products_are_narrow_and_what_is_kept_is_rounded_once() {
    let mut module = parse_module(TEXT).unwrap();
    mix_precision(&mut module, &Target::x86_64_v3()).unwrap();
    assert!(module.functions.contains_key("layer.forward"), "not on a CPU");
    mix_precision(&mut module, &Target::sm_90a()).unwrap();
    ir::verify(&module).unwrap();
    assert_eq!(module.functions.len(), 1, "it is flat");
    let graph = &module.functions["accumulate"];
    let narrowing = |id: &NodeId| {
        let node = graph.node(*id);
        node.op.name() == "cast" && node.results()[0].ty.dtype == DType::Bf16
    };
    let rounded: Vec<&str> = graph
        .topo()
        .into_iter()
        .filter(narrowing)
        .map(|id| graph.node(graph.node(id).input(0).node).op.name())
        .collect();
    // The norm for both of its products, the cotangent, and results of both products; not the
    // residual stream.
    let mut sorted = rounded.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ["matmul", "matmul", "mul", "rms_norm"], "{rounded:?}");
    // The gradient of the bias is a sum of what the products read.
    let sum = graph.topo().into_iter().find(|id| graph.node(*id).op.name() == "reduce_sum");
    let read = graph.node(sum.unwrap()).input(0);
    assert_eq!(cast_of(&module, graph, read.node), Some(DType::F32), "{:?}", operators(&module));
}

#[test]
fn parts_that_would_begin_between_sixteen_bytes_stay_wide() {
    let text = |width: i64| {
        let (all, w) = (2 * width, 16);
        format!(
            r#"
module "m"
symbol T in 1..64
entry accumulate
fn accumulate(%x: f32[T, {all}], %w: bf16[1, {width}, {w}]) {{
  %0 = sigmoid(%x) : f32[T, {all}]
  %1 = slice(%0) {{axis = 1, range = <{width}, {all}>}} : f32[T, {width}]
  %2 = linear(%1, %w, _, _) {{n = {w}}} : f32[T, {w}]
  return y = %2
}}
"#
        )
    };
    for (width, cast) in [(24, "sigmoid"), (20, "slice")] {
        let mut module = parse_module(&text(width)).unwrap();
        mix_precision(&mut module, &Target::sm_80()).unwrap();
        ir::verify(&module).unwrap();
        let graph = &module.functions["accumulate"];
        let is_cast = |id: &NodeId| graph.node(*id).op.name() == "cast";
        let first = graph.topo().into_iter().find(is_cast).unwrap();
        assert_eq!(graph.node(graph.node(first).input(0).node).op.name(), cast);
    }
}

/// A head's loss with gradients of logits, one without, and one whose logarithms are read.
#[test]
fn losses_are_of_logits() {
    let text = r#"
module "m"
symbol T in 1..64
entry accumulate
fn accumulate(%x: f32[T, 16], %w: bf16[21, 16], %t: i32[T], %d: f32[T]) {
  %0, %1 = linear_cross_entropy_dlogits(%x, %w, %t, %d) : f32[T], f32[T, 21]
  %2, %3 = linear_grad(%1, %x, %w) : f32[T, 16], f32[21, 16]
  %4, %5 = linear_cross_entropy(%x, %w, %t) : f32[T], f32[T]
  %6, %7 = linear_cross_entropy(%x, %w, %t) : f32[T], f32[T]
  return loss = %0, dx = %2, dw = %3, other = %4, third = %6, lse = %7
}
"#;
    let mut module = parse_module(text).unwrap();
    mix_precision(&mut module, &Target::sm_90a()).unwrap();
    ir::verify(&module).unwrap();
    let graph = &module.functions["accumulate"];
    let count = |op: &str| crate::testing::count(graph, op);
    let found = ["cross_entropy", "matmul", "linear_cross_entropy", "linear_cross_entropy_dlogits"];
    assert_eq!(found.map(count), [2, 4, 1, 0], "{graph}");
    // Logits are not rounded; their gradients are, for both products.
    for id in graph.topo() {
        let node = graph.node(id);
        if node.op.name() == "cross_entropy" {
            assert_eq!(graph.node(node.input(0).node).op.name(), "matmul", "{graph}");
        }
    }
}

/// The cotangent of a residual stream, which a product reads rounded.
#[test]
fn gradients_of_norms_are_rounded_too() {
    let text = r#"
module "m"
symbol T in 1..64
entry accumulate
fn accumulate(%x: f32[T, 16], %g: f32[16], %w: bf16[1, 16, 16], %dy: f32[T, 16], %r: f32[T, 16]) {
  %0, %1 = norm_grad(%x, %g, %dy, %r) {eps = 1e-5} : f32[T, 16], f32[floor_div(T + 63, 64), 16]
  %2 = linear(%0, %w, _, _) {n = 16} : f32[T, 16]
  return dx = %0, dg = %1, y = %2
}
"#;
    let mut module = parse_module(text).unwrap();
    mix_precision(&mut module, &Target::sm_80()).unwrap();
    ir::verify(&module).unwrap();
    let graph = &module.functions["accumulate"];
    let is_norm = |id: &NodeId| graph.node(*id).op.name() == "norm_grad";
    let norm = graph.topo().into_iter().find(is_norm).unwrap();
    let types: Vec<DType> = graph.node(norm).results().iter().map(|fact| fact.ty.dtype).collect();
    assert_eq!(types, [DType::F32, DType::F32, DType::Bf16]);
    assert_eq!(crate::testing::count(graph, "cast"), 3, "of the result alone: {graph}");
}
