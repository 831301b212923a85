//! 1,000 steps of every rule against PyTorch's optimisers, `tests/reference/optimizers.py`.

use std::{collections::BTreeMap, path::Path};

use indexmap::IndexMap;
use ir::{DType, Env, Interpreter, Module, Precision, Tensor, TensorType};
use serde::Deserialize;

use super::{Parameter, Update};
use crate::{Sharding, train_step::Training};

#[derive(Deserialize)]
struct Reference {
    cases: BTreeMap<String, Vec<Vec<Vec<f64>>>>,
}

const SHAPES: [&[usize]; 4] = [&[4, 6], &[8, 3], &[5], &[3]];
const STEPS: [u64; 4] = [1, 10, 100, 1000];
const BETAS: [f64; 2] = [0.9, 0.95];

/// The reference's numbers: SplitMix64 of a counter.
fn numbers(step: u64, tensor: u64, shape: &[usize]) -> Tensor {
    let number = |i: u64| {
        let x = ((step << 16 | tensor << 8) + 1 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 40) as f64 / f64::from(1 << 23) - 1.0
    };
    let count = shape.iter().product::<usize>() as u64;
    Tensor::from_f64s(DType::F32, shape, (0..count).map(number))
}

/// Inputs of step `t`, for gradients of that norm.
fn scalars(t: u64, norm: f64) -> BTreeMap<&'static str, f64> {
    let (lr, min_lr, warmup, step) = (3e-3, 3e-4, 100.0, t as f64);
    let share = (step - warmup) / (1000.0 - warmup);
    let cosine = min_lr + (lr - min_lr) * 0.5 * (1.0 + (std::f64::consts::PI * share).cos());
    let rate = if step <= warmup { lr * step / warmup } else { cosine };
    let [one, two] = BETAS.map(|beta| 1.0 - beta.powf(step));
    BTreeMap::from([
        ("lr.0", rate),
        ("grad_scale", (1.0 / (norm + 1e-6)).min(1.0)),
        ("correction1", one),
        ("correction2", two),
        ("newness", step.powf(-0.8)),
        ("relative_rate", step.powf(-0.5)),
    ])
}

fn follows_torch(case: &str, update: &Update) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/training/optimizers.json");
    let reference: Reference = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let adamw = Update::AdamW { betas: BETAS, eps: 1e-8, weight_decay: 0.0 };
    let mut module = Module::new("m");
    let mut parameters = Vec::new();
    for (i, shape) in SHAPES.iter().enumerate() {
        let weight = format!("w{i}");
        module.weight(&weight, TensorType::new(DType::F32, shape.iter().copied()));
        let update = match (update.takes_rank(shape.len()), shape.len()) {
            (false, _) => adamw.clone(),
            (true, 1) => update.clone().with_decay(0.0),
            (true, _) => update.clone(),
        };
        parameters.push(Parameter { weight: weight.as_str().into(), update, group: 0 });
    }
    let alone = Sharding::none();
    let training = Training::new(&module, &parameters, &alone);
    let graph = training.update().unwrap().graph;
    let mut states: BTreeMap<String, Tensor> = BTreeMap::new();
    for (i, shape) in (0..).zip(SHAPES) {
        states.insert(format!("param.w{i}"), numbers(0, i, shape));
    }
    let none = IndexMap::new();
    let interpreter = Interpreter::new(&module, &none, Precision::F32);
    let mut checked = 0;
    for step in 1..=STEPS[STEPS.len() - 1] {
        let mut squares = 0.0;
        for (i, shape) in (0..).zip(SHAPES) {
            let grad = numbers(step, i, shape);
            squares += grad.to_f64s().iter().map(|x| x * x).sum::<f64>();
            states.insert(format!("grad.w{i}"), grad);
        }
        let scalars = scalars(step, squares.sqrt());
        let input = |param: ir::Value| {
            let name = graph.param_name(param.node);
            match scalars.get(name) {
                Some(x) => Tensor::from_f64s(DType::F32, &[], [*x]),
                None => states.get(name).cloned().unwrap_or_else(|| {
                    let shape = graph.ty(param).const_shape().unwrap();
                    Tensor::from_f64s(DType::F32, &shape, vec![0.0; shape.iter().product()])
                }),
            }
        };
        let inputs: Vec<Tensor> = graph.param_values().map(input).collect();
        let outputs = interpreter.eval(&graph, &inputs, &Env::new()).unwrap();
        for ((name, _), value) in graph.outputs.iter().zip(outputs) {
            states.insert(name.strip_suffix(".out").unwrap().to_owned(), value);
        }
        let Some(at) = STEPS.iter().position(|wanted| *wanted == step) else { continue };
        for (i, want) in reference.cases[case][at].iter().enumerate() {
            let got = states[&format!("param.w{i}")].to_f64s();
            let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
            let off = norm(&mut got.iter().zip(want).map(|(a, b)| a - b)).sqrt();
            let off = off / norm(&mut want.iter().copied()).sqrt();
            assert!(off < 1e-6, "{case}: w{i} is {off:.1e} off after {step} steps: {got:?}");
            checked += 1;
        }
    }
    assert_eq!(checked, SHAPES.len() * STEPS.len());
}

#[test]
fn adamw() {
    follows_torch("adamw", &Update::AdamW { betas: BETAS, eps: 1e-8, weight_decay: 0.1 });
}

#[test]
fn lion() {
    follows_torch("lion", &Update::Lion { betas: [0.9, 0.99], weight_decay: 0.1 });
}

#[test]
fn sgd() {
    let sgd = |momentum, nesterov| Update::Sgd { momentum, nesterov, weight_decay: 0.1 };
    follows_torch("sgd", &sgd(0.9, true));
    follows_torch("sgd_plain", &sgd(0.0, false));
}

#[test]
fn adafactor() {
    let adafactor = Update::Adafactor { eps: 1e-3, clip_threshold: 1.0, weight_decay: 0.1 };
    follows_torch("adafactor", &adafactor);
}

#[test]
fn muon() {
    let muon = Update::Muon { momentum: 0.95, nesterov: true, ns_steps: 5, weight_decay: 0.1 };
    follows_torch("muon", &muon);
}
