//! Training against a plain PyTorch loop, and against itself.

use std::sync::Arc;

use driver::{CompileOptions, Training, Update};
use exec::{Device, Model};
use frontend::ImportOptions;
use ir::artifact::Artifact;
use serde::Deserialize;
use train::{
    MicroBatch, Optimizer, OptimizerConfig, Rule, Schedule, TrainStep, Trainer, load_pretrained,
};

use crate::{
    onnx::npy,
    support::{compile_to, data, options},
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
        let rows = rows.to_f64s().into_iter().map(|x| x as i32).collect();
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

fn options_of(update: Update) -> CompileOptions {
    let import = ImportOptions {
        max_batch_tokens: 256,
        max_sequences: 16,
        logit_rows: 256,
        ..Default::default()
    };
    let training = Training { update, groups: vec![] };
    CompileOptions { training: Some(training), ..options(import) }
}

/// The step of a model, its parameters those of the checkpoint.
fn load(case: &str, threads: usize) -> TrainStep {
    let adamw = Update::AdamW { betas: BETAS, eps: 1e-8, weight_decay: 0.1 };
    let folder = data(&format!("families/{case}"));
    let (path, _) = compile_to(&format!("train-{case}"), &folder, &options_of(adamw));
    let artifact = Arc::new(Artifact::open(&path).unwrap());
    let device = Device::cpu(std::num::NonZeroUsize::new(threads)).unwrap();
    let mut step = TrainStep::load(&Model::load(artifact, device).unwrap()).unwrap();
    load_pretrained(&mut step, &folder).unwrap();
    step
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
            let Some(bytes) = trainer.step().state(&format!("param.{name}")) else {
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
