//! `[eval]`: the loss on other data, and text from the weights as they are, now and then.

use std::path::PathBuf;

use serde::Serialize;

use super::{limits::Limits, section::Section, tables::MAX_STEPS};

/// Most prompts times samples: all of them are generated at once.
const MAX_SEQUENCES: usize = 64;

/// `[eval]`: what is looked at besides the loss of training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalConfig {
    /// A file or folder as `data.train`, taken once and in order; `None` where there are prompts
    /// alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Steps from one evaluation to the next.
    pub every: u64,
    /// Texts to go on with, in each evaluation and at the end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<String>,
    /// Texts generated after each prompt.
    pub samples: usize,
    /// New tokens of a sample at most.
    pub max_tokens: usize,
    /// Of the samples; 0 takes the likeliest token.
    pub temperature: f64,
}

impl EvalConfig {
    /// Texts that an evaluation generates.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.prompts.len() * self.samples
    }
}

pub(super) fn eval(mut table: Section<'_>) -> Option<EvalConfig> {
    let data = table.text("data");
    let every = table.count("every", 1..=MAX_STEPS).unwrap_or(50);
    let prompts = table.texts("prompts").unwrap_or_default();
    let samples = table.size("samples", 1..=MAX_SEQUENCES as u64).unwrap_or(1);
    let max_tokens = table.size("max_tokens", 1..=1 << 20).unwrap_or(64);
    let limits = Limits::at_least(0.0).and_below(100.0);
    let temperature = table.number("temperature", limits).unwrap_or(0.8);
    if !table.has("data") && !table.has("prompts") {
        let help = "write data = \"FILE\", or prompts = [\"TEXT\"], or both";
        table.missing("data", help);
    }
    if prompts.len().saturating_mul(samples) > MAX_SEQUENCES {
        let reason = format!("make more than {MAX_SEQUENCES} samples at once");
        table.problem("prompts", reason, Some("take fewer prompts or samples"));
    }
    for key in ["samples", "max_tokens", "temperature"] {
        if table.has(key) && !table.has("prompts") {
            table.note(key, "has no effect without `prompts`");
        }
    }
    let is_something = data.is_some() || !prompts.is_empty();
    table.finish();
    let data = data.map(PathBuf::from);
    is_something.then_some(EvalConfig { data, every, prompts, samples, max_tokens, temperature })
}
