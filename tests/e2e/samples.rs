//! Text that the small language model has sampled itself, on which quality is measured: how much a
//! change raises the loss there is a divergence in expectation, which is never negative.

use serde::Deserialize;
use serve::Session;

use crate::support::data;

/// What `tests/reference/quantized_stories.py` wrote.
#[derive(Deserialize)]
pub(crate) struct Samples {
    /// Mean negative log-likelihood by transformers, in nats a token.
    pub(crate) loss: f64,
    /// What the 4-bit format of llama.cpp costs.
    pub(crate) q4_0_rise_percent: f64,
    /// Token ids.
    pub(crate) sequences: Vec<Vec<u32>>,
}

/// The samples.
pub(crate) fn samples() -> Samples {
    let bytes = std::fs::read(data("quantized/stories.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// Mean negative log-likelihood in nats a token.
pub(crate) fn loss(session: &mut Session, sequences: &[Vec<u32>]) -> f64 {
    let scores = sequences.iter().flat_map(|tokens| session.score(tokens).unwrap());
    let known: Vec<f64> = scores.flatten().map(f64::from).collect();
    -known.iter().sum::<f64>() / known.len() as f64
}

/// By how much a loss raises the perplexity, which is its exponential, in percent.
pub(crate) fn rise_percent(loss: f64, plain: f64) -> f64 {
    ((loss - plain).exp() - 1.0) * 100.0
}
