//! Every family against transformers: tiny random checkpoints with odd sizes, fixtures by
//! `tests/reference/families.py`.

use std::{ops::ControlFlow, path::Path};

use frontend::ImportOptions;
use serde::Deserialize;
use serve::{GenerateParams, SamplingParams, Session};

use crate::support::{compile_to, data, open, options};

/// How far a log-probability may be from transformers' in float32.
const TOLERANCE: f32 = 1e-3;

#[derive(Deserialize)]
pub(crate) struct Expect {
    family: String,
    max_seq_len: u64,
    pub(crate) prompts: Vec<Vec<u32>>,
    #[serde(default)]
    logprobs: Vec<Vec<Option<f32>>>,
    #[serde(default)]
    greedy: Vec<Greedy>,
    #[serde(default)]
    embedding: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Greedy {
    prompt: usize,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
}

impl Expect {
    pub(crate) fn max_seq_len(&self) -> usize {
        usize::try_from(self.max_seq_len).unwrap()
    }
}

pub(crate) fn expect(case: &Path) -> Expect {
    let text = std::fs::read_to_string(case.join("expect.json")).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", case.display()))
}

/// Compiles a fixture with bounds that cut long prompts into several chunks.
pub(crate) fn compile_case(name: &str) -> (std::path::PathBuf, Expect) {
    let case = data("families").join(name);
    let expect = expect(&case);
    let import = ImportOptions {
        max_seq_len: Some(expect.max_seq_len),
        max_batch_tokens: 128,
        ..ImportOptions::default()
    };
    (compile_to(name, &case, &options(import)).0, expect)
}

pub(crate) fn greedy(max_tokens: usize) -> GenerateParams {
    GenerateParams {
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        sampling: SamplingParams { temperature: 0.0, ..Default::default() },
        ..Default::default()
    }
}

fn check_scores(session: &mut Session, expect: &Expect, wrong: &mut Vec<String>) {
    for (prompt, want) in expect.prompts.iter().zip(&expect.logprobs) {
        let got = session.score(prompt).unwrap();
        assert_eq!(got.len(), want.len());
        let far = got.iter().zip(want).map(|(g, w)| match (g, w) {
            (Some(g), Some(w)) => (g - w).abs(),
            (None, None) => 0.0,
            _ => f32::INFINITY,
        });
        // NaN must count as far.
        let far = far.fold(0.0f32, |m, d| if d <= m { m } else { d });
        if !(far <= TOLERANCE) {
            wrong.push(format!("prompt of {}: off by {far}", prompt.len()));
        }
    }
}

fn check_greedy(session: &mut Session, expect: &Expect, wrong: &mut Vec<String>) {
    for g in &expect.greedy {
        let prompt = &expect.prompts[g.prompt];
        let out = session.generate(prompt, &greedy(g.tokens.len()), |_| ControlFlow::Continue(()));
        let out = out.unwrap();
        if out.tokens != g.tokens {
            let at = out.tokens.iter().zip(&g.tokens).position(|(a, b)| a != b);
            wrong.push(format!("prompt of {}: greedy token {at:?} differs", prompt.len()));
            continue;
        }
        for (i, (a, b)) in out.logprobs.iter().zip(&g.logprobs).enumerate() {
            if !((a - b).abs() <= TOLERANCE) {
                wrong.push(format!("prompt of {}: new token {i}: {a} for {b}", prompt.len()));
            }
        }
    }
}

fn check_embeddings(session: &mut Session, expect: &Expect, wrong: &mut Vec<String>) {
    let lists: Vec<&[u32]> = expect.prompts.iter().map(Vec::as_slice).collect();
    let got = session.embed(&lists).unwrap();
    for ((prompt, got), want) in expect.prompts.iter().zip(&got).zip(&expect.embedding) {
        let far = got.iter().zip(want).map(|(a, b)| (a - b).abs());
        let far = far.fold(0.0f32, |m, d| if d <= m { m } else { d });
        if got.len() != want.len() || !(far <= TOLERANCE) {
            wrong.push(format!("embedding of {} tokens: off by {far}", prompt.len()));
        }
    }
}

/// Holds every fixture of a family against its expectations, and reports all that differ.
fn check_family(family: &str) {
    let mut names: Vec<String> = std::fs::read_dir(data("families"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with(&format!("{family}-")))
        .collect();
    names.sort();
    assert!(names.len() >= 3, "only {} fixtures of {family}", names.len());
    let mut failures = Vec::new();
    for name in names {
        let (path, expect) = compile_case(&name);
        let mut session = open(&path, 2);
        let mut wrong = Vec::new();
        if expect.family == "bert" {
            assert!(!expect.embedding.is_empty());
            check_embeddings(&mut session, &expect, &mut wrong);
        } else {
            assert!(!expect.logprobs.is_empty());
            check_scores(&mut session, &expect, &mut wrong);
            check_greedy(&mut session, &expect, &mut wrong);
        }
        failures.extend(wrong.into_iter().map(|w| format!("{name}: {w}")));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

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
