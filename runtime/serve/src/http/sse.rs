//! Server-sent events: an answer in chunks, each as soon as it is known.

use std::{collections::VecDeque, convert::Infallible};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::Response,
};
use futures_util::stream;
use serde_json::Value;

use super::{error::ApiError, generation::Events, route::respond};
use crate::engine::Event;

/// Turns events to chunks.
pub(super) trait Chunks: Send + 'static {
    /// Chunks before any event.
    fn begin(&mut self, out: &mut Vec<Value>);

    /// Chunks of an event of request number `index`.
    fn event(&mut self, index: usize, event: Event, out: &mut Vec<Value>) -> Result<(), ApiError>;

    /// Chunks after all events.
    fn end(&mut self, out: &mut Vec<Value>);
}

struct State<C> {
    events: Events,
    chunks: C,
    ready: VecDeque<String>,
    has_ended: bool,
}

/// An answer that goes on while events come. An error becomes a chunk of its own, and the last.
pub(super) fn stream<C: Chunks>(events: Events, mut chunks: C) -> Response {
    let mut first = Vec::new();
    chunks.begin(&mut first);
    let ready = first.iter().map(line).collect();
    let state = State { events, chunks, ready, has_ended: false };
    let body = stream::unfold(state, |mut state| async move {
        let line = state.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(line)), state))
    });
    let mut response = respond("text/event-stream; charset=utf-8", Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies must not collect chunks.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl<C: Chunks> State<C> {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if self.has_ended {
                return None;
            }
            let mut out = Vec::new();
            let done = match self.events.next().await {
                Ok(Some((index, event))) => {
                    self.chunks.event(index, event, &mut out).map(|()| false)
                }
                Ok(None) => {
                    self.chunks.end(&mut out);
                    Ok(true)
                }
                Err(error) => Err(error),
            };
            if let Err(error) = &done {
                out.push(error.json());
            }
            self.ready.extend(out.iter().map(line));
            if done.unwrap_or(true) {
                self.has_ended = true;
                self.ready.push_back("data: [DONE]\n\n".into());
            }
        }
    }
}

fn line(chunk: &Value) -> String {
    format!("data: {chunk}\n\n")
}
