//! The rows of the fields, and what each does.

use crate::http::fields::{Field, Kind, field};

/// The most alternatives that are told with a token.
pub(in crate::http) const MAX_LOGPROBS: i64 = 20;

const TOKENS: Kind = Kind::List { of: &Kind::Token, from: 0, to: usize::MAX };
const PENALTY: Kind = Kind::between(-2.0, 2.0);
const ONE_ANSWER: &str = "answers are sampled, each by itself";

/// The rows.
pub(in crate::http) const SHARED: &[Field] = &[
    field("model", Kind::Text, "A name that `/v1/models` lists; by default the model served."),
    field(
        "temperature",
        Kind::between(0.0, 2.0),
        "Divides the logits; 0 takes the most likely token. By default what the model's makers \
         recommend, else 1.",
    ),
    field(
        "top_p",
        Kind::Number { from: 0.0, to: 1.0, is_open: true },
        "Keeps the fewest tokens whose probabilities reach this sum.",
    ),
    field(
        "top_k",
        Kind::Integer { from: -1, to: i64::MAX },
        "Keeps so many of the most likely tokens; 0 or -1 keeps all.",
    ),
    field(
        "min_p",
        Kind::between(0.0, 1.0),
        "Keeps tokens with at least this share of the most likely one's probability.",
    ),
    field("presence_penalty", PENALTY, "Taken from the logits of tokens that the output holds."),
    field(
        "frequency_penalty",
        PENALTY,
        "Taken from the logits of tokens for each time that the output holds them.",
    ),
    field(
        "repetition_penalty",
        Kind::Number { from: 0.0, to: f64::INFINITY, is_open: true },
        "Divides positive logits of tokens in prompt or output, and multiplies negative ones.",
    ),
    field(
        "logit_bias",
        Kind::ByToken(&Kind::between(-100.0, 100.0)),
        "Added to the logits of tokens, by id.",
    ),
    field(
        "seed",
        Kind::Integer { from: i64::MIN, to: i64::MAX },
        "Of the random numbers: the same request with the same seed has the same answer.",
    ),
    field("n", Kind::Integer { from: 1, to: 128 }, "Answers to each prompt; 1 by default."),
    field(
        "stop",
        Kind::OneOf(&[Kind::Name, Kind::List { of: &Kind::Name, from: 0, to: 64 }]),
        "Texts that end the answer and are not part of it.",
    ),
    field("stop_token_ids", TOKENS, "Tokens that end the answer."),
    field("min_tokens", Kind::at_least(0), "New tokens before which the answer does not end."),
    field("ignore_eos", Kind::Bool, "Whether to go on after end-of-sequence tokens."),
    field(
        "bad_words",
        Kind::List { of: &Kind::Name, from: 0, to: 1024 },
        "Texts that the answer does not hold.",
    ),
    field(
        "allowed_token_ids",
        Kind::List { of: &Kind::Token, from: 1, to: usize::MAX },
        "The only tokens that are possible.",
    ),
    field(
        "prompt_logprobs",
        Kind::Integer { from: 0, to: MAX_LOGPROBS },
        "Whether to tell the log-probabilities of the prompt's tokens, and how many of the most \
         likely ones with each. Not with `stream`.",
    ),
    field(
        "skip_special_tokens",
        Kind::Bool,
        "Whether special tokens are left out of the text; true by default.",
    ),
    field(
        "include_stop_str_in_output",
        Kind::Bool,
        "Whether the text that ends the answer is part of it.",
    ),
    field(
        "return_token_ids",
        Kind::Bool,
        "Whether to tell the ids of prompt and answer beside the text.",
    ),
    field(
        "return_tokens_as_token_ids",
        Kind::Bool,
        "Whether log-probabilities call tokens `token_id:N` instead of by their text.",
    ),
    field(
        "priority",
        Kind::Integer { from: i32::MIN as i64, to: i32::MAX as i64 },
        "Lower goes first; 0 is usual.",
    ),
    field(
        "cache_salt",
        Kind::Name,
        "Requests share cached prefixes with those of the same salt only.",
    ),
    field("stream", Kind::Bool, "Whether to send the answer as server-sent events."),
    field(
        "stream_options",
        Kind::Object(&[&[
            field("include_usage", Kind::Bool, "Whether a last chunk tells the usage."),
            field(
                "continuous_usage_stats",
                Kind::Bool,
                "Whether every chunk tells the usage so far.",
            ),
            field(
                "include_obfuscation",
                Kind::Only { values: &["false"], why: "chunks are not padded" },
                "",
            ),
        ]]),
        "Only with `stream`.",
    ),
    field("user", Kind::Text, "Whose request it is; changes nothing."),
    field("use_beam_search", Kind::Only { values: &["false"], why: ONE_ANSWER }, ""),
    field("length_penalty", Kind::Only { values: &["1"], why: ONE_ANSWER }, ""),
    field(
        "spaces_between_special_tokens",
        Kind::Only { values: &["true"], why: "the tokenizer decides on spaces" },
        "",
    ),
    field(
        "truncate_prompt_tokens",
        Kind::Only { values: &[], why: "prompts are not cut; send what is to be read" },
        "",
    ),
];
