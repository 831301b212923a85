//! What the events of streams hold, as JSON Schema (2020-12).

use serde_json::{Value, json};

use super::{
    responses::{chat_logprobs, completion_choice, stop_reason, usage},
    schema::{count, list, nullable, object, text},
};

/// The schema of a chunk of a route's stream, as JSON in an event's `data`.
pub(in crate::http) fn chunk_schema(path: &str) -> Value {
    match path {
        "/v1/completions" => completion_chunk(),
        "/v1/chat/completions" => chat_chunk(),
        _ => json!({"type": "object"}),
    }
}

/// The schema of an event of a route's stream.
pub(super) fn event_schema(path: &str) -> Value {
    let error = json!({"$ref": "#/components/schemas/Error"});
    let data = json!({
        "anyOf": [
            {"const": "[DONE]"},
            {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"anyOf": [chunk_schema(path), error]},
            },
        ],
    });
    json!({"type": "object", "properties": {"data": data}, "required": ["data"]})
}

fn completion_chunk() -> Value {
    let finish = json!({"enum": ["stop", "length", "abort", null]});
    chunk("text_completion", &completion_choice(&finish))
}

fn chat_chunk() -> Value {
    let function = object(&[("arguments", text())], &[("name", text())]);
    let kind = ("type", json!({"const": "function"}));
    let call = object(&[("index", count()), ("function", function)], &[("id", text()), kind]);
    let delta = object(
        &[],
        &[
            ("role", json!({"const": "assistant"})),
            ("content", text()),
            ("reasoning_content", text()),
            ("tool_calls", list(&call)),
        ],
    );
    let choice = object(
        &[
            ("index", count()),
            ("delta", delta),
            ("logprobs", chat_logprobs()),
            ("finish_reason", json!({"enum": ["stop", "length", "tool_calls", "abort", null]})),
        ],
        &[("stop_reason", stop_reason()), ("token_ids", list(&count()))],
    );
    let mut chunk = chunk("chat.completion.chunk", &choice);
    chunk["properties"]["prompt_token_ids"] = list(&count());
    chunk
}

/// A chunk of a stream: one choice, or none and what was used.
fn chunk(kind: &str, choice: &Value) -> Value {
    object(
        &[
            ("id", text()),
            ("object", json!({"const": kind})),
            ("created", count()),
            ("model", text()),
            ("choices", json!({"type": "array", "maxItems": 1, "items": choice})),
        ],
        &[("usage", nullable(&usage()))],
    )
}
