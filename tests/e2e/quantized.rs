//! Quantised models: what they lose, and that the numeric contract holds for them too.

use std::path::PathBuf;

use driver::{CompileOptions, Quantization};
use frontend::ImportOptions;

use crate::{
    families::expect,
    samples::{loss, rise_percent, samples},
    support::{compile_to, data, open, options},
};

fn compile(model: &str, quantize: Option<Quantization>, import: ImportOptions) -> (PathBuf, u64) {
    let options = CompileOptions { quantize, ..options(import) };
    let (path, compiled) = compile_to(&model.replace('/', "-"), &data(model), &options);
    (path, compiled.weight_bytes)
}

#[test]
fn perplexity_hardly_rises() {
    let expect = samples();
    let loss_of = |quantize| {
        let (path, bytes) = compile("stories", quantize, ImportOptions::default());
        (loss(&mut open(&path, 2), &expect.sequences), bytes)
    };
    let (plain, plain_bytes) = loss_of(None);
    let (q8, q8_bytes) = loss_of(Some(Quantization::Q8));
    let (q4, q4_bytes) = loss_of(Some(Quantization::Q4));
    let (q8, q4) = (rise_percent(q8, plain), rise_percent(q4, plain));
    println!("{plain:.5} nats a token; q8 raises perplexity by {q8:.3} %, q4 by {q4:.3} %");
    assert!((plain - expect.loss).abs() < 1e-4, "{plain} and {}", expect.loss);
    assert!(q8.abs() < 0.1, "q8 raises perplexity by {q8:.3} %");
    assert!(q4 < expect.q4_0_rise_percent, "q4 {q4:.3} %, Q4_0 {} %", expect.q4_0_rise_percent);
    assert!(q4_bytes < q8_bytes && q8_bytes < plain_bytes);
}

#[test]
fn quantised_scores_depend_neither_on_threads_nor_on_how_a_prompt_is_cut() {
    for (case, quantize) in [
        ("llama-gqa3", Quantization::Q8),
        ("qwen2-bf16", Quantization::Q4),
        ("gpt2-gelu-new", Quantization::Q4),
    ] {
        let model = format!("families/{case}");
        let expect = expect(&data(&model));
        let longest = expect.prompts.iter().max_by_key(|p| p.len()).unwrap();
        let mut all = Vec::new();
        for (tokens, rows, threads) in [(1, 1, 1), (7, 7, 2), (64, 5, 3), (512, 64, 2)] {
            let import = ImportOptions {
                max_seq_len: Some(longest.len() as u64),
                max_batch_tokens: tokens,
                max_sequences: 1,
                logit_rows: rows,
                ..ImportOptions::default()
            };
            let (path, _) = compile(&model, Some(quantize), import);
            let mut session = open(&path, threads);
            let scores = session.score(longest).unwrap();
            let prefix = session.score(&longest[..longest.len() / 2]).unwrap();
            let bits =
                |s: &[Option<f32>]| s.iter().map(|p| p.map(f32::to_bits)).collect::<Vec<_>>();
            assert_eq!(bits(&prefix), bits(&scores[..prefix.len()]), "{case}: prefix");
            all.push(bits(&scores));
        }
        assert!(all.iter().all(|other| *other == all[0]), "{case}");
    }
}
