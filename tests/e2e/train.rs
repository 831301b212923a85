//! Training against a plain PyTorch loop, and against itself.

mod dropout;
mod lora;
mod memory;
mod on_gpus;
mod pipeline;
mod precision;
mod ranks;
mod tensor;

use std::{path::PathBuf, sync::Arc};

pub(crate) use on_gpus::{Ranks, steps_of_ranks};

use driver::{CompileOptions, Group, Training, Update, Zero};
use exec::{Device, Model};
use frontend::ImportOptions;
use ir::artifact::Artifact;
use serde::Deserialize;
use train::{
    Checkpoints, MicroBatch, Optimizer, OptimizerConfig, Rank, Rule, Saved, Schedule, TrainError,
    TrainStep, Trainer, export, initialize, load_pretrained,
};

use crate::{
    onnx::npy,
    support::{compile_to, data, open, options, scratch},
};

/// What `tests/reference/training.py` wrote, and its constants.
#[derive(Deserialize)]
struct Reference {
    loss: Vec<f64>,
    grad_norm: Vec<f64>,
    weights: Vec<(String, f64, Vec<f64>)>,
}

const STEPS: usize = 100;
const GRAD_ACCUM: usize = 2;
const MICRO_BATCH: usize = 4;
const BETAS: [f64; 2] = [0.9, 0.95];
/// The documents of a step.
struct Documents {
    rows: Vec<i32>,
    longest: usize,
}

impl Documents {
    fn read() -> Documents {
        let rows = npy(&data("training/documents.npy"));
        let longest = rows.shape()[1];
        let rows = rows.to_i64s().into_iter().map(|x| i32::try_from(x).unwrap()).collect();
        Documents { rows, longest }
    }

    fn batch(&self, documents: std::ops::Range<usize>) -> MicroBatch {
        let mut batch = MicroBatch::default();
        for row in documents {
            let len = 9 + 7 * row % 25;
            let tokens = &self.rows[row * self.longest..][..len];
            let targets: Vec<i32> = tokens[1..].iter().copied().chain([-100]).collect();
            batch.push(tokens, &targets);
        }
        batch
    }
}

fn training_of(update: Update, groups: Vec<Group>) -> Training {
    let zero = Zero::default();
    let (others, lora, dropout, keep, memory) = (None, None, None, None, None);
    let (tensor, stages, evaluates) = (1, 1, true);
    Training {
        update,
        others,
        groups,
        lora,
        dropout,
        zero,
        tensor,
        stages,
        keep,
        memory,
        evaluates,
    }
}

fn options_of(update: Update) -> CompileOptions {
    let import = ImportOptions {
        max_batch_tokens: 256,
        max_sequences: 16,
        logit_rows: 256,
        ..Default::default()
    };
    CompileOptions { training: Some(training_of(update, vec![])), ..options(import) }
}

/// Training steps of all families, by all rules, in all types of weights.
pub(crate) fn models() -> Vec<(String, PathBuf, CompileOptions)> {
    let rules = [
        adamw(0.1),
        Update::Lion { betas: BETAS, weight_decay: 0.1 },
        Update::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.1 },
        Update::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.1 },
        Update::Adafactor { eps: 1e-3, clip_threshold: 1.0, weight_decay: 0.1 },
    ];
    let mut models = Vec::new();
    for case in ["llama-gqa3", "qwen3-mqa-tied", "gpt2-gelu-new", "mistral-window7"] {
        for (i, rule) in rules.iter().enumerate() {
            for dtype in [None, Some(ir::DType::Bf16), Some(ir::DType::F16)] {
                if i > 0 && dtype.is_some() {
                    continue;
                }
                let mut options = options_of(rule.clone());
                options.import.dtype = dtype;
                models.push((format!("{case} {rule:?} {dtype:?}"), folder(case), options));
            }
        }
    }
    models
}

/// Loss and norm of the gradient of the first steps of a model on a device, by AdamW.
pub(crate) fn first_steps(
    case: &str,
    how: impl FnOnce(&mut CompileOptions),
    device: Device,
    steps: usize,
) -> Vec<[f64; 2]> {
    let mut options = options_of(adamw(0.1));
    how(&mut options);
    let kind = if device.facts().is_some() { "gpu" } else { "cpu" };
    let (path, _) = compile_to(&format!("train-{kind}-{case}"), &folder(case), &options);
    let model = Model::load(Arc::new(Artifact::open(&path).unwrap()), device).unwrap();
    let mut step = TrainStep::load(&model, &Rank::alone()).unwrap();
    begin(&mut step, case).unwrap();
    let mut trainer = Trainer::new(step, rule(), 0);
    let documents = Documents::read();
    let metrics = (1..=steps).map(|number| {
        let metrics = trainer.advance(&batches(&documents, number)).unwrap();
        [metrics.loss, metrics.grad_norm]
    });
    metrics.collect()
}

/// The step of a model, its parameters those of the checkpoint.
fn load(case: &str, threads: usize) -> TrainStep {
    load_with(&format!("train-{case}"), case, &options_of(adamw(0.1)), threads)
}

fn adamw(weight_decay: f64) -> Update {
    Update::AdamW { betas: BETAS, eps: 1e-8, weight_decay }
}

fn load_with(name: &str, case: &str, options: &CompileOptions, threads: usize) -> TrainStep {
    let (path, _) = compile_to(name, &folder(case), options);
    let artifact = Arc::new(Artifact::open(&path).unwrap());
    let device = Device::cpu(std::num::NonZeroUsize::new(threads)).unwrap();
    let mut step =
        TrainStep::load(&Model::load(artifact, device).unwrap(), &Rank::alone()).unwrap();
    begin(&mut step, case).unwrap();
    step
}

/// The folder of a case: a checkpoint, or the configuration of a model that begins at random.
fn folder(case: &str) -> PathBuf {
    match tensor::CONFIGS.iter().find(|(name, ..)| *name == case) {
        Some((name, of, changes)) => tensor::configured(name, of, changes),
        None => data(&format!("families/{case}")),
    }
}

/// A folder with that configuration alone. Ranks read it while others write it anew.
fn configuration(name: &str, config: &serde_json::Value) -> PathBuf {
    let folder = scratch().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let new = folder.join(format!("{:?}", std::thread::current().id()));
    std::fs::write(&new, config.to_string()).unwrap();
    std::fs::rename(&new, folder.join("config.json")).unwrap();
    folder
}

/// Sets parameters to those that a case begins with.
fn begin(step: &mut TrainStep, case: &str) -> Result<(), TrainError> {
    let folder = folder(case);
    match folder.join("model.safetensors").is_file() {
        true => load_pretrained(step, &folder),
        false => initialize(step, &folder, 7),
    }
}

/// The micro-batches of a step.
fn batches(documents: &Documents, number: usize) -> Vec<MicroBatch> {
    let first = (number - 1) * GRAD_ACCUM * MICRO_BATCH;
    let starts = (0..GRAD_ACCUM).map(|i| first + i * MICRO_BATCH);
    starts.map(|start| documents.batch(start..start + MICRO_BATCH)).collect()
}

fn rule() -> Rule {
    let optimizer = OptimizerConfig {
        rule: Optimizer::Adamw { betas: BETAS, eps: 1e-8 },
        lr: 3e-3,
        weight_decay: 0.1,
        clip_norm: Some(1.0),
        schedule: Schedule::Cosine { min_lr: 3e-4 },
        warmup_steps: 10,
    };
    Rule { optimizer, steps: STEPS as u64, group_lrs: vec![] }
}

#[test]
fn a_hundred_steps_follow_pytorch() {
    let documents = Documents::read();
    for case in ["llama-gqa3", "qwen3-mqa-tied", "gpt2-gelu-new", "mistral-window7"] {
        let text = std::fs::read(data(&format!("training/{case}.json"))).unwrap();
        let want: Reference = serde_json::from_slice(&text).unwrap();
        let mut trainer = Trainer::new(load(case, 2), rule(), 0);
        let [mut worst_loss, mut worst_norm] = [0.0f64; 2];
        for number in 1..=STEPS {
            let metrics = trainer.advance(&batches(&documents, number)).unwrap();
            let (loss, norm) = (metrics.loss, metrics.grad_norm);
            let off = |got: f64, want: f64| (got - want).abs() / want.abs();
            worst_loss = worst_loss.max(off(loss, want.loss[number - 1]));
            worst_norm = worst_norm.max(off(norm, want.grad_norm[number - 1]));
            assert!(worst_loss < 1e-4, "{case}: step {number}: loss {loss}: {worst_loss:.1e} off");
            assert!(worst_norm < 1e-3, "{case}: step {number}: norm {norm}: {worst_norm:.1e} off");
        }
        for (name, norm, first) in &want.weights {
            let Some(bytes) = trainer.step().state(&format!("param.{name}")).unwrap() else {
                panic!("{case}: {name} is not trained");
            };
            let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            let values: Vec<f64> = values.map(f64::from).collect();
            let got = values.iter().map(|x| x * x).sum::<f64>().sqrt();
            assert!((got - norm).abs() < 1e-3 * norm, "{case}: {name}: norm {got}, not {norm}");
            for (got, want) in values.iter().zip(first) {
                assert!((got - want).abs() < 2e-3, "{case}: {name}: {got}, not {want}");
            }
        }
        println!("{case}: loss {worst_loss:.1e} off, norm {worst_norm:.1e} off");
    }
}

/// Log-probabilities for reinforcement learning come from the server, gradients from the trainer:
/// were they two models, importance weights would be wrong (Yao et al. 2025, "Your Efficient RL
/// Framework Secretly Brings You Off-Policy RL Training").
#[test]
fn scores_are_the_losses_of_training_bit_for_bit() {
    let documents = Documents::read();
    for case in ["llama-gqa3", "qwen3-mqa-tied", "gpt2-gelu-new", "mistral-window7"] {
        let tokens = &documents.rows[..27];
        let folder = data(&format!("families/{case}"));
        let (path, _) = compile_to(&format!("score-{case}"), &folder, &options(Default::default()));
        let ids: Vec<u32> = tokens.iter().map(|id| u32::try_from(*id).unwrap()).collect();
        let scores = open(&path, 2).score(&ids).unwrap();
        let mut step = load(case, 2);
        for (i, score) in scores.iter().enumerate().skip(1) {
            let mut targets = vec![-100; tokens.len()];
            targets[i - 1] = tokens[i];
            let mut batch = MicroBatch::default();
            // In company, too.
            batch.push(&tokens[3..9], &[-100; 6]);
            batch.push(tokens, &targets);
            let loss = step.evaluate(&batch).unwrap();
            let trained = step.accumulate(&batch, 0.0, 1.0).unwrap();
            let want = score.unwrap().to_bits();
            assert_eq!([-loss, -trained].map(f32::to_bits), [want; 2], "{case}: token {i}");
        }
    }
}

#[test]
fn a_run_that_goes_on_has_the_bits_of_one_that_did_not_stop() {
    let documents = Documents::read();
    let losses = |trainer: &mut Trainer, steps: std::ops::RangeInclusive<usize>| -> Vec<u64> {
        let loss = |n| trainer.advance(&batches(&documents, n)).unwrap().loss.to_bits();
        steps.map(loss).collect()
    };
    let case = "llama-gqa3";
    let mut whole = Trainer::new(load(case, 2), rule(), 0);
    let want = losses(&mut whole, 1..=6);
    let (planned, touched) = (whole.step().planned().unwrap(), whole.step().resident_bytes());
    assert!(touched <= planned.total(), "{touched} bytes of {planned:?}");

    // One thread now, and a checkpoint in between.
    let dir = scratch().join("train-checkpoints");
    let mut first = Trainer::new(load(case, 1), rule(), 0);
    let mut checkpoints = Checkpoints::new(&dir, 2);
    for step in 1..=3 {
        assert_eq!(losses(&mut first, step..=step), want[step - 1..step]);
        let saved =
            Saved { step: step as u64, position: step, run: "run".into(), loss_scale: None };
        checkpoints.save(first.step(), saved).unwrap();
    }
    checkpoints.finish().unwrap();
    let kept = std::fs::read_dir(&dir).unwrap().count();
    assert_eq!(kept, 2, "the oldest goes, and nothing half written stays");
    let mut step = load(case, 2);
    assert!(checkpoints.load::<usize>(&mut step, "another").is_err());
    let saved = checkpoints.load::<usize>(&mut step, "run").unwrap().unwrap();
    assert_eq!((saved.step, saved.position), (3, 3));
    let mut second = Trainer::new(step, rule(), saved.step);
    assert_eq!(losses(&mut second, 4..=6), want[3..]);
    for parameter in whole.step().parameters() {
        let name = format!("param.{}", parameter.name);
        assert!(
            whole.step().state(&name).unwrap() == second.step().state(&name).unwrap(),
            "{name}"
        );
    }

    // What was altered is told, not trained on.
    let states = dir.join("step-00000003/states.safetensors");
    let mut bytes = std::fs::read(&states).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&states, bytes).unwrap();
    let altered = checkpoints.load::<usize>(&mut load(case, 1), "run").unwrap_err().to_string();
    assert!(altered.contains("is not what was written"), "{altered}");
}

#[test]
fn what_is_not_finite_is_named_and_nothing_is_updated() {
    let documents = Documents::read();
    let mut step = load("gpt2-gelu-new", 2);
    let bad = "transformer.h.1.mlp.c_fc.bias";
    let name = format!("param.{bad}");
    let mut bytes = step.state(&name).unwrap().unwrap().to_vec();
    bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(step.set_state(&name, &bytes).unwrap());
    let before = step.state("param.transformer.wte.weight").unwrap().unwrap().to_vec();
    let mut trainer = Trainer::new(step, rule(), 0);
    let error = trainer.advance(&batches(&documents, 1)).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { step: 1, .. }), "{error}");
    let told = "step 1: what comes out of `transformer.h.1` is not finite, and its parameter \
                `transformer.h.1.mlp.c_fc.bias` is not";
    assert!(error.to_string().starts_with(told), "{error}");
    assert!(trainer.step().state("param.transformer.wte.weight").unwrap().unwrap() == before);
    assert_eq!(trainer.done(), 0);

    // Nor does a checkpoint of it take the place of a good one.
    let dir = scratch().join("train-not-finite");
    let mut checkpoints = Checkpoints::new(&dir, 1);
    let saved = Saved { step: 1, position: 1, run: "run".into(), loss_scale: None };
    checkpoints.save(&load("gpt2-gelu-new", 2), saved.clone()).unwrap();
    checkpoints.save(trainer.step(), Saved { step: 2, ..saved }).unwrap();
    let error = checkpoints.finish().unwrap_err().to_string();
    assert!(error.contains(&format!("`param.{bad}` has values that are not finite")), "{error}");
    assert_eq!(checkpoints.newest(), Some(1));
}

#[test]
fn groups_learn_at_their_own_rate_and_frozen_weights_stay() {
    let documents = Documents::read();
    let group = |pattern: &str, is_frozen| Group {
        pattern: regex::Regex::new(pattern).unwrap(),
        weight_decay: Some(0.0),
        is_frozen,
    };
    let groups = vec![group("embed_tokens|lm_head", true), group("norm", false)];
    let case = data("families/llama-gqa3");
    let options = CompileOptions {
        training: Some(training_of(adamw(0.1), groups)),
        ..options_of(adamw(0.1))
    };
    let (path, _) = compile_to("train-groups", &case, &options);
    let artifact = Arc::new(Artifact::open(&path).unwrap());
    let model = Model::load(artifact, Device::cpu(None).unwrap()).unwrap();
    let mut step = TrainStep::load(&model, &Rank::alone()).unwrap();
    load_pretrained(&mut step, &case).unwrap();
    assert_eq!(
        step.frozen().iter().map(|name| &**name).collect::<Vec<_>>(),
        ["lm_head.weight", "model.embed_tokens.weight"]
    );
    let norm = "param.model.norm.weight";
    let before = step.state(norm).unwrap().unwrap().to_vec();
    let still = Rule { group_lrs: vec![1.0, 0.0], ..rule() };
    let mut trainer = Trainer::new(step, still, 0);
    let first = trainer.advance(&batches(&documents, 1)).unwrap().loss;
    let again = trainer.advance(&batches(&documents, 1)).unwrap().loss;
    assert!(again < first, "{again} after {first}");
    assert!(trainer.step().state(norm).unwrap().unwrap() == before, "its rate is zero");

    // What is exported is whole, and serves.
    let folder = scratch().join("train-exported");
    export(trainer.step(), &case, &folder).unwrap();
    let (path, _) = compile_to("exported", &folder, &options_of_serving());
    let mut session = open(&path, 2);
    let tokens: Vec<u32> = (1..9).collect();
    assert_eq!(session.score(&tokens).unwrap().len(), tokens.len());
}

fn options_of_serving() -> CompileOptions {
    options(ImportOptions::default())
}
