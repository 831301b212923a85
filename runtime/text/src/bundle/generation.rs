//! `generation_config.json`: how the model's makers want text to be generated.

use serde::{Deserialize, Serialize};

use super::fields::{Fields, Files};

/// Defaults for generation; what is `None` the makers left open.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerationDefaults {
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Whether to sample; greedy otherwise.
    pub do_sample: Option<bool>,
    /// Divides the logits; 0 is greedy.
    pub temperature: Option<f64>,
    /// Sample among this many most likely tokens; 0 is all.
    pub top_k: Option<usize>,
    /// Sample among the most likely tokens that reach this probability together.
    pub top_p: Option<f64>,
    /// Sample among tokens of at least this share of the most likely one's probability.
    pub min_p: Option<f64>,
    /// Divides the logits of tokens that occurred; 1 is none.
    pub repetition_penalty: Option<f64>,
    /// The most new tokens.
    pub max_new_tokens: Option<usize>,
    /// Texts that end the output.
    pub stop_strings: Vec<String>,
}

impl GenerationDefaults {
    /// Reads `generation_config.json`. Without that file, token ids come from `config.json`, as in
    /// transformers.
    pub(super) fn read(files: &mut Files) -> Self {
        let mut defaults = Self::default();
        let has_file = files.exists("generation_config.json");
        if let Some(mut config) = files.object("generation_config.json") {
            defaults.read_tokens(&mut config);
            defaults.read_sampling(&mut config);
        } else if !has_file && let Some(mut config) = files.object("config.json") {
            defaults.read_tokens(&mut config);
        }
        defaults
    }

    fn read_tokens(&mut self, config: &mut Fields<'_>) {
        self.eos_token_ids = config.token_ids("eos_token_id").unwrap_or_default();
    }

    fn read_sampling(&mut self, config: &mut Fields<'_>) {
        self.do_sample = config.bool("do_sample");
        self.temperature = config.number("temperature", "a number of at least 0", |x| x >= 0.0);
        self.top_k = config.count("top_k", 0);
        let share = "a number from 0 to 1";
        self.top_p = config.number("top_p", share, |x| (0.0..=1.0).contains(&x));
        self.min_p = config.number("min_p", share, |x| (0.0..=1.0).contains(&x));
        self.repetition_penalty =
            config.number("repetition_penalty", "a number above 0", |x| x > 0.0);
        self.max_new_tokens = config.count("max_new_tokens", 0);
        let stops = config.get("stop_strings", "a text or a list of texts", |value| {
            let text = |value: &serde_json::Value| {
                value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
            };
            match value {
                serde_json::Value::Array(stops) => stops.iter().map(text).collect(),
                one => text(one).map(|text| vec![text]),
            }
        });
        self.stop_strings = stops.unwrap_or_default();
    }
}
