//! `POST /tokenize` and `/detokenize`: text to token ids and back, as prompts are.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use serde_json::json;

use super::{
    App, aside,
    body::Checked,
    chat::{self, Conversation},
    error::ApiError,
    fields::{Fields, Kind, Table, field, required},
    route::respond_json,
};

/// The fields of `/tokenize`.
pub(super) const TOKENIZE: Table = &[
    &[
        field("model", Kind::Text, "A name that `/v1/models` lists."),
        field("prompt", Kind::Text, "A text; or else `messages`."),
        field(
            "messages",
            Kind::List { of: &chat::MESSAGE, from: 1, to: 65536 },
            "A conversation; or else `prompt`.",
        ),
        field("return_token_strs", Kind::Bool, "Whether to tell tokens by their names too."),
    ],
    chat::RENDERING,
    chat::TOOLS,
];

/// The fields of `/detokenize`.
pub(super) const DETOKENIZE: Table = &[&[
    field("model", Kind::Text, "A name that `/v1/models` lists."),
    required("tokens", Kind::List { of: &Kind::Token, from: 0, to: usize::MAX }, "Token ids."),
]];

pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let Checked { body, mut problems, .. } = app.read(request, TOKENIZE).await?;
    let fields = Fields(&body);
    let tokenizer = app.tokenizer()?;
    let tokens = match (fields.text("prompt"), fields.list("messages")) {
        (Some(text), None) => {
            problems.into_result()?;
            let add_special = fields.bool("add_special_tokens").unwrap_or(true);
            let (text, tokenizer) = (text.to_owned(), tokenizer.clone());
            let encode = move || Ok(tokenizer.encode(&text, add_special)?);
            aside(fields.text("prompt").map_or(0, str::len), encode).await?
        }
        (None, Some(_)) => {
            let tools = chat::Tools::read(fields, &mut problems);
            let conversation = Conversation::read(&app, &body, &tools, &mut problems);
            problems.into_result()?;
            conversation?.tokens(&app).await?
        }
        (text, _) => {
            let reason = match text {
                Some(_) => "is there beside `messages`; give one of them",
                None => "is missing, and so is `messages`; give one of them",
            };
            problems.add("prompt", reason);
            problems.into_result()?;
            Vec::new()
        }
    };
    let names = fields.bool("return_token_strs") == Some(true);
    let names: Option<Vec<String>> = names
        .then(|| tokens.iter().map(|id| tokenizer.id_to_token(*id).unwrap_or_default()).collect());
    let value = json!({
        "count": tokens.len(),
        "max_model_len": app.max_seq_len(),
        "tokens": tokens,
        "token_strs": names,
    });
    Ok(respond_json(value.to_string()))
}

pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let Checked { body, problems, .. } = app.read(request, DETOKENIZE).await?;
    problems.into_result()?;
    let fields = Fields(&body);
    let tokens = fields.tokens("tokens").unwrap_or_default();
    let tokenizer = app.tokenizer()?;
    let decode = move || {
        let text = tokenizer.decode(&tokens, false);
        text.map_err(|error| ApiError::from(error).with_param("tokens"))
    };
    let text = aside(fields.list("tokens").map_or(0, <[_]>::len), decode).await?;
    Ok(respond_json(json!({"prompt": text}).to_string()))
}
