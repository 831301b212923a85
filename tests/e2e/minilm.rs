//! all-MiniLM-L6-v2: real weights against sentence-transformers.

use std::path::{Path, PathBuf};

use frontend::ImportOptions;
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
