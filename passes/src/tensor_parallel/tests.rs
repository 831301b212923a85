//! Two tiny decoders taken apart: losses and gradients are those of the whole, and ranks meet as
//! often as Megatron's do.

use std::{collections::BTreeMap, sync::Arc};

use ir::{Builder, DType, Interpreter, Precision, Ranks, Tensor};

use super::*;
use crate::{
    FoldLimits, canonicalize, optimize,
    testing::{Roofline, assert_near},
    vjp::{
        Recompute, Wrt, differentiate,
        tests::{
            Weights,
            models::{Family, GPT2, LLAMA, decoder, inputs, weights},
            run,
        },
    },
};

const TENSOR: &str = "tensor";

/// The rank's part of a tensor.
fn part(whole: &Tensor, split: &Split, rank: usize) -> Tensor {
    let shape: Vec<u64> = whole.shape().iter().map(|n| *n as u64).collect();
    let values = whole.to_f64s();
    let own = split.runs(&shape, rank as u64).flat_map(|run| values[run].to_vec());
    let shape = split.part(&shape).into_iter().map(|n| usize::try_from(n).unwrap());
    let shape: Vec<usize> = shape.collect();
    Tensor::from_f64s(whole.dtype(), &shape, own.collect::<Vec<f64>>())
}

/// The same function with its weights as further parameters, whose names are returned.
fn with_weights_given(m: &mut Module, function: &str) -> Vec<Arc<str>> {
    let source = m.functions[function].clone();
    let mut b = Builder::new(m, "given");
    let mut args = Vec::new();
    for p in source.param_values() {
        args.push(b.param(source.param_name(p.node), source.ty(p).clone()).unwrap());
    }
    let names: Vec<Arc<str>> = m.weights.keys().cloned().collect();
    let mut given = BTreeMap::new();
    for name in &names {
        let param = b.param(&format!("weight.{name}"), m.weights[name].clone());
        given.insert(name.clone(), param.unwrap());
    }
    let outputs = b.inline_with(&source, &args, |_, id, _| {
        let node = source.node(id);
        Ok((node.op.name() == "weight").then(|| vec![given[node.attrs.str("name")]]))
    });
    for ((name, _), v) in source.outputs.iter().zip(outputs.unwrap()) {
        b.output(name, v);
    }
    let graph = b.finish();
    m.add(graph);
    names
}

/// What `forward.grad` gives on each rank, by name.
fn run_on_ranks(
    m: &Module,
    splits: &BTreeMap<Arc<str>, Split>,
    at: &Weights,
    ranks: usize,
) -> Vec<Weights> {
    let mut m = m.clone();
    let names = with_weights_given(&mut m, "forward.grad");
    ir::verify(&m).unwrap();
    let of_rank = |rank: usize| {
        let own = names.iter().map(|name| match splits.get(name) {
            Some(split) => part(&at[name], split, rank),
            None => at[name].clone(),
        });
        inputs().into_iter().chain(own).collect::<Vec<Tensor>>()
    };
    let given: Vec<Vec<Tensor>> = (0..ranks).map(of_rank).collect();
    let none = IndexMap::new();
    let interpreter = Interpreter::new(&m, &none, Precision::F64);
    let out = interpreter.run_ranks("given", &Ranks::new(&[(TENSOR, ranks)]), &given, &[]);
    let outputs: Vec<Arc<str>> =
        m.functions["given"].outputs.iter().map(|(name, _)| name.clone()).collect();
    let named = |out: Vec<Tensor>| outputs.iter().cloned().zip(out).collect();
    out.unwrap().into_iter().map(named).collect()
}

fn optimized(m: &Module) -> Module {
    let mut m = m.clone();
    canonicalize(&mut m, FoldLimits::default()).unwrap();
    let params = weight_params(&m);
    let env = ir::Env::from([("T".into(), 7), ("S".into(), 2)]);
    optimize(&mut m, &params, &Roofline, &env).unwrap();
    ir::verify(&m).unwrap();
    m
}

fn grad(m: &Module, how: Recompute<'_>) -> Module {
    let wrt = Wrt::weights_but(m, &BTreeSet::new());
    differentiate(m, "forward", &wrt, "loss", how).unwrap_or_else(|e| panic!("{e:?}"))
}

fn check(family: &Family, ranks: usize) {
    let whole = decoder(family).unwrap();
    let at = weights(&whole);
    let names = grad(&whole, Recompute::None);
    let want = run(&names, "forward.grad", &at, &inputs(), &ir::Env::new());
    let names = names.functions["forward.grad"].outputs.iter().map(|(name, _)| name.clone());
    let want: Weights = names.zip(want).collect();

    let mut m = whole.clone();
    let splits = tensor_parallel(&mut m, TENSOR, u32::try_from(ranks).unwrap()).unwrap();
    ir::verify(&m).unwrap();
    for (form, how) in [
        (m.clone(), Recompute::None),
        (optimized(&m), Recompute::None),
        (optimized(&m), Recompute::Full),
    ] {
        for (rank, got) in
            run_on_ranks(&grad(&form, how), &splits, &at, ranks).into_iter().enumerate()
        {
            for (name, got) in got {
                let want = &want[&name];
                let split = name.strip_prefix("grad.").and_then(|weight| splits.get(weight));
                let want = split.map_or_else(|| want.clone(), |split| part(want, split, rank));
                assert_eq!(got.shape(), want.shape(), "{name}");
                assert_near(&[got], &[want], 1e-8);
            }
        }
    }
}

#[test]
fn a_llama_over_two_ranks() {
    check(&LLAMA, 2);
}

#[test]
fn a_llama_over_more_ranks_than_key_and_value_heads() {
    check(&LLAMA, 4);
}

#[test]
fn a_gpt2_over_two_and_four_ranks() {
    check(&GPT2, 2);
    check(&GPT2, 4);
}

fn count(m: &Module, function: &str, op: &str) -> usize {
    let graph = &m.functions[function];
    graph.topo().iter().filter(|id| graph.node(**id).op.name() == op).count()
}

#[test]
fn ranks_meet_twice_a_layer_each_way() {
    for family in [&LLAMA, &GPT2] {
        let mut m = decoder(family).unwrap();
        tensor_parallel(&mut m, TENSOR, 2).unwrap();
        assert_eq!(count(&m, "layer", "all_reduce"), 2);
        assert_eq!(count(&m, "forward", "all_reduce"), 0);
        let m = grad(&optimized(&m), Recompute::None);
        assert_eq!(count(&m, "layer.forward", "all_reduce"), 2);
        assert_eq!(count(&m, "layer.backward", "all_reduce"), 2);
    }
}

#[test]
fn matrices_are_cut_by_heads_and_columns_and_rows() {
    let mut m = decoder(&GPT2).unwrap();
    let splits = tensor_parallel(&mut m, TENSOR, 2).unwrap();
    let cut = |name: &str| splits.get(name).map(|split| (split.dim, split.pieces.clone()));
    assert_eq!(cut("layers.1.qkv"), Some((1, vec![16, 16, 16])));
    assert_eq!(cut("layers.1.qkv_bias"), Some((0, vec![16, 16, 16])));
    assert_eq!(cut("layers.1.o"), Some((0, vec![16])));
    assert_eq!(cut("layers.1.o_bias"), None);
    assert_eq!(cut("layers.2.up_bias"), Some((0, vec![12])));
    assert_eq!(cut("layers.2.down"), Some((0, vec![12])));
    assert_eq!(cut("embed"), None);
    assert_eq!(m.weights["layers.1.qkv"].to_string(), "f32[8, 24]");
    let mut m = decoder(&LLAMA).unwrap();
    let splits = tensor_parallel(&mut m, TENSOR, 4).unwrap();
    assert!(!splits.contains_key("layers.0.k"), "two heads for four ranks");
    assert_eq!(splits["layers.0.q"].dim, 0);
    assert_eq!(splits["layers.0.down"].dim, 1);
}

#[test]
fn one_rank_changes_nothing() {
    let whole = decoder(&LLAMA).unwrap();
    let mut m = whole.clone();
    assert!(tensor_parallel(&mut m, TENSOR, 1).unwrap().is_empty());
    assert_eq!(m.to_string(), whole.to_string());
}

#[test]
fn everything_that_ranks_do_not_divide_is_named() {
    let mut m = decoder(&LLAMA).unwrap();
    let errors = tensor_parallel(&mut m, TENSOR, 3).unwrap_err();
    let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert!(
        told.iter().any(|e| e.contains("`tensor = 3` does not divide its 4 heads")),
        "{told:?}"
    );
    let errors = tensor_parallel(&mut decoder(&LLAMA).unwrap(), TENSOR, 8).unwrap_err();
    assert_eq!(errors.len(), 2, "heads and columns: {errors:?}");
}

#[test]
fn a_weight_that_is_read_whole_as_well_is_named() {
    let mut m = decoder(&LLAMA).unwrap();
    let source = m.functions["forward"].clone();
    let mut b = Builder::resume(&m, source);
    let w = b.weight("layers.1.down").unwrap();
    let w = b.reduce("reduce_sum", w, &[0, 1], false).unwrap();
    b.output("sum", w);
    let graph = b.finish();
    m.add(graph);
    let errors = tensor_parallel(&mut m, TENSOR, 2).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].to_string().contains("layers.1.down"), "{errors:?}");
}

#[test]
fn a_model_with_nothing_to_share_is_named() {
    let mut m = Module::new("plain");
    m.weight("w", TensorType::new(DType::F32, [4i64, 4]));
    let mut b = m.builder("main");
    let x = b.param("x", TensorType::new(DType::F32, [2i64, 4])).unwrap();
    let w = b.weight("w").unwrap();
    let y = b.matmul(x, w).unwrap();
    b.output("y", y);
    let graph = b.finish();
    m.add(graph);
    m.entries.push("main".into());
    let errors = tensor_parallel(&mut m, TENSOR, 2).unwrap_err();
    assert!(errors[0].to_string().contains("no product that 2 ranks could share"));
}
