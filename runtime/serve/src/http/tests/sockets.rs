//! The server over real sockets: slow clients, those that leave, limits, TLS and the end.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::mpsc as channel;
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::*;
use crate::{ServeError, http::server::Stop};

/// A server on a thread of its own.
struct Running {
    address: SocketAddr,
    engine: Engine,
    stop: channel::UnboundedSender<()>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

struct Told(channel::UnboundedReceiver<()>);

impl Stop for Told {
    async fn wait(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

impl Running {
    fn start(engine: Engine, options: ServerOptions) -> Running {
        let (stop, told) = channel::unbounded_channel();
        let (ready, address) = mpsc::channel();
        let served = engine.clone();
        let options = ServerOptions { port: 0, ..options };
        let thread = thread::spawn(move || {
            let on_ready = move |address| ready.send(address).unwrap();
            crate::http::run(&served, options, on_ready, || Ok(Told(told)))
        });
        let address = address.recv().unwrap();
        Running { address, engine, stop, thread: Some(thread) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn send(&self, text: &str) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    }

    /// Waits until something holds of the statistics.
    fn wait_for(&self, holds: impl Fn(&crate::engine::Stats) -> bool) {
        let start = Instant::now();
        while !holds(&self.engine.stats()) {
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", self.engine.stats());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn join(&mut self) -> Result<(), ServeError> {
        self.thread.take().unwrap().join().unwrap()
    }
}

fn slow() -> Engine {
    model::engine(model::Slow(model::hashing(), Duration::from_millis(20)), |_| ())
}

fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

/// Reads to the end of the connection.
fn rest(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    match stream.read_to_end(&mut text) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Reads the head of an answer.
fn head(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&text));
        text.extend(byte);
    }
    String::from_utf8(text).unwrap()
}

const LONG: &str = r#"{"prompt":"x","max_tokens":60,"temperature":0}"#;
const LONG_STREAM: &str = r#"{"prompt":"x","max_tokens":60,"temperature":0,"stream":true}"#;

#[test]
fn accepted_requests_are_answered_before_the_end() {
    let mut server = Running::start(slow(), ServerOptions::default());
    let whole = server.send(&post("/v1/completions", LONG));
    let stream = server.send(&post("/v1/completions", LONG_STREAM));
    let idle = server.connect();
    server.wait_for(|stats| stats.running + stats.waiting == 2);
    server.stop.send(()).unwrap();
    let start = Instant::now();
    while !server.engine.is_draining() {
        assert!(start.elapsed() < Duration::from_secs(10));
    }
    // Who has sent nothing is not waited for.
    assert_eq!(rest(idle), "");
    if let Ok(mut late) = TcpStream::connect(server.address) {
        late.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        late.write_all(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let answer = rest(late);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503 "), "{answer}");
    }
    let whole = rest(whole);
    assert!(whole.starts_with("HTTP/1.1 200 OK\r\n") && whole.contains("\"length\""), "{whole}");
    let stream = rest(stream);
    assert!(stream.contains("data: [DONE]\n\n"), "{stream}");
    assert!(server.join().is_ok());
    assert!(TcpStream::connect(server.address).is_err());
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut server = Running::start(slow(), ServerOptions::default());
    let request = server.send(&post("/v1/completions", LONG));
    server.wait_for(|stats| stats.running == 1);
    server.stop.send(()).unwrap();
    server.stop.send(()).unwrap();
    assert!(server.join().is_ok());
    assert_eq!(rest(request), "");
}

#[test]
fn requests_end_when_clients_leave() {
    let server = Running::start(slow(), ServerOptions::default());
    for body in [LONG, LONG_STREAM] {
        let before = server.engine.stats().finished_abort;
        let mut stream = server.send(&post("/v1/completions", body));
        if body == LONG_STREAM {
            assert!(head(&mut stream).starts_with("HTTP/1.1 200 OK"));
        }
        server.wait_for(|stats| stats.running == 1);
        drop(stream);
        server.wait_for(|stats| stats.running == 0 && stats.finished_abort == before + 1);
    }
    assert!(server.engine.stats().generation_tokens < 100);
}

#[test]
fn answers_have_their_time() {
    let options =
        ServerOptions { request_timeout: Duration::from_millis(200), ..ServerOptions::default() };
    let server = Running::start(slow(), options);
    let mut whole = server.send(&post("/v1/completions", LONG));
    assert!(head(&mut whole).starts_with("HTTP/1.1 504 "));
    let mut stream = server.send(&post("/v1/completions", LONG_STREAM));
    assert!(head(&mut stream).starts_with("HTTP/1.1 200 "));
    server.stop.send(()).unwrap();
    let text = rest(stream);
    assert!(text.contains("data: {\"error\":{\"message\":"), "{text}");
    assert!(text.contains("\"code\":\"timeout\"}}\n\n") && text.contains("data: [DONE]"), "{text}");
}

#[test]
fn heads_are_bounded() {
    let server = Running::start(model::engine(model::hashing(), |_| ()), ServerOptions::default());
    let many: String = (0..200).map(|i| format!("x-{i}: 1\r\n")).collect();
    let answer = rest(server.send(&format!("GET /health HTTP/1.1\r\nHost: x\r\n{many}\r\n")));
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let mut stream = server.connect();
    let long = format!("GET /health HTTP/1.1\r\nHost: x\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    // The server may stop reading before all of it is written.
    let _ = stream.write_all(long.as_bytes());
    let answer = rest(stream);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let answer = rest(server.send("BREW /coffee\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_heads_are_not_waited_for() {
    let app = App::new(
        model::engine(model::hashing(), |_| ()),
        ServerOptions { port: 0, max_connections: 1, ..ServerOptions::default() },
    )
    .unwrap();
    let listener = crate::http::server::Listener::bind(app.options()).await.unwrap();
    let listener = listener.with_head_timeout(Duration::from_millis(300));
    let address = listener.address();
    let (stop, told) = channel::unbounded_channel();
    let served = tokio::spawn(async move { listener.serve(&app, &mut Told(told)).await });
    let clients = tokio::task::spawn_blocking(move || {
        let connect = || {
            let stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream
        };
        // It holds the only seat, and sends a byte now and then.
        let mut slow = connect();
        let mut quick = connect();
        quick.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let start = Instant::now();
        for byte in b"GET /health HTTP/1.1\r\nHost: example.org\r\n" {
            if slow.write_all(&[*byte]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        assert!(head(&mut quick).starts_with("HTTP/1.1 200 OK"));
        assert!(start.elapsed() >= Duration::from_millis(250), "the seat was taken");
        drop(quick);
        let silent = connect();
        assert_eq!(rest(silent), "");
    });
    clients.await.unwrap();
    stop.send(()).unwrap();
    served.await.unwrap();
}

/// A client of TLS that trusts the test's certificate.
fn trusting(address: SocketAddr) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    let cert = CertificateDer::from_pem_slice(include_bytes!("tls/cert.pem")).unwrap();
    roots.add(cert).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    StreamOwned::new(connection, stream)
}

#[test]
fn tls_is_spoken_where_there_is_a_certificate() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/tests/tls");
    let tls = Some((folder.join("cert.pem"), folder.join("key.pem")));
    let options = ServerOptions { tls, ..ServerOptions::default() };
    let server = Running::start(model::engine(model::hashing(), |_| ()), options);
    let plain = rest(server.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert!(!plain.contains("200 OK"), "{plain}");
    let mut stream = trusting(server.address);
    stream.write_all(post("/v1/completions", LONG).as_bytes()).unwrap();
    let mut start = [0; 15];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 200 OK");
}

#[test]
fn one_connection_serves_many_requests() {
    let server = Running::start(model::engine(model::hashing(), |_| ()), ServerOptions::default());
    let mut stream = server.connect();
    for _ in 0..3 {
        stream.write_all(b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert!(head(&mut stream).starts_with("HTTP/1.1 200 OK"));
    }
}

#[test]
fn addresses_and_certificates_that_cannot_be_used_are_named() {
    let refused = |options: ServerOptions| {
        let engine = model::engine(model::hashing(), |_| ());
        let (_stop, told) = channel::unbounded_channel();
        let ran = crate::http::run(&engine, options, |_| (), || Ok(Told(told)));
        ran.unwrap_err().to_string()
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = refused(ServerOptions { port, ..ServerOptions::default() });
    assert!(error.starts_with("--host: cannot listen at 127.0.0.1, port "), "{error}");
    let tls = Some(("absent.pem".into(), "absent.key".into()));
    let error = refused(ServerOptions { tls, port: 0, ..ServerOptions::default() });
    assert!(error.starts_with("--tls-cert: absent.pem: "), "{error}");
}
