//! What each route answers with 200, as JSON Schema (2020-12).

use serde_json::{Value, json};

use super::schema::{by_name, count, list, nullable, number, object, text};

/// The schema of a route's JSON; any object for those that answer with none.
pub(in crate::http) fn answer_schema(path: &str) -> Value {
    match path {
        "/health" => object(&[("status", json!({"const": "ok"}))], &[]),
        "/version" => object(&[("version", text())], &[]),
        "/stats" => stats(),
        "/openapi.json" => document(),
        "/v1/models" => {
            let models = json!({"type": "array", "minItems": 1, "items": model()});
            object(&[("object", json!({"const": "list"})), ("data", models)], &[])
        }
        "/v1/models/{id}" => model(),
        "/v1/completions" => completion(),
        "/v1/chat/completions" => chat_completion(),
        "/v1/embeddings" => embeddings(),
        "/tokenize" => object(
            &[
                ("count", count()),
                ("max_model_len", count()),
                ("tokens", list(&count())),
                ("token_strs", nullable(&list(&text()))),
            ],
            &[],
        ),
        "/detokenize" => object(&[("prompt", text())], &[]),
        _ => json!({"type": "object"}),
    }
}

fn model() -> Value {
    object(
        &[
            ("id", text()),
            ("object", json!({"const": "model"})),
            ("created", count()),
            ("owned_by", text()),
            ("root", text()),
            ("parent", json!({"type": "null"})),
            ("max_model_len", count()),
        ],
        &[],
    )
}

fn completion() -> Value {
    let choice = completion_choice(&json!({"enum": ["stop", "length", "abort"]}));
    envelope("text_completion", &choice, &[])
}

pub(super) fn completion_choice(finish: &Value) -> Value {
    let logprobs = object(
        &[
            ("tokens", list(&text())),
            ("token_logprobs", list(&nullable(&number()))),
            ("top_logprobs", list(&nullable(&by_name(&number())))),
            ("text_offset", list(&count())),
        ],
        &[],
    );
    object(
        &[
            ("index", count()),
            ("text", text()),
            ("logprobs", nullable(&logprobs)),
            ("finish_reason", finish.clone()),
            ("stop_reason", stop_reason()),
        ],
        &[
            ("prompt_logprobs", prompt_logprobs()),
            ("prompt_token_ids", list(&count())),
            ("token_ids", list(&count())),
        ],
    )
}

fn chat_completion() -> Value {
    let function = object(&[("name", text()), ("arguments", text())], &[]);
    let kind = ("type", json!({"const": "function"}));
    let call = object(&[("id", text()), kind, ("function", function)], &[]);
    let message = object(
        &[
            ("role", json!({"const": "assistant"})),
            ("content", nullable(&text())),
            ("refusal", json!({"type": "null"})),
        ],
        &[("reasoning_content", text()), ("tool_calls", list(&call))],
    );
    let choice = object(
        &[
            ("index", count()),
            ("message", message),
            ("logprobs", chat_logprobs()),
            ("finish_reason", json!({"enum": ["stop", "length", "tool_calls", "abort"]})),
            ("stop_reason", stop_reason()),
        ],
        &[("token_ids", list(&count()))],
    );
    let further = [("prompt_logprobs", prompt_logprobs()), ("prompt_token_ids", list(&count()))];
    envelope("chat.completion", &choice, &further)
}

/// Probabilities of an answer's tokens, or null.
pub(super) fn chat_logprobs() -> Value {
    let token = [
        ("token", text()),
        ("logprob", number()),
        ("bytes", nullable(&list(&json!({"type": "integer", "minimum": 0, "maximum": 255})))),
    ];
    let top = ("top_logprobs", list(&object(&token, &[])));
    let told = object(&[&token[..], &[top]].concat(), &[]);
    nullable(&object(&[("content", list(&told)), ("refusal", json!({"type": "null"}))], &[]))
}

/// What is around the choices of a call.
fn envelope(kind: &str, choice: &Value, further: &[(&str, Value)]) -> Value {
    object(
        &[
            ("id", text()),
            ("object", json!({"const": kind})),
            ("created", count()),
            ("model", text()),
            ("choices", list(choice)),
            ("usage", usage()),
        ],
        further,
    )
}

/// Tokens that a call has used.
pub(super) fn usage() -> Value {
    let cached = object(&[("cached_tokens", count())], &[]);
    object(
        &[
            ("prompt_tokens", count()),
            ("completion_tokens", count()),
            ("total_tokens", count()),
            ("prompt_tokens_details", cached),
        ],
        &[],
    )
}

/// A text or token that ended the answer.
pub(super) fn stop_reason() -> Value {
    json!({"type": ["string", "integer", "null"]})
}

/// For each token of a prompt, probabilities by token id.
fn prompt_logprobs() -> Value {
    let entry = [("logprob", number()), ("rank", count()), ("decoded_token", text())];
    list(&nullable(&by_name(&object(&entry, &[]))))
}

fn embeddings() -> Value {
    let vector = json!({"anyOf": [list(&number()), text()]});
    let embedding = object(
        &[("object", json!({"const": "embedding"})), ("index", count()), ("embedding", vector)],
        &[],
    );
    let usage = object(&[("prompt_tokens", count()), ("total_tokens", count())], &[]);
    object(
        &[
            ("object", json!({"const": "list"})),
            ("data", list(&embedding)),
            ("model", text()),
            ("usage", usage),
        ],
        &[],
    )
}

fn stats() -> Value {
    let model = object(
        &[
            ("names", list(&text())),
            ("architecture", text()),
            ("kind", json!({"enum": ["decoder", "encoder", "graph"]})),
            ("parameters", count()),
            ("vocab_size", count()),
            ("max_model_len", count()),
            ("block_size", nullable(&count())),
        ],
        &[],
    );
    let histogram =
        object(&[("bounds", list(&number())), ("counts", list(&count())), ("sum", number())], &[]);
    let counters = [
        "running",
        "waiting",
        "blocks",
        "used_blocks",
        "cached_blocks",
        "steps",
        "prefix_queries",
        "prefix_hits",
        "prompt_tokens",
        "generation_tokens",
        "preemptions",
        "finished_stop",
        "finished_length",
        "finished_abort",
        "finished_error",
    ];
    let histograms = [
        "time_to_first_token",
        "inter_token_latency",
        "e2e_latency",
        "queue_time",
        "prefill_time",
        "decode_time",
        "request_prompt_tokens",
        "request_generation_tokens",
        "iteration_tokens",
    ];
    let counters = counters.into_iter().map(|name| (name, count()));
    let histograms = histograms.into_iter().map(|name| (name, histogram.clone()));
    let told: Vec<(&str, Value)> = counters.chain(histograms).collect();
    object(
        &[
            ("model", model),
            ("version", text()),
            ("is_draining", json!({"type": "boolean"})),
            ("uptime_seconds", count()),
            ("memory", by_name(&count())),
            ("stats", object(&told, &[])),
            ("block_uses", json!({"type": "string", "pattern": "^[fcus]*$"})),
        ],
        &[],
    )
}

fn document() -> Value {
    let any = || json!({"type": "object"});
    object(
        &[
            ("openapi", json!({"const": "3.1.0"})),
            ("info", any()),
            ("paths", any()),
            ("components", any()),
        ],
        &[("security", list(&any()))],
    )
}
