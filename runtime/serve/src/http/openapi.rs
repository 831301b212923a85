//! `GET /openapi.json`: what the server takes and gives, as OpenAPI 3.1. What it takes is from the
//! tables that it checks by.

mod responses;
mod schema;
mod streams;

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde_json::{Map, Value, json};

use super::{
    App, chat, completions, embeddings,
    fields::{Table, object_schema},
    route::respond_json,
    tokens,
};

pub(super) use responses::answer_schema;
#[cfg(test)]
pub(super) use streams::chunk_schema;

use streams::event_schema;

/// A route of the document.
struct Route {
    path: &'static str,
    /// The fields of its body; without them it is a GET.
    body: Option<Table>,
    about: &'static str,
    /// Media types of its answers.
    media: &'static [&'static str],
}

const JSON: &[&str] = &["application/json"];
const JSON_OR_STREAM: &[&str] = &["application/json", "text/event-stream"];

const fn get(path: &'static str, about: &'static str, media: &'static [&'static str]) -> Route {
    Route { path, body: None, about, media }
}

const ROUTES: &[Route] = &[
    get("/", "A page that shows what the server does.", &["text/html"]),
    get("/health", "200 while requests are taken; needs no key.", JSON),
    get("/version", "The server's version.", JSON),
    get("/stats", "What the server does, for its page.", JSON),
    get("/metrics", "What the server does, for Prometheus.", &["text/plain"]),
    get("/openapi.json", "This document.", JSON),
    get("/v1/models", "The names of the model.", JSON),
    get("/v1/models/{id}", "One of them.", JSON),
    Route {
        path: "/v1/completions",
        body: Some(completions::TABLE),
        about: "Text that goes on after prompts.",
        media: JSON_OR_STREAM,
    },
    Route {
        path: "/v1/chat/completions",
        body: Some(chat::TABLE),
        about: "The assistant's next message in a conversation.",
        media: JSON_OR_STREAM,
    },
    Route {
        path: "/v1/embeddings",
        body: Some(embeddings::TABLE),
        about: "Vectors of texts, by a model that is made for it.",
        media: JSON,
    },
    Route {
        path: "/tokenize",
        body: Some(tokens::TOKENIZE),
        about: "The token ids of a text or conversation.",
        media: JSON,
    },
    Route {
        path: "/detokenize",
        body: Some(tokens::DETOKENIZE),
        about: "The text of token ids.",
        media: JSON,
    },
];

/// The path of the document that a path of the router is.
pub(super) fn known(path: &str) -> Option<&'static str> {
    let path = path.replace("{*id}", "{id}");
    ROUTES.iter().map(|route| route.path).find(|known| *known == path)
}

/// Whether a path takes bodies.
pub(super) fn is_post(path: &str) -> bool {
    ROUTES.iter().any(|route| route.path == path && route.body.is_some())
}

pub(super) async fn document(State(app): State<Arc<App>>) -> Response {
    let mut paths = Map::new();
    for route in ROUTES {
        let method = if route.body.is_some() { "post" } else { "get" };
        paths.insert(route.path.into(), json!({method: operation(route, &app)}));
    }
    let has_keys = !app.options().api_keys.is_empty();
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "brolly",
            "description": "A language model behind OpenAI's protocol, with vLLM's extensions.",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "paths": paths,
        "components": {"schemas": {"Error": error_schema()}},
    });
    if has_keys {
        document["components"]["securitySchemes"] =
            json!({"key": {"type": "http", "scheme": "bearer"}});
        document["security"] = json!([{"key": []}]);
    }
    respond_json(document.to_string())
}

fn operation(route: &Route, app: &App) -> Value {
    let Route { path, body, about, media } = route;
    let content = |media: &&str| {
        let schema = match *media {
            "application/json" => answer_schema(path),
            "text/event-stream" => event_schema(path),
            _ => json!({"type": "string"}),
        };
        ((*media).to_owned(), json!({"schema": schema}))
    };
    let content: Map<String, Value> = media.iter().map(content).collect();
    let mut responses = Map::new();
    responses.insert("200".into(), json!({"description": "The answer.", "content": content}));
    let mut fail = |status: &str, description: &str| {
        let schema = json!({"$ref": "#/components/schemas/Error"});
        let content = json!({"application/json": {"schema": schema}});
        let mut response = json!({"description": description, "content": content});
        if matches!(status, "429" | "503") {
            let seconds = json!({"description": "Seconds.", "schema": {"type": "integer"}});
            response["headers"] = json!({"Retry-After": seconds});
        }
        responses.insert(status.into(), response);
    };
    if *path != "/health" {
        fail("401", "The API key is missing or wrong.");
    }
    if body.is_some() {
        fail("400", "The request is at fault; `param` names the field.");
        fail("404", "The model is not served here.");
        fail("408", "The body did not arrive in time.");
        fail("413", "The body is too long.");
        fail("415", "The body is not JSON.");
    }
    if path.starts_with("/v1/models/") {
        fail("404", "The model is not served here.");
    }
    if path.starts_with("/v1/") && body.is_some() {
        fail("429", "Too many requests wait.");
        fail("500", "The server is at fault.");
        fail("504", "The answer took too long.");
    }
    fail("503", "The server is shutting down.");
    let mut operation = json!({
        "operationId": path.trim_matches('/').replace(['/', '{', '}', '.'], "_"),
        "summary": about,
        "responses": responses,
    });
    if path.is_empty() || *path == "/" {
        operation["operationId"] = "page".into();
    }
    if *path == "/health" {
        operation["security"] = json!([]);
    }
    if path.contains("{id}") {
        let schema = json!({"type": "string", "minLength": 1});
        let id = json!({"name": "id", "in": "path", "required": true, "schema": schema});
        operation["parameters"] = json!([id]);
    }
    if let Some(table) = body {
        let mut schema = object_schema(table, app.vocab_size());
        let names = app.names().iter().map(|name| json!(name)).chain([Value::Null]);
        schema["properties"]["model"] = json!({
            "enum": names.collect::<Value>(),
            "description": "A name that `/v1/models` lists; by default the first.",
        });
        let content = json!({"application/json": {"schema": schema}});
        operation["requestBody"] = json!({"required": true, "content": content});
    }
    operation
}

fn error_schema() -> Value {
    let text = json!({"type": "string"});
    let text_or_null = json!({"type": ["string", "null"]});
    json!({
        "type": "object",
        "required": ["error"],
        "properties": {"error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": text, "type": text, "param": text_or_null, "code": text_or_null,
            },
        }},
    })
}
