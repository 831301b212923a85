//! Keys and values in every type that memory has: what rounding loses, what it saves, and that the
//! numeric contract holds.

use std::{num::NonZeroUsize, ops::ControlFlow, path::PathBuf};

use driver::CompileOptions;
use frontend::ImportOptions;
use ir::DType;
use serve::{Session, SessionOptions};

use crate::{
    families::greedy,
    samples::{loss, rise_percent, samples},
    support::{compile_to, data, open, options},
};

const TYPES: [DType; 5] = [DType::F32, DType::Bf16, DType::F16, DType::I8, DType::F8E4M3];

fn compile(kv_dtype: DType, import: ImportOptions) -> PathBuf {
    let options = CompileOptions { kv_dtype, ..options(import) };
    compile_to(&format!("stories-{kv_dtype}"), &data("stories"), &options).0
}

/// A text of 320 tokens.
fn text() -> Vec<u32> {
    samples().sequences.swap_remove(0)
}

fn bits(scores: &[Option<f32>]) -> Vec<u32> {
    scores.iter().map(|p| p.map_or(0, f32::to_bits)).collect()
}

fn score(session: &mut Session, tokens: &[u32]) -> Vec<u32> {
    bits(&session.score(tokens).unwrap())
}

#[test]
fn perplexity_hardly_moves() {
    let sequences = samples().sequences;
    let loss_of = |dtype| loss(&mut open(&compile(dtype, ImportOptions::default()), 2), &sequences);
    let [plain, rest @ ..] = TYPES.map(loss_of);
    let rises = rest.map(|loss| rise_percent(loss, plain));
    println!("{plain:.6} nats a token; of bf16, f16, int8, fp8 {rises:+.5?} %");
    for (rise, most) in rises.into_iter().zip([0.03, 0.003, 0.1, 0.3]) {
        assert!(rise.abs() < most && rise != 0.0, "perplexity moves by {rise} %, not up to {most}");
    }
}

#[test]
fn scores_depend_neither_on_threads_nor_on_how_a_prompt_is_cut() {
    let tokens = text();
    let tokens = &tokens[..300];
    for dtype in TYPES {
        let mut all = Vec::new();
        for (step, rows, threads) in [(1, 1, 1), (7, 7, 2), (64, 5, 3), (512, 64, 2)] {
            let import = ImportOptions {
                max_seq_len: Some(tokens.len() as u64),
                max_batch_tokens: step,
                max_sequences: 1,
                logit_rows: rows,
                ..ImportOptions::default()
            };
            let mut session = open(&compile(dtype, import), threads);
            let scores = score(&mut session, tokens);
            for n in [1, 16, 17, 65, 130] {
                assert_eq!(score(&mut session, &tokens[..n]), scores[..n], "{dtype}: {n} tokens");
            }
            all.push(scores);
        }
        assert!(all.iter().all(|other| *other == all[0]), "{dtype}");
    }
}

#[test]
fn generating_and_scoring_agree_wherever_the_prompt_ends() {
    let text = text();
    let prompt = &text[..70];
    let mut scores = Vec::new();
    for dtype in TYPES {
        let mut session = open(&compile(dtype, ImportOptions::default()), 2);
        let mut continue_with = |prompt: &[u32], n: usize| {
            session.generate(prompt, &greedy(n), |_| ControlFlow::Continue(())).unwrap()
        };
        let story = continue_with(prompt, 40);
        let text = [prompt, &story.tokens].concat();
        let halfway = continue_with(&text[..prompt.len() + 19], 21);
        assert_eq!(halfway.tokens, story.tokens[19..], "{dtype}");
        let all: Vec<u32> = story.logprobs.iter().map(|p| p.to_bits()).collect();
        let half: Vec<u32> = halfway.logprobs.iter().map(|p| p.to_bits()).collect();
        assert_eq!(half, all[19..], "{dtype}");
        assert_eq!(score(&mut session, &text)[prompt.len()..], all, "{dtype}");
        // Alone, and with other streams.
        let (a, b) = (greedy(12), greedy(9));
        let many = [(prompt, &a), (&prompt[..33], &b)];
        let options = SessionOptions { sequences: NonZeroUsize::new(2), ..Default::default() };
        let mut session =
            Session::open(&compile(dtype, ImportOptions::default()), options).unwrap();
        let many = session.generate_batch(&many, |_| ControlFlow::Continue(())).unwrap();
        let first: Vec<u32> = many[0].logprobs.iter().map(|p| p.to_bits()).collect();
        assert_eq!(first, all[..12], "{dtype}: in a batch");
        scores.push(score(&mut session, prompt));
    }
    // Nothing bypasses the rounding: each type gives scores of its own.
    for (i, other) in scores.iter().enumerate() {
        assert!(scores[..i].iter().all(|s| s != other), "{}", TYPES[i]);
    }
}

#[test]
fn memory_follows_the_type() {
    let state_bytes = TYPES.map(|dtype| {
        let session = open(&compile(dtype, ImportOptions::default()), 1);
        let memory = session.memory().unwrap();
        assert!(memory.1.total() <= memory.0.total());
        memory.0.state_bytes as f64
    });
    let head_dim = {
        let text = std::fs::read_to_string(data("stories").join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        let of = |name: &str| config[name].as_u64().unwrap() as f64;
        of("hidden_size") / of("num_attention_heads")
    };
    let [f32s, bf16, f16, int8, fp8] = state_bytes;
    // Pages are whole.
    let near = |a: f64, b: f64| (a / b - 1.0).abs() < 0.02;
    assert!(near(bf16, f32s / 2.0) && near(f16, f32s / 2.0), "{state_bytes:?}");
    assert!(near(int8, f32s / 4.0 * (head_dim + 4.0) / head_dim), "{state_bytes:?}, {head_dim}");
    assert!(near(fp8, int8), "{state_bytes:?}");
}
