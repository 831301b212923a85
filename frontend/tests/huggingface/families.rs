//! Imports every checkpoint of `tests/data/families` and compares what the interpreter computes
//! with what transformers computed in float32 (`tests/reference/README.md`).

use std::path::{Path, PathBuf};

use brolly_frontend::{ImportOptions, import};
use ir::{ModelKind, Tensor};
use serde_json::Value;

use crate::support::{fixture, run};

/// Float32 on both sides, in different orders of summation.
const TOLERANCE: f64 = 2e-4;

#[test]
fn llama() {
    check_family("llama");
}

#[test]
fn mistral() {
    check_family("mistral");
}

#[test]
fn qwen2() {
    check_family("qwen2");
}

#[test]
fn qwen3() {
    check_family("qwen3");
}

#[test]
fn gpt2() {
    check_family("gpt2");
}

#[test]
fn bert() {
    check_family("bert");
}

fn check_family(family: &str) {
    let mut cases = 0;
    for folder in folders() {
        let expect: Value =
            serde_json::from_slice(&std::fs::read(folder.join("expect.json")).unwrap()).unwrap();
        if expect["family"] == family {
            let worst = check_case(&folder, &expect);
            eprintln!("{:28} {worst:.1e}", folder.file_name().unwrap().display());
            cases += 1;
        }
    }
    assert!(cases >= 3, "{cases} cases of {family}");
}

fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<_> =
        fixture("").read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}

/// Runs a case's prompts as one packed batch; returns the largest difference.
fn check_case(folder: &Path, expect: &Value) -> f64 {
    let options =
        ImportOptions { max_seq_len: expect["max_seq_len"].as_u64(), ..ImportOptions::default() };
    let imported = import(folder, &options).unwrap_or_else(|e| panic!("{folder:?}: {e:#?}"));
    ir::verify(&imported.module).unwrap_or_else(|e| panic!("{folder:?}: {e:#?}"));

    let prompts: Vec<Vec<i64>> = expect["prompts"].as_array().unwrap().iter().map(list).collect();
    let outputs = run(&imported, &prompts);
    let (mut worst, mut row) = (0f64, 0);
    let mut compare = |got: &[f64], want: &[f64], what: &str| {
        assert_eq!(got.len(), want.len());
        for (a, b) in got.iter().zip(want) {
            assert!((a - b).abs() <= TOLERANCE, "{folder:?}, {what}: {a} against {b}");
            worst = worst.max((a - b).abs());
        }
    };
    for (case, prompt) in prompts.iter().enumerate() {
        let what = format!("prompt of {} tokens", prompt.len());
        match imported.info.kind {
            ModelKind::Decoder => {
                let want: Vec<f64> =
                    expect["logprobs"][case].as_array().unwrap()[1..].iter().map(float).collect();
                let logits = &outputs[0].slice(0, row, prompt.len(), 1);
                compare(&log_probabilities(logits, prompt), &want, &what);
            }
            _ => {
                let floats = |field: &str| -> Vec<f64> {
                    expect[field][case].as_array().unwrap().iter().map(float).collect()
                };
                let at = |t: &Tensor, row: usize| t.slice(0, row, 1, 1).to_f64s();
                compare(&at(&outputs[0], case), &floats("embedding"), &what);
                compare(&at(&outputs[1], row), &floats("first_row"), &what);
                compare(&at(&outputs[1], row + prompt.len() - 1), &floats("last_row"), &what);
            }
        }
        row += prompt.len();
    }
    worst
}

/// Log-probability of each token but the first, given those before it.
fn log_probabilities(logits: &Tensor, prompt: &[i64]) -> Vec<f64> {
    let vocab = logits.shape()[1];
    let rows = logits.to_f64s();
    let next = rows.chunks(vocab).zip(&prompt[1..]);
    next.map(|(row, token)| {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
        row[usize::try_from(*token).unwrap()] - max - sum.ln()
    })
    .collect()
}

fn list(v: &Value) -> Vec<i64> {
    v.as_array().unwrap().iter().map(|t| t.as_i64().unwrap()).collect()
}

fn float(v: &Value) -> f64 {
    v.as_f64().unwrap()
}
