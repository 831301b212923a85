//! What is asked of the engine.

use serde::{Deserialize, Serialize};

use crate::SamplingParams;

/// A request to generate after a prompt.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How to go on.
    pub params: GenerateParams,
    /// Number of sequences, each with random numbers of its own; at least 1.
    pub n: usize,
    /// How many of the most likely tokens are reported with each new token.
    pub top_logprobs: usize,
    /// Whether to report the probability of each prompt token given those before it, and how many
    /// of the most likely tokens with it. The whole prompt is then computed, cached or not.
    pub prompt_logprobs: Option<usize>,
    /// What the output must follow.
    pub constraint: Option<text::Constraint>,
    /// Ends a sequence with its first call of a tool, as [`Finish::Stop`](crate::Finish::Stop) with
    /// the number behind those of the stop strings. The text ends where the call's arguments do.
    pub first_call: Option<text::FirstCall>,
    /// Lower goes first; 0 is usual.
    pub priority: i32,
    /// Requests share cached prefixes with those of the same salt only.
    pub cache_salt: Option<String>,
}

impl Request {
    /// A request for one sequence.
    pub fn new(prompt: Vec<u32>, params: GenerateParams) -> Request {
        Request { prompt, params, n: 1, ..Request::default() }
    }
}

/// How to generate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerateParams {
    /// New tokens at most; by default up to the longest sequence.
    pub max_tokens: Option<usize>,
    /// New tokens before which the sequence does not end.
    pub min_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Texts that end the sequence.
    pub stop: Vec<String>,
    /// Whether the stop string found is part of the text.
    pub include_stop: bool,
    /// Further tokens that end the sequence.
    pub stop_token_ids: Vec<u32>,
    /// Whether to go on after the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Whether special tokens are left out of the text.
    pub skip_special_tokens: bool,
}

impl Default for GenerateParams {
    fn default() -> GenerateParams {
        GenerateParams {
            max_tokens: None,
            min_tokens: 0,
            sampling: SamplingParams::default(),
            stop: Vec::new(),
            include_stop: false,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            skip_special_tokens: true,
        }
    }
}
