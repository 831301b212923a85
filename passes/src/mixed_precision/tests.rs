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
