//! A server as a child process, and a request to it over a plain socket.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::load::{Shape, Times};
use crate::process::{Failure, Result, command, file_failure, shown};

/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Positions for each stream, of llama-server.
const CONTEXT: usize = 1280;

/// A server that runs; dropping it kills it.
pub(super) struct Server {
    child: Child,
    address: String,
    shown: String,
}

/// Seconds of processor time.
pub(super) struct Cpu {
    pub(super) all: f64,
    /// Of threads that speak with clients.
    pub(super) http: f64,
}

impl Server {
    pub(super) fn brolly(brolly: &Path, artifact: &Path, threads: usize) -> Result<Server> {
        Server::start(command(brolly).arg("serve").arg(artifact), threads, "--threads")
    }

    pub(super) fn llama(
        program: &Path,
        gguf: &Path,
        streams: usize,
        threads: usize,
    ) -> Result<Server> {
        let mut server = command(program);
        server.arg("-m").arg(gguf).args(["-np", &streams.to_string()]);
        server.args(["-c", &(streams * CONTEXT).to_string()]);
        Server::start(&mut server, threads, "-t")
    }

    /// Starts it on a free port and waits until it is ready.
    fn start(server: &mut Command, threads: usize, flag: &str) -> Result<Server> {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.map_err(|source| Failure::Explained(source.to_string()))?.port();
        server.args([flag, &threads.to_string(), "--port", &port.to_string()]);
        let shown = shown(server);
        let spawned = server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child =
            spawned.spawn().map_err(|source| Failure::Spawn { command: shown.clone(), source })?;
        let mut server = Server { child, address: format!("127.0.0.1:{port}"), shown };
        let start = Instant::now();
        while server.get("/health").is_none() {
            let is_gone = server.child.try_wait().ok().flatten().is_some();
            if is_gone || start.elapsed() > PATIENCE {
                return Err(server.failure("did not become ready"));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(server)
    }

    fn failure(&self, reason: &str) -> Failure {
        Failure::Explained(format!("`{}` {reason}", self.shown))
    }

    /// The body of a success.
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.starts_with("HTTP/1.1 200 ").then_some(text)
    }

    /// Sends a request and reads its answer to the end.
    pub(super) fn ask(&self, shape: &Shape) -> Result<Times> {
        self.try_ask(shape)
            .map_err(|e| self.failure(&format!("broke off: {e}")))?
            .ok_or_else(|| self.failure("gave no answer of the length that was asked for"))
    }

    fn try_ask(&self, shape: &Shape) -> std::io::Result<Option<Times>> {
        let body = json!({
            "prompt": shape.prompt,
            "max_tokens": shape.new,
            "temperature": 0,
            "seed": shape.seed,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let body = body.to_string();
        let length = body.len();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_nodelay(true)?;
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
        let sent = Instant::now();
        let (mut first, mut between) = (None, Vec::new());
        let (mut last, mut count) = (sent, 0);
        for line in BufReader::new(stream).lines() {
            let line = line?;
            let Some(event) = line.strip_prefix("data: ") else { continue };
            let now = Instant::now();
            let event: Value = serde_json::from_str(event).unwrap_or_default();
            if let Some(usage) = event["usage"]["completion_tokens"].as_u64() {
                count = usage;
            }
            if event["choices"].as_array().is_none_or(Vec::is_empty) {
                continue;
            }
            match first {
                None => first = Some(now - sent),
                Some(_) => between.push(now - last),
            }
            last = now;
        }
        let is_whole = count == shape.new as u64;
        Ok(first.filter(|_| is_whole).map(|first| Times { first, between }))
    }

    /// A gauge or counter of ours.
    pub(super) fn metric(&self, name: &str) -> Result<f64> {
        let page = self.get("/metrics").unwrap_or_default();
        let mut lines = page.lines().filter(|line| line.starts_with(name));
        let value = lines.find_map(|line| line.rsplit(' ').next()?.parse().ok());
        value.ok_or_else(|| self.failure(&format!("has no metric {name}")))
    }

    /// Processor time so far.
    pub(super) fn cpu(&self) -> Result<Cpu> {
        let folder = format!("/proc/{}/task", self.child.id());
        let tasks = fs::read_dir(&folder).map_err(file_failure(folder.as_ref()))?;
        let mut cpu = Cpu { all: 0.0, http: 0.0 };
        for task in tasks.filter_map(std::result::Result::ok) {
            let Ok(stat) = fs::read_to_string(task.path().join("stat")) else { continue };
            let Some((name, rest)) = stat.split_once(") ") else { continue };
            // utime and stime, in ticks of 10 ms.
            let ticks = rest.split(' ').skip(11).take(2).filter_map(|n| n.parse::<f64>().ok());
            let seconds = ticks.sum::<f64>() / 100.0;
            cpu.all += seconds;
            if name.contains("(http") {
                cpu.http += seconds;
            }
        }
        Ok(cpu)
    }

    /// The most memory that it had resident.
    pub(super) fn peak_bytes(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).map_err(file_failure(path.as_ref()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        kib.map(|kib| kib * 1024.0).ok_or_else(|| self.failure("has no peak of memory"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either may fail where the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
