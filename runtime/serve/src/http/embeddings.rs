//! `POST /v1/embeddings`: vectors of texts, by a model that is made for it.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ir::ModelKind;
use serde::Serialize;
use serde_json::Value;

use super::{
    App, app, aside,
    body::Checked,
    error::ApiError,
    fields::{self, Fields, Kind, Table, field, required},
    inputs::{self, INPUTS},
    route::respond_json,
};

/// The fields.
pub(super) const TABLE: Table = &[&[
    field("model", Kind::Text, "A name that `/v1/models` lists; by default the model served."),
    required("input", INPUTS, "What to embed: a text, a list of token ids, or a list of either."),
    field(
        "encoding_format",
        Kind::Choice(&["float", "base64"]),
        "Numbers, or the base64 of little-endian 32-bit floats.",
    ),
    field(
        "dimensions",
        Kind::at_least(1),
        "The size of vectors, which is the model's own: they are not cut.",
    ),
    field("user", Kind::Text, "Whose request it is; changes nothing."),
]];

#[derive(Serialize)]
struct Answer<'a> {
    object: &'a str,
    data: Vec<Embedding<'a>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

#[derive(Serialize)]
struct Embedding<'a> {
    object: &'a str,
    index: usize,
    embedding: Vector<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector<'a> {
    Float(&'a [f32]),
    Base64(String),
}

pub(super) async fn answer(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    app.require(ModelKind::Encoder, "embed text")?;
    let Checked { body, model, mut problems } = app.read(request, TABLE).await?;
    let fields = Fields(&body);
    let size = app.engine().info().hidden_size;
    if fields.integer("dimensions").is_some_and(|n| u64::try_from(n).is_ok_and(|n| n != size)) {
        problems
            .add("dimensions", format!("differs from the model's {size}, and vectors are whole"));
    }
    problems.into_result()?;
    let is_base64 = fields.text("encoding_format") == Some("base64");
    let weight = fields.get("input").map_or(0, inputs::weight);
    let context = app.clone();
    let one = move |value: &Value| match value {
        Value::String(text) => encode(&context, text),
        ids => Ok(fields::tokens(ids).unwrap_or_default()),
    };
    let lists = aside(weight, move || inputs::read(body.get("input"), one)).await?;
    let tokens = lists.iter().map(Vec::len).sum();
    let limit = app.options().request_timeout;
    let reply = app.engine().embed(lists).map_err(renamed)?;
    let vectors = tokio::time::timeout(limit, reply.wait()).await;
    let vectors = vectors.map_err(|_| ApiError::timeout(limit.as_secs()))?.map_err(renamed)?;
    Ok(respond_json(written(&vectors, &model, tokens, is_base64)?))
}

fn written(
    vectors: &[Vec<f32>],
    model: &str,
    prompt_tokens: usize,
    is_base64: bool,
) -> Result<String, ApiError> {
    let data = vectors.iter().enumerate().map(|(index, vector)| {
        let embedding = if is_base64 {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            Vector::Base64(STANDARD.encode(bytes))
        } else {
            Vector::Float(vector)
        };
        Embedding { object: "embedding", index, embedding }
    });
    let usage = Usage { prompt_tokens, total_tokens: prompt_tokens };
    app::json(&Answer { object: "list", data: data.collect(), model, usage })
}

/// Token ids of a text, prepared and cut as the model's configuration says.
fn encode(app: &App, text: &str) -> Result<Vec<u32>, ApiError> {
    let config = app.engine().bundle().embedding.clone().unwrap_or_default();
    let prompt = config.default_prompt.as_ref().and_then(|name| config.prompts.get(name));
    let mut text = format!("{}{text}", prompt.map_or("", String::as_str));
    if config.lowercase {
        text = text.to_lowercase();
    }
    let tokens = app.tokenizer()?.encode_truncated(&text, true, app.max_seq_len());
    tokens.map_err(|error| ApiError::from(error).rename("prompt", "input"))
}

/// The engine calls an input `text`.
fn renamed(error: impl Into<ApiError>) -> ApiError {
    error.into().rename("text", "input")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::check_answer;

    #[test]
    fn numbers_read_back_exactly() {
        let vectors = [vec![0.1_f32, -1e-30, f32::MAX], vec![0.0]];
        let text = written(&vectors, "m", 7, false).unwrap();
        assert!(text.contains("[0.1,-1e-30,"), "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        check_answer("/v1/embeddings", &value);
        let read = value["data"][0]["embedding"].as_array().unwrap();
        #[allow(clippy::cast_possible_truncation, reason = "that is what clients do")]
        let read: Vec<f32> = read.iter().map(|x| x.as_f64().unwrap() as f32).collect();
        assert_eq!(read, vectors[0]);
        assert_eq!(value["usage"]["total_tokens"], 7);
        let text = written(&vectors, "m", 7, true).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        check_answer("/v1/embeddings", &value);
        let bytes = STANDARD.decode(value["data"][0]["embedding"].as_str().unwrap()).unwrap();
        assert_eq!(bytes[..4], 0.1_f32.to_le_bytes());
        assert_eq!((bytes.len(), &value["data"][1]["index"]), (12, &Value::from(1)));
    }
}
