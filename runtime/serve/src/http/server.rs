//! Connections: accepting, TLS, limits on slow and silent clients, and the end.

mod stall;
mod tls;

use std::{
    convert::Infallible, future::Future, net::SocketAddr, pin::pin, sync::Arc, time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    signal::unix::{Signal, SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tower::util::ServiceExt;

use super::{App, ServerOptions, route};
use crate::ServeError;

use stall::Stall;

/// How long a client may take to send the head of a request, and stay silent between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to shake hands.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may leave an answer unread.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_HEADERS: usize = 100;
/// Of the head of a request, which is all that is buffered of it.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// What ends the server: once gently, twice at once.
pub(super) trait Stop {
    /// Comes back when it is to end.
    fn wait(&mut self) -> impl Future<Output = ()>;
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

impl Stop for Signals {
    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A socket that listens.
pub(super) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    seats: Arc<Semaphore>,
    head_timeout: Duration,
}

impl Listener {
    pub(super) async fn bind(options: &ServerOptions) -> Result<Listener, ServeError> {
        let ServerOptions { host, port, .. } = options;
        let refuse = |e: std::io::Error| {
            ServeError::request("--host", format!("cannot listen at {host}, port {port}: {e}"))
        };
        let tls = options.tls.as_ref().map(|(cert, key)| tls::acceptor(cert, key)).transpose()?;
        let listener = TcpListener::bind((host.as_str(), *port)).await.map_err(refuse)?;
        let address = listener.local_addr().map_err(refuse)?;
        let seats = Arc::new(Semaphore::new(options.max_connections.max(1)));
        Ok(Listener { listener, address, tls, seats, head_timeout: HEAD_TIMEOUT })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    #[cfg(test)]
    pub(super) fn with_head_timeout(self, head_timeout: Duration) -> Listener {
        Listener { head_timeout, ..self }
    }

    /// Answers until `stop`, then ends every connection after the request that it is at. Those
    /// that come meanwhile are told that the server ends.
    pub(super) async fn serve(&self, app: &Arc<App>, stop: &mut impl Stop) {
        let router = route::router(app.clone());
        let (end, ends) = watch::channel(false);
        let (mut connections, mut late) = (JoinSet::new(), JoinSet::new());
        let mut is_ending = false;
        loop {
            tokio::select! {
                () = stop.wait() => {
                    if is_ending {
                        tracing::warn!("ended before all requests were answered");
                        return;
                    }
                    is_ending = true;
                    app.engine().drain();
                    end.send_replace(true);
                }
                (stream, seat) = self.accept() => {
                    let set = if is_ending { &mut late } else { &mut connections };
                    set.spawn(self.connection(stream, seat, router.clone(), ends.clone()));
                }
                Some(_) = connections.join_next() => {}
                Some(_) = late.join_next() => {}
            }
            if is_ending && connections.is_empty() {
                return;
            }
        }
    }

    /// The next connection, once there is a seat for it.
    async fn accept(&self) -> (TcpStream, OwnedSemaphorePermit) {
        loop {
            let Ok(seat) = self.seats.clone().acquire_owned().await else {
                // Nobody closes the semaphore.
                return std::future::pending().await;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => return (stream, seat),
                // A client that is gone already, or too many open files, which pass.
                Err(error) => {
                    tracing::debug!(%error, "a connection cannot be accepted");
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    fn connection(
        &self,
        stream: TcpStream,
        seat: OwnedSemaphorePermit,
        router: Router,
        ends: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + use<> {
        let (tls, head_timeout) = (self.tls.clone(), self.head_timeout);
        async move {
            let _seat = seat;
            // Tokens are short, and each is wanted at once.
            let _ = stream.set_nodelay(true);
            let stream = Stall::new(stream, STALL_TIMEOUT);
            match tls {
                None => converse(stream, router, ends, head_timeout).await,
                Some(tls) => {
                    if let Ok(Ok(stream)) = timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
                        converse(stream, router, ends, head_timeout).await;
                    }
                }
            }
        }
    }
}

/// Answers the requests of a connection.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    mut ends: watch::Receiver<bool>,
    head_timeout: Duration,
) {
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let answer = router.clone().oneshot(request.map(Body::new) as Request);
        async move { answer.await as Result<Response, Infallible> }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        _ = ends.wait_for(|end| *end) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
