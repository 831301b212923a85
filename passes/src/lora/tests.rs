//! Adapters in two tiny decoders: nothing changes at first, gradients are those of differences, and
//! merged weights compute the same.

use std::{collections::BTreeSet, sync::Arc};

use ir::{DType, Env, Module, Tensor};

use super::*;
use crate::{
    FoldLimits, canonicalize, optimize, prepare,
    testing::{Roofline, assert_near, count},
    vjp::{
        Recompute, Wrt, differentiate,
        tests::{
            Weights, compare,
            models::{Family, GPT2, LLAMA, decoder, inputs, weights},
            run,
        },
    },
    weight_params,
};

const OPTIONS: LowRank = LowRank { rank: 3, scale: 0.7 };

/// The model with adapters on the weights of layers whose names end in one of those.
fn adapted(family: &Family, ends: &[&str]) -> (Module, Lora) {
    let mut m = decoder(family).unwrap();
    let named = |name: &&Arc<str>| ends.iter().any(|end| name.ends_with(&format!(".{end}")));
    let targets: BTreeSet<Arc<str>> = m.weights.keys().filter(named).cloned().collect();
    let lora = add_lora(&mut m, &targets, OPTIONS).unwrap();
    ir::verify(&m).unwrap();
    (m, lora)
}

fn loss(m: &Module, at: &Weights) -> f64 {
    run(m, "forward", at, &inputs(), &Env::new())[0].to_f64s()[0]
}

fn factors(lora: &Lora) -> BTreeSet<Arc<str>> {
    lora.factors.values().flatten().cloned().collect()
}

/// The optimised module, adapters no weights.
fn optimized(m: &Module, lora: &Lora) -> Module {
    let mut m = m.clone();
    canonicalize(&mut m, FoldLimits::default()).unwrap();
    let mut params = weight_params(&m);
    lora.take_from(&mut params);
    optimize(&mut m, &params, &Roofline, &Env::from([("T".into(), 7), ("S".into(), 2)])).unwrap();
    ir::verify(&m).unwrap();
    m
}

fn check(family: &Family, ends: &[&str]) {
    let (m, lora) = adapted(family, ends);
    assert_eq!(m.functions.len(), 2, "a layer is one function");
    let at = weights(&m);
    let mut zero = at.clone();
    for [_, up] in lora.factors.values() {
        let shape = at[up].shape();
        let n = shape.iter().product::<usize>();
        zero.insert(up.clone(), Tensor::from_f64s(DType::F64, shape, vec![0.0; n]));
    }
    let base = loss(&decoder(family).unwrap(), &at);
    assert_eq!(loss(&m, &zero).to_bits(), base.to_bits());
    assert!((loss(&m, &at) - base).abs() > 1e-3, "adapters count");

    let wrt = Wrt { weights: factors(&lora), params: BTreeSet::new() };
    let optimized = optimized(&m, &lora);
    let both = [&m, &optimized].map(|m| {
        let with = differentiate(m, "forward", &wrt, "loss", Recompute::None).unwrap();
        let out = run(&with, "forward.grad", &at, &inputs(), &Env::new());
        let names = with.functions["forward.grad"].outputs.iter().map(|(n, _)| n.clone());
        names.zip(out).collect::<Weights>()
    });
    assert_eq!(both[0].len(), 1 + 2 * lora.factors.len(), "nothing else has a gradient");
    // All layers are one function.
    for name in wrt.weights.iter().filter(|name| name.contains(".1.")) {
        let mut moved = |t: &Tensor| {
            let mut at = at.clone();
            at.insert(name.clone(), t.clone());
            loss(&m, &at)
        };
        let grads = both.each_ref().map(|g| g[format!("grad.{name}").as_str()].clone());
        compare(&grads[0], &at[name], &mut moved).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_near(&grads[1..], &grads[..1], 1e-9);
    }
    merges(family, &m, &lora, &at);
}

/// A model of merged weights computes what the one with adapters does.
fn merges(family: &Family, m: &Module, lora: &Lora, at: &Weights) {
    let mut base = decoder(family).unwrap();
    let products = product_weights(&base);
    let adapted = || lora.factors.iter().map(|(name, pair)| (name, &products[name], pair));
    add_merges(&mut base, adapted().map(|(_, product, _)| product), OPTIONS).unwrap();
    let mut merged = at.clone();
    for (name, product, [down, up]) in adapted() {
        let entry = merge_entry(product.inputs, product.outputs, product.is_turned);
        assert!(base.entries.contains(&entry.as_str().into()));
        let inputs = [name, down, up].map(|n| at[n].clone());
        let out = run(&base, &entry, at, &inputs, &Env::new());
        merged.insert(name.clone(), out[0].clone());
    }
    let [got, want] = [loss(&base, &merged), loss(m, at)];
    assert!((got - want).abs() < 1e-9 * want.abs(), "{got}, not {want}");
}

#[test]
fn adapters_of_a_llama() {
    check(&LLAMA, &["q", "k", "v", "o", "gate", "up", "down"]);
}

#[test]
fn adapters_of_some_products() {
    check(&LLAMA, &["q", "v"]);
}

#[test]
fn adapters_of_a_gpt2() {
    check(&GPT2, &["qkv", "o", "up", "down"]);
}

/// Adapters of whole panels would join the products of frozen weights if they counted as weights,
/// and those would be put side by side in every step.
#[test]
fn frozen_products_are_merged_without_adapters() {
    let text = r#"module "m"
symbol T in 1..8
weight "u" : f32[32, 64]
weight "v" : f32[16, 64]
entry main

fn layer(%x: f32[T, 64], %u: f32[32, 64], %v: f32[16, 64]) {
  %0 = transpose(%u) {perm = [1, 0]} : f32[64, 32]
  %1 = matmul(%x, %0) : f32[T, 32]
  %2 = transpose(%v) {perm = [1, 0]} : f32[64, 16]
  %3 = matmul(%x, %2) : f32[T, 16]
  return u = %1, v = %3
}

fn main(%x: f32[T, 64]) {
  %0 = weight() {name = "u"} : f32[32, 64]
  %1 = weight() {name = "v"} : f32[16, 64]
  %2, %3 = call(%x, %0, %1) {callee = "layer"} : f32[T, 32], f32[T, 16]
  return u = %2, v = %3
}
"#;
    let mut m = ir::parse_module(text).unwrap();
    let targets: BTreeSet<Arc<str>> = ["u", "v"].map(Arc::from).into();
    let lora = add_lora(&mut m, &targets, LowRank { rank: 16, scale: 1.0 }).unwrap();
    let mut m = optimized(&m, &lora);
    let layer = &m.functions["layer"];
    assert_eq!((count(layer, "matmul"), count(layer, "concat")), (4, 0), "{layer}");
    let factors = factors(&lora);
    for recipe in prepare(&mut m, "main", &[]).unwrap() {
        let adapter = recipe.sources.iter().find(|name| factors.contains(*name));
        assert!(recipe.sources.len() == 1 || adapter.is_none(), "{recipe:?}");
    }
}

#[test]
fn layers_that_differ_in_adapters_are_functions_of_their_own() {
    let mut m = decoder(&LLAMA).unwrap();
    let targets: BTreeSet<Arc<str>> =
        ["layers.1.q", "layers.2.down", "layers.2.q"].map(Arc::from).into();
    let lora = add_lora(&mut m, &targets, OPTIONS).unwrap();
    ir::verify(&m).unwrap();
    let names: Vec<&str> = m.functions.keys().map(|name| &**name).collect();
    assert_eq!(names, ["layer", "layer.1", "layer.2", "forward"]);
    let params = |f: &str| m.functions[f].params().len();
    assert_eq!((params("layer.1"), params("layer.2")), (params("layer") + 2, params("layer") + 4));
    let at = weights(&m);
    merges(&LLAMA, &m, &lora, &at);
}

#[test]
fn what_is_no_matrix_of_products_is_refused() {
    let mut m = decoder(&LLAMA).unwrap();
    let products = product_weights(&m);
    assert!(!products.contains_key("embed"), "its rows are gathered too");
    assert!(products["layers.0.q"].is_turned && products["layers.0.q"].is_in_layer);
    let qkv = &product_weights(&decoder(&GPT2).unwrap())["layers.0.qkv"];
    assert!(!qkv.is_turned && (qkv.inputs, qkv.outputs) == (8, 48));
    let targets: BTreeSet<Arc<str>> = ["embed", "layers.0.norm"].map(Arc::from).into();
    let errors = add_lora(&mut m, &targets, OPTIONS).unwrap_err();
    let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2);
    assert!(told[0].contains("weight `embed` is not read by matrix products alone"), "{told:?}");
}
