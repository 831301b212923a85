//! What is paged, how, and what is refused.

use super::*;

fn t() -> Dim {
    Dim::symbol("T")
}

fn attend(b: &mut Builder<'_>, x: Value, cu: Value) -> Value {
    let heads = b.reshape(x, vec![t(), 1.into(), 8.into()]).unwrap();
    let attrs = Attrs::none().with("scale", 1.0).with("mask", "causal");
    let args = [heads, heads, heads, cu].map(Some);
    let y = b.op("attention", attrs, &args).unwrap()[0];
    b.reshape(y, vec![t(), 8.into()]).unwrap()
}

type Build = fn(&mut Builder<'_>, Value, Value) -> Value;

const KEEP: Build = |_, x, _| x;

/// A decoder on `x [T, 8]`: an entry that does something and calls a layer so many times, which
/// does something and attends.
fn decoder(in_entry: Build, in_layer: Build, layers: usize) -> Module {
    let mut m = Module::new("m");
    m.symbol("T", 1, 64);
    m.symbol("S", 1, 8);
    let x_ty = TensorType::new(DType::F32, [t(), 8.into()]);
    let cu_ty = TensorType::new(DType::I32, [Dim::symbol("S") + 1.into()]);
    let mut b = m.builder("inner");
    let x = b.param("x", x_ty.clone()).unwrap();
    b.output("y", x);
    let inner = b.finish();
    m.add(inner);
    let mut b = m.builder("layer");
    let x = b.param("x", x_ty.clone()).unwrap();
    let cu = b.param("cu_seqlens", cu_ty.clone()).unwrap();
    let y = in_layer(&mut b, x, cu);
    let y = attend(&mut b, y, cu);
    b.output("y", y);
    let layer = b.finish();
    m.add(layer);
    let mut b = m.builder("forward");
    let x = b.param("x", x_ty).unwrap();
    b.param("positions", TensorType::new(DType::I32, [t()])).unwrap();
    let cu = b.param("cu_seqlens", cu_ty).unwrap();
    let x = in_entry(&mut b, x, cu);
    let y = (0..layers).fold(x, |y, _| b.call("layer", &[y, cu]).unwrap()[0]);
    b.output("y", y);
    let forward = b.finish();
    m.add(forward);
    m
}

/// What is wrong with paging a decoder of one layer.
fn problems(in_entry: Build, in_layer: Build) -> String {
    page(&mut decoder(in_entry, in_layer, 1), DType::F32).err().unwrap_or_default()
}

/// Pages `forward` for memories of a type, and checks what came of it.
fn page(m: &mut Module, dtype: DType) -> Result<Vec<State>, String> {
    let options = PageOptions { block_size: 16, dtype, max_seq_len: 40, max_blocks: 8, head: 0 };
    let states = page_kv(m, "forward", options)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    ir::verify(m).unwrap();
    Ok(states)
}

const F32: &str = "
%0 = reshape(%x) {shape = <T, 1, 8>}
%1, %2 = kv_write(%k_cache.0, %v_cache.0, %0, %0, %slots)
%3 = paged_attention(%0, %1, %2, %block_tables, %cu_seqlens, %positions) {scale = 1.0}
%4 = reshape(%3) {shape = <T, 8>}";

const BF16: &str = "
%0 = reshape(%x) {shape = <T, 1, 8>}
%1 = cast(%0) {to = bf16}
%2 = cast(%0) {to = bf16}
%3, %4 = kv_write(%k_cache.0, %v_cache.0, %1, %2, %slots)
%5 = paged_attention(%0, %3, %4, %block_tables, %cu_seqlens, %positions) {scale = 1.0}
%6 = reshape(%5) {shape = <T, 8>}";

const INT8: &str = "
%0 = reshape(%x) {shape = <T, 1, 8>}
%1, %2 = quantize_heads(%0)
%3, %4 = quantize_heads(%0)
%5, %6, %7, %8 = kv_write(%k_cache.0, %v_cache.0, %1, %3, %slots, %k_scales.0, %v_scales.0, %2, %4)
%9 = paged_attention(%0, %5, %6, %block_tables, %cu_seqlens, %positions, %7, %8) {scale = 1.0}
%10 = reshape(%9) {shape = <T, 8>}";

const FP8: &str = "
%0 = reshape(%x) {shape = <T, 1, 8>}
%1, %2 = quantize_heads(%0) {format = \"e4m3\"}
%3, %4 = quantize_heads(%0) {format = \"e4m3\"}
%5, %6, %7, %8 = kv_write(%k_cache.0, %v_cache.0, %1, %3, %slots, %k_scales.0, %v_scales.0, %2, %4)
%9 = paged_attention(%0, %5, %6, %block_tables, %cu_seqlens, %positions, %7, %8) {scale = 1.0}
%10 = reshape(%9) {shape = <T, 8>}";

#[test]
fn keys_and_values_are_rounded_and_read_from_memory_alone() {
    let paged = |dtype: DType| {
        let mut m = decoder(KEEP, KEEP, 2);
        let states = page(&mut m, dtype).unwrap();
        let names = states.iter().map(|s| s.param.to_string()).collect::<Vec<_>>().join(" ");
        (m.functions["layer.paged"].to_string(), names)
    };
    for (dtype, memories, golden) in [
        (DType::F32, "f32[NB, 1, 8, 16], %v_cache.0: f32[NB, 1, 16, 8]) {", F32),
        (DType::Bf16, "bf16[NB, 1, 8, 16], %v_cache.0: bf16[NB, 1, 16, 8]) {", BF16),
        (
            DType::I8,
            "i8[NB, 1, 8, 16], %v_cache.0: i8[NB, 1, 16, 8], %k_scales.0: f32[NB, 1, 16], \
             %v_scales.0: f32[NB, 1, 16]) {",
            INT8,
        ),
        (
            DType::F8E4M3,
            "f8e4m3[NB, 1, 8, 16], %v_cache.0: f8e4m3[NB, 1, 16, 8], %k_scales.0: f32[NB, 1, 16], \
             %v_scales.0: f32[NB, 1, 16]) {",
            FP8,
        ),
    ] {
        let (layer, _) = paged(dtype);
        let mut lines = layer.lines();
        let head = lines.next().unwrap();
        assert!(head.ends_with(&format!("%k_cache.0: {memories}")), "{dtype}: {head}");
        // Without types of results.
        let lines = lines.map(|l| l.trim().split(" : ").next().unwrap());
        let body = lines.filter(|l| l.starts_with('%')).collect::<Vec<_>>().join("\n");
        assert_eq!(body, golden.trim(), "{dtype}");
    }
    assert_eq!(paged(DType::F16).1, "k_cache.0 v_cache.0 k_cache.1 v_cache.1");
    let scales = "k_scales.0 v_scales.0";
    assert!(paged(DType::I8).1.starts_with(&format!("k_cache.0 v_cache.0 {scales} k_cache.1")));
    let why = page(&mut decoder(KEEP, KEEP, 2), DType::F8E5M2).unwrap_err();
    assert!(why.contains("are f32, bf16, f16, i8 or f8e4m3, not f8e5m2"), "{why}");
}

#[test]
fn the_head_of_logits_is_no_more_than_a_quarter_of_them() {
    for (head, named) in [(0, ""), (1, "f32[T, 1]"), (5, "f32[T, 2]")] {
        let mut m = decoder(KEEP, KEEP, 1);
        m.functions.get_mut("forward").unwrap().outputs[0].0 = "logits".into();
        let options =
            PageOptions { block_size: 16, dtype: DType::F32, max_seq_len: 40, max_blocks: 8, head };
        page_kv(&mut m, "forward", options).unwrap();
        ir::verify(&m).unwrap();
        let step = &m.functions["step"];
        let find = |name: &str| step.outputs.iter().find(|(n, _)| **n == *name);
        let ty = |name: &str| find(name).map_or(String::new(), |(_, v)| step.ty(*v).to_string());
        assert_eq!(ty("head_logits"), named);
        assert_eq!(ty("head_tokens"), named.replace("f32", "i64"));
        assert_eq!(ty("logsumexp"), "f32[T]");
    }
}

#[test]
fn what_keeps_positions_apart_is_paged() {
    let norm: Build = |b, x, _| b.unary("l2_normalize", x).unwrap();
    let gate: Build = |b, x, _| {
        let s = b.unary("silu", x).unwrap();
        b.mul(s, x).unwrap()
    };
    assert_eq!(problems(norm, gate), "");
}

#[test]
fn attention_outside_of_a_layer_and_calls_within_one_are_refused() {
    let nested: Build = |b, x, _| b.call("inner", &[x]).unwrap()[0];
    let why = problems(attend, KEEP);
    assert!(why.contains("attention stands in the entry, not in a layer"), "{why}");
    let why = problems(KEEP, nested);
    assert!(why.contains("function `layer`: call is a call within a layer"), "{why}");
}

#[test]
fn operators_that_may_mix_positions_are_refused() {
    // Neither of these is known to keep rows apart.
    let elements: Build = |b, x, _| {
        let at = b.cast(x, DType::I64).unwrap();
        b.op1("gather_elements", Attrs::none().with("axis", 0i64), &[x, at]).unwrap()
    };
    let why = problems(KEEP, elements);
    assert!(why.contains("gather_elements is not known to keep positions apart"), "{why}");
    let numbered: Build = |b, x, _| {
        let shape = Attrs::none().with("shape", vec![t(), 1.into()]).with("axis", 0i64);
        let at = b.op1("iota", shape.with("dtype", DType::F32), &[]).unwrap();
        b.add(x, at).unwrap()
    };
    assert!(problems(numbered, KEEP).contains("iota numbers or counts the tokens"));
    let normed: Build = |b, x, _| {
        let column = b.slice(x, 1, 0i64, 1i64).unwrap();
        let column = b.reshape(column, vec![t()]).unwrap();
        let column = b.unary("l2_normalize", column).unwrap();
        let column = b.reshape(column, vec![t(), 1.into()]).unwrap();
        b.add(x, column).unwrap()
    };
    let why = problems(KEEP, normed);
    assert!(why.contains("l2_normalize mixes positions"), "{why}");
}
