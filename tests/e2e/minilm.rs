//! all-MiniLM-L6-v2: real weights against sentence-transformers.

use std::path::{Path, PathBuf};

use frontend::ImportOptions;
use ir::{Bounds, DType, Tensor};
use serde::Deserialize;

use crate::support::{compile_to, data, open, options_with_text};

#[derive(Deserialize)]
struct Expect {
    sentences: Vec<String>,
    embeddings: Vec<Vec<f32>>,
    num_tokens: Vec<usize>,
}

/// Where `cargo xtask minilm` puts the model.
fn model() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/minilm");
    if folder.join("model.safetensors").is_file() {
        return Some(folder);
    }
    println!("skipped: all-MiniLM-L6-v2 is not there; `cargo xtask minilm` fetches it");
    None
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn sentences_embed_as_sentence_transformers_embeds_them() {
    let Some(folder) = model() else { return };
    let text = std::fs::read_to_string(data("minilm/expect.json")).unwrap();
    let expect: Expect = serde_json::from_str(&text).unwrap();
    assert!(expect.sentences.len() >= 40);
    let options = options_with_text(&folder, ImportOptions::default());
    let (path, compiled) = compile_to("minilm", &folder, &options);
    let fused = compiled.fusions.iter().filter(|f| f.kind == "attention");
    assert_eq!(fused.filter(|f| f.fused).map(|f| f.count).sum::<usize>(), 6);
    let mut session = open(&path, 2);
    for (sentence, n) in expect.sentences.iter().zip(&expect.num_tokens) {
        assert_eq!(session.encode_for_embedding(sentence).unwrap().len(), *n, "{sentence:?}");
    }
    let sentences: Vec<&str> = expect.sentences.iter().map(String::as_str).collect();
    let got = session.embed_texts(&sentences).unwrap();
    for ((sentence, got), want) in sentences.iter().zip(&got).zip(&expect.embeddings) {
        let c = cosine(got, want);
        assert!(c >= 0.9999, "{c} for {sentence:?}");
    }
}

/// Mean over tokens, scaled to length one, as the model's `modules.json` asks for.
fn pool(states: &[f32], hidden: usize) -> Vec<f32> {
    let mut mean = vec![0.0f32; hidden];
    for row in states.chunks(hidden) {
        mean.iter_mut().zip(row).for_each(|(m, x)| *m += x);
    }
    let norm = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
    mean.iter().map(|x| x / norm).collect()
}

#[test]
fn its_onnx_exports_embed_alike_with_every_attention_fused() {
    let Some(folder) = model() else { return };
    let exports = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/minilm-onnx");
    let Ok(entries) = std::fs::read_dir(&exports) else {
        println!("skipped: `tests/reference/minilm.py onnx .cache/minilm-onnx` makes the exports");
        return;
    };
    let text = std::fs::read_to_string(data("minilm/expect.json")).unwrap();
    let expect: Expect = serde_json::from_str(&text).unwrap();
    let (tokens, _) =
        compile_to("minilm", &folder, &options_with_text(&folder, ImportOptions::default()));
    let tokenizer = open(&tokens, 1);
    for entry in entries {
        let file = entry.unwrap().path().join("model.onnx");
        let bound = |name: &str, hi: i64| (name.into(), Bounds { lo: 1, hi });
        let import = ImportOptions {
            bounds: [bound("batch", 4), bound("sequence", 256)].into_iter().collect(),
            ..ImportOptions::default()
        };
        let (path, compiled) = compile_to("minilm-onnx", &file, &crate::support::options(import));
        let attentions = compiled.fusions.iter().filter(|f| f.kind == "attention");
        let (fused, unfused): (Vec<_>, Vec<_>) = attentions.partition(|f| f.fused);
        assert!(unfused.is_empty(), "{}: {unfused:#?}", file.display());
        assert_eq!(fused.len(), 6, "{}", file.display());
        let mut session = open(&path, 2);
        for (sentence, want) in expect.sentences.iter().zip(&expect.embeddings) {
            let ids = tokenizer.encode_for_embedding(sentence).unwrap();
            let shape = [1, ids.len()];
            let ids = Tensor::from_i64s(DType::I64, &shape, ids.iter().map(|t| i64::from(*t)));
            let mask = Tensor::from_i64s(DType::I64, &shape, vec![1; shape[1]]);
            let out = session.run(&[("input_ids", ids), ("attention_mask", mask)]).unwrap();
            let states = out.iter().find(|(n, _)| &**n == "last_hidden_state").unwrap();
            let c = cosine(&pool(&states.1.to_f32s(), want.len()), want);
            assert!(c >= 0.9999, "{}: {c} for {sentence:?}", file.display());
        }
    }
}
