//! HTTP: an engine behind OpenAI's protocol, with vLLM's extensions.
//!
//! [`serve`] answers until it is told to end; requests that it has accepted by then are finished.
//! What requests may say is in tables of fields, one file a route, from which the OpenAPI
//! document follows. Nothing here computes: a route turns JSON into the engine's requests, and
//! events into JSON. Wherever a client goes away, the request's future is dropped, and the
//! engine's stream of events with it, which ends the request.

mod app;
mod auth;
mod body;
mod chat;
mod completions;
mod embeddings;
mod envelope;
mod error;
mod fields;
mod generation;
mod inputs;
mod logprobs;
mod metrics;
mod openapi;
mod params;
mod route;
mod server;
mod sse;
mod state;
mod structured;
mod tokens;

use std::{future::Future, net::SocketAddr, path::PathBuf, time::Duration};

use text::{ReasoningFormat, ToolFormat};

use crate::{ServeError, engine::Engine};

use app::App;

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Name or address to listen at.
    pub host: String,
    /// Port; 0 takes any that is free.
    pub port: u16,
    /// Keys of which every request but those to `/health` must have one; none open the server to
    /// everybody.
    pub api_keys: Vec<String>,
    /// Files with a certificate chain and its private key, both PEM; without them there is no TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Longest body of a request.
    pub max_body_bytes: usize,
    /// Connections at once; further ones wait to be accepted.
    pub max_connections: usize,
    /// Longest time from a request to the end of its answer.
    pub request_timeout: Duration,
    /// What the model is called; the first name is the one that answers have. By default the
    /// model's architecture.
    pub served_model_names: Vec<String>,
    /// A chat template to use in place of the model's own.
    pub chat_template: Option<String>,
    /// How the model writes calls of tools; by default what its chat template shows.
    pub tool_format: Option<ToolFormat>,
    /// When the model reasons; by default what its chat template shows.
    pub reasoning_format: Option<ReasoningFormat>,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            host: "127.0.0.1".into(),
            port: 8000,
            api_keys: Vec::new(),
            tls: None,
            max_body_bytes: 32 << 20,
            max_connections: 4096,
            request_timeout: Duration::from_secs(3600),
            served_model_names: Vec::new(),
            chat_template: None,
            tool_format: None,
            reasoning_format: None,
        }
    }
}

/// Serves until SIGTERM or SIGINT. Requests that are accepted by then are answered, new ones get
/// 503; a second signal ends at once. `on_ready` is told the address when requests are taken.
///
/// # Errors
/// [`ServeError::Request`] for options that cannot be used, named as flags of the command line, and
/// what ended the engine before its time.
pub fn serve(
    engine: Engine,
    options: ServerOptions,
    on_ready: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let served = run(&engine, options, on_ready, server::Signals::new);
    drop(engine);
    served
}

/// As [`serve`], with the signals made by `stop`, which is called within the runtime.
fn run<S: server::Stop>(
    engine: &Engine,
    options: ServerOptions,
    on_ready: impl FnOnce(SocketAddr),
    stop: impl FnOnce() -> std::io::Result<S>,
) -> Result<(), ServeError> {
    // Cores belong to the model.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(4)
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(|e| ServeError::request("serve", format!("cannot start threads: {e}")))?;
    let app = App::new(engine.clone(), options)?;
    let served = runtime.block_on(async {
        let mut stop = stop()
            .map_err(|e| ServeError::request("serve", format!("cannot await signals: {e}")))?;
        let listener = server::Listener::bind(app.options()).await?;
        on_ready(listener.address());
        listener.serve(&app, &mut stop).await;
        Ok(())
    });
    drop(app);
    engine.drain();
    // Tokenizing that nobody waits for any more must not hold up the end.
    runtime.shutdown_background();
    served.and_then(|()| engine.join())
}

/// Runs work that takes long enough to hold up others on a thread of its own; `size` is the length
/// of the text that it is about.
async fn aside<T: Send + 'static>(
    size: usize,
    work: impl FnOnce() -> Result<T, error::ApiError> + Send + 'static,
) -> Result<T, error::ApiError> {
    const LONG: usize = 4096;
    if size < LONG {
        return work();
    }
    let done: Result<Result<T, _>, _> = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(error::ApiError::internal(e.to_string())))
}

/// A future that can be kept.
type Boxed<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

#[cfg(test)]
mod tests;
