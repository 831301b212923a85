//! Which path leads where, and what holds for all of them: keys, the end, counting.

use std::{panic::AssertUnwindSafe, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use futures_util::FutureExt;

use super::{App, chat, completions, embeddings, error::ApiError, metrics, openapi, state, tokens};

/// Every path with its methods.
pub(super) fn router(app: Arc<App>) -> Router {
    let router = Router::new();
    let router = paths().into_iter().fold(router, |router, (path, routes)| {
        router.route(path, routes.fallback(move |request: Request| wrong_method(path, request)))
    });
    router
        .fallback(nowhere)
        .layer(middleware::from_fn_with_state(app.clone(), enter))
        .with_state(app)
}

fn paths() -> Vec<(&'static str, MethodRouter<Arc<App>>)> {
    vec![
        ("/", get(state::page)),
        ("/health", get(state::health)),
        ("/version", get(state::version)),
        ("/stats", get(state::stats)),
        ("/metrics", get(metrics::metrics)),
        ("/openapi.json", get(openapi::document)),
        ("/v1/models", get(state::models)),
        ("/v1/models/{*id}", get(state::model)),
        ("/v1/completions", post(completions::answer)),
        ("/v1/chat/completions", post(chat::answer)),
        ("/v1/embeddings", post(embeddings::answer)),
        ("/tokenize", post(tokens::tokenize)),
        ("/detokenize", post(tokens::detokenize)),
    ]
}

/// What holds before and after every request.
async fn enter(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = match request.extensions().get::<MatchedPath>() {
        Some(path) => openapi::known(path.as_str()).unwrap_or("other"),
        None => "other",
    };
    let answered = AssertUnwindSafe(admit(&app, route, request, next)).catch_unwind().await;
    let mut response = answered.unwrap_or_else(|_| {
        ApiError::internal("this is a bug of the server; its log says more").into_response()
    });
    if app.engine().is_draining() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    app.count(route, response.status().as_u16());
    response
}

async fn admit(app: &App, route: &'static str, request: Request, next: Next) -> Response {
    let is_health = route == "/health";
    if !is_health && let Err(error) = app.keys().check(request.headers(), route == "/") {
        return error.into_response();
    }
    // Who watches a server wants to see it end.
    let is_watching = matches!(route, "/health" | "/metrics" | "/stats" | "/version");
    if app.engine().is_draining() && !is_watching {
        return ApiError::draining().into_response();
    }
    next.run(request).await
}

async fn wrong_method(path: &'static str, request: Request) -> Response {
    let is_post = openapi::is_post(path);
    let (allowed, allow) = if is_post { ("POST", "POST") } else { ("GET", "GET, HEAD") };
    let method = request.method();
    if method == Method::OPTIONS {
        let mut response = StatusCode::NO_CONTENT.into_response();
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
        return response;
    }
    let message = format!("{path} takes {allowed}, not {method}");
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let code = Some("method_not_allowed");
    let error = ApiError::new(status, "invalid_request_error", code, message);
    error.with_header(header::ALLOW, allow).into_response()
}

async fn nowhere(request: Request) -> Response {
    let path: String = request.uri().path().chars().take(200).collect();
    let message = format!("there is no {path} here; /openapi.json lists what there is");
    let status = StatusCode::NOT_FOUND;
    ApiError::new(status, "invalid_request_error", Some("not_found"), message).into_response()
}

/// An answer of this type.
pub(super) fn respond(media: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

/// An answer of JSON.
pub(super) fn respond_json(text: String) -> Response {
    respond("application/json", text)
}
