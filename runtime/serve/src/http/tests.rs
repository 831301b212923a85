//! The server as clients see it, over stand-ins for models.

mod chat;
mod completions;
mod document;
mod errors;
mod model;
mod routes;
mod sockets;
mod tools;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::util::ServiceExt;

use super::{App, ServerOptions, openapi, route};
use crate::{StepModel, engine::Engine, testing::Mock};

/// A server without a socket.
struct Server {
    app: Arc<App>,
    router: Router,
}

/// What came back.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Server {
    fn new(engine: Engine, options: ServerOptions) -> Server {
        let app = App::new(engine, options).unwrap();
        let router = route::router(app.clone());
        Server { app, router }
    }

    /// Over a stand-in whose tokens are a hash of those before.
    fn mock() -> Server {
        Server::of(model::hashing())
    }

    fn of(model: impl StepModel + Send + 'static) -> Server {
        Server::new(model::engine(model, |_| ()), ServerOptions::default())
    }

    /// Over a model that answers conversations with this.
    fn saying(text: &str) -> Server {
        Server::of(model::Script::new(text))
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = String::from_utf8(bytes.to_vec()).unwrap();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        let request = Request::post(path).header("content-type", "application/json");
        self.send(request.body(Body::from(body.to_string())).unwrap()).await
    }

    /// A success, as JSON.
    async fn ok(&self, path: &str, body: Value) -> Value {
        let answer = self.post(path, &body).await;
        assert_eq!(answer.status, 200, "{body}: {}", answer.body);
        let answer = answer.json();
        check_answer(path, &answer);
        answer
    }

    /// A refusal: status, field and message.
    async fn refused(&self, path: &str, body: Value) -> (u16, String, String) {
        let answer = self.post(path, &body).await;
        assert_ne!(answer.status, 200, "{body}: {}", answer.body);
        let error = answer.error();
        let param = error["param"].as_str().unwrap_or_default().to_owned();
        (answer.status, param, error["message"].as_str().unwrap().to_owned())
    }

    /// The chunks of a stream.
    async fn chunks(&self, path: &str, mut body: Value) -> Vec<Value> {
        body["stream"] = true.into();
        let answer = self.post(path, &body).await;
        assert_eq!(answer.status, 200, "{body}: {}", answer.body);
        assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
        let chunks = chunks(&answer.body);
        let schema = openapi::chunk_schema(path);
        chunks.iter().filter(|c| c.get("error").is_none()).for_each(|c| check_by(&schema, path, c));
        chunks
    }
}

impl Answer {
    fn json(&self) -> Value {
        assert_eq!(self.headers["content-type"], "application/json");
        serde_json::from_str(&self.body).unwrap()
    }

    /// The error, in OpenAI's shape.
    fn error(&self) -> Value {
        let value = self.json();
        let error = value["error"].clone();
        let keys: Vec<&String> = error.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["message", "type", "param", "code"]);
        assert_eq!(value.as_object().unwrap().len(), 1);
        error
    }
}

/// Checks an answer by what the OpenAPI document says of its route.
pub(super) fn check_answer(path: &str, answer: &Value) {
    check_by(&openapi::answer_schema(path), path, answer);
}

fn check_by(schema: &Value, path: &str, answer: &Value) {
    let validator = jsonschema::draft202012::new(schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(answer).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{path}: {errors:?} in {answer}");
}

/// The events of a stream, exactly as they must be written.
fn chunks(body: &str) -> Vec<Value> {
    let mut events: Vec<&str> = body.split("\n\n").collect();
    assert_eq!(events.pop(), Some(""), "a stream ends with an empty line");
    assert_eq!(events.pop(), Some("data: [DONE]"));
    let chunk = |event: &str| {
        assert!(!event.contains('\n'), "{event}");
        serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()
    };
    events.into_iter().map(chunk).collect()
}

/// A request body that gives the same answer each time.
fn greedy(more: Value) -> Value {
    let mut body = json!({"temperature": 0});
    if let Value::Object(more) = more {
        body.as_object_mut().unwrap().extend(more);
    }
    body
}

fn conversation(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

/// The mock of the engine's tests with a vocabulary that the tokenizer fits.
fn mock() -> Mock {
    Mock::new(|limits| {
        limits.vocab_size = model::VOCAB_SIZE;
        limits.max_seq_len = 128;
        limits.blocks = 64;
        limits.table_len = 32;
    })
}
