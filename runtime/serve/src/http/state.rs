//! What can be known of server and model: health, version, models, statistics, the page.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use ir::ModelKind;
use serde_json::{Value, json};

use super::{
    App, app,
    error::ApiError,
    route::{respond, respond_json},
};
use crate::engine::{BlockUse, Histogram, Stats};

/// `GET /`: a page for people. The rest of its policy is in the page, with digests of its script.
pub(super) async fn page() -> impl IntoResponse {
    let headers = [
        ("content-security-policy", "frame-ancestors 'none'"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-cache"),
    ];
    (headers, respond("text/html; charset=utf-8", include_str!("page.html")))
}

/// `GET /health`: 200 while requests are taken.
pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    match app.engine().is_draining() {
        true => ApiError::draining().into_response(),
        false => respond_json(json!({"status": "ok"}).to_string()),
    }
}

/// `GET /version`.
pub(super) async fn version() -> Response {
    respond_json(json!({"version": env!("CARGO_PKG_VERSION")}).to_string())
}

/// `GET /v1/models`.
pub(super) async fn models(State(app): State<Arc<App>>) -> Response {
    let models: Vec<Value> = app.names().iter().map(|name| card(&app, name)).collect();
    respond_json(json!({"object": "list", "data": models}).to_string())
}

/// `GET /v1/models/{id}`.
pub(super) async fn model(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    match app.names().contains(&id) {
        true => Ok(respond_json(card(&app, &id).to_string())),
        false => Err(ApiError::no_model(&id, app.names())),
    }
}

fn card(app: &App, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": app.started(),
        "owned_by": "brolly",
        "root": app.names()[0],
        "parent": null,
        "max_model_len": app.max_seq_len(),
    })
}

/// `GET /stats`: what the page shows.
pub(super) async fn stats(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    // An engine that is about to end may not answer any more.
    let uses = app.engine().block_uses().wait();
    let uses = match tokio::time::timeout(Duration::from_secs(2), uses).await {
        Ok(Ok(uses)) => uses,
        _ => Vec::new(),
    };
    let info = app.engine().info();
    let value = json!({
        "model": {
            "names": app.names(),
            "architecture": info.architecture,
            "kind": match info.kind {
                ModelKind::Decoder => "decoder",
                ModelKind::Encoder => "encoder",
                ModelKind::Graph => "graph",
            },
            "parameters": info.parameters,
            "vocab_size": info.vocab_size,
            "max_model_len": app.max_seq_len(),
            "block_size": app.engine().limits().map(|limits| limits.block_size),
        },
        "version": env!("CARGO_PKG_VERSION"),
        "is_draining": app.engine().is_draining(),
        "uptime_seconds": app::unix_seconds().saturating_sub(app.started()),
        "memory": app.engine().memory(),
        "stats": told(&app.engine().stats()),
        "block_uses": block_letters(&uses),
    });
    Ok(respond_json(value.to_string()))
}

/// A letter for each block: free, cached, used, shared.
fn block_letters(uses: &[BlockUse]) -> String {
    let letter = |block: &BlockUse| match block {
        BlockUse::Free => 'f',
        BlockUse::Cached => 'c',
        BlockUse::Used => 'u',
        BlockUse::Shared => 's',
    };
    uses.iter().map(letter).collect()
}

fn told(stats: &Stats) -> Value {
    let histogram = |h: &Histogram| json!({"bounds": h.bounds, "counts": h.counts, "sum": h.sum});
    json!({
        "running": stats.running,
        "waiting": stats.waiting,
        "blocks": stats.blocks,
        "used_blocks": stats.used_blocks,
        "cached_blocks": stats.cached_blocks,
        "steps": stats.steps,
        "prefix_queries": stats.prefix_queries,
        "prefix_hits": stats.prefix_hits,
        "prompt_tokens": stats.prompt_tokens,
        "generation_tokens": stats.generation_tokens,
        "preemptions": stats.preemptions,
        "finished_stop": stats.finished_stop,
        "finished_length": stats.finished_length,
        "finished_abort": stats.finished_abort,
        "finished_error": stats.finished_error,
        "time_to_first_token": histogram(&stats.time_to_first_token),
        "inter_token_latency": histogram(&stats.inter_token_latency),
        "e2e_latency": histogram(&stats.e2e_latency),
        "queue_time": histogram(&stats.queue_time),
        "prefill_time": histogram(&stats.prefill_time),
        "decode_time": histogram(&stats.decode_time),
        "request_prompt_tokens": histogram(&stats.request_prompt_tokens),
        "request_generation_tokens": histogram(&stats.request_generation_tokens),
        "iteration_tokens": histogram(&stats.iteration_tokens),
    })
}
