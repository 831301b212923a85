//! Clients that send what they like, over plain sockets.

use std::{
    fmt,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::Random;

const PATIENCE: Duration = Duration::from_secs(120);

/// Somebody who knows the server's address.
pub(super) struct Client {
    pub(super) address: String,
}

/// How a valid request ended.
pub(super) enum Outcome {
    /// What was generated: everything of the answer that does not tell time.
    Answer(Value),
    /// 429 or 503, with `Retry-After`.
    Busy,
    /// Another status.
    Refused(u16),
}

impl Outcome {
    pub(super) fn unwrap_answer(self) -> Value {
        match self {
            Outcome::Answer(answer) => answer,
            Outcome::Busy => panic!("busy"),
            Outcome::Refused(status) => panic!("status {status}"),
        }
    }
}

/// An answer that is being read.
pub(super) struct Stream(BufReader<TcpStream>);

fn post(route: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {route} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn streamed(question: &Value) -> Value {
    let mut question = question.clone();
    question["stream"] = true.into();
    question["stream_options"] = json!({"include_usage": true});
    question
}

/// Texts, probabilities and reasons to end by sequence, and the usage.
fn essence(choices: &[Value], usage: &Value) -> Value {
    let mut choices: Vec<Value> = choices
        .iter()
        .map(|choice| json!([choice["index"], choice["text"], choice["finish_reason"]]))
        .collect();
    choices.sort_by_key(|choice| choice[0].as_u64());
    let usage = ["prompt_tokens", "completion_tokens"].map(|field| usage[field].clone());
    json!([choices, usage])
}

impl Client {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes; the server may refuse to read all of them.
    fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes);
        stream
    }

    /// Status, head and body.
    fn exchange(&self, request: &[u8]) -> (u16, String, String) {
        let mut text = Vec::new();
        // A refusal may come with a reset behind it.
        let _ = self.send(request).read_to_end(&mut text);
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or(0), head.to_ascii_lowercase(), body.to_owned())
    }

    /// The whole answer to a valid completion request.
    pub(super) fn ask(&self, question: &Value) -> Outcome {
        let request = post("/v1/completions", &question.to_string());
        let (status, head, body) = self.exchange(request.as_bytes());
        match status {
            200 => {
                let body: Value = serde_json::from_str(&body).unwrap();
                Outcome::Answer(essence(body["choices"].as_array().unwrap(), &body["usage"]))
            }
            429 | 503 if head.contains("\nretry-after:") => Outcome::Busy,
            status => Outcome::Refused(status),
        }
    }

    /// Asks for a stream.
    pub(super) fn begin(&self, question: &Value) -> Stream {
        let request = post("/v1/completions", &streamed(question).to_string());
        Stream(BufReader::new(self.send(request.as_bytes())))
    }

    pub(super) fn metric(&self, name: &str) -> f64 {
        let (status, _, page) =
            self.exchange(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert_eq!(status, 200);
        let value = page.lines().find_map(|line| {
            let (found, value) = line.split_once('{')?;
            (found == name).then(|| value.rsplit(' ').next().unwrap().parse().unwrap())
        });
        value.unwrap_or_else(|| panic!("no metric {name}"))
    }

    pub(super) fn wait_for(&self, metric: &str, holds: impl Fn(f64) -> bool) {
        let start = Instant::now();
        while !holds(self.metric(metric)) {
            assert!(start.elapsed() < PATIENCE, "{metric}: {}", self.metric(metric));
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until nothing runs or waits.
    pub(super) fn wait_for_rest(&self) {
        for metric in ["brolly_num_requests_running", "brolly_num_requests_waiting"] {
            self.wait_for(metric, |count| count == 0.0);
        }
    }
}

impl Stream {
    /// Reads the head of the answer, which must be a good one.
    pub(super) fn head(mut self) -> Stream {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        assert!(line.starts_with("HTTP/1.1 200 "), "{line}");
        self
    }

    /// What [`Client::ask`] gives, from the events.
    pub(super) fn rest(mut self) -> Value {
        let mut text = String::new();
        self.0.read_to_string(&mut text).unwrap();
        of_events(&text)
    }
}

/// The essence of an answer that came as events.
fn of_events(text: &str) -> Value {
    let mut choices: Vec<Value> = Vec::new();
    let mut usage = Value::Null;
    let mut is_done = false;
    for event in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
        if event == "[DONE]" {
            is_done = true;
            break;
        }
        let event: Value = serde_json::from_str(event).unwrap();
        assert!(event.get("error").is_none(), "{event}");
        if !event["usage"].is_null() {
            usage = event["usage"].clone();
        }
        for choice in event["choices"].as_array().unwrap() {
            match choices.iter_mut().find(|c| c["index"] == choice["index"]) {
                Some(known) => {
                    let both = [&known["text"], &choice["text"]].map(|t| t.as_str().unwrap());
                    known["text"] = both.concat().into();
                    known["finish_reason"] = choice["finish_reason"].clone();
                }
                None => choices.push(choice.clone()),
            }
        }
    }
    assert!(is_done, "a stream was cut off: {text}");
    essence(&choices, &usage)
}

/// What visitors do, with how often they did.
const KINDS: [&str; 9] = [
    "whole",
    "stream",
    "leave a stream",
    "leave",
    "read slowly",
    "nonsense",
    "half a body",
    "structure",
    "chat",
];

#[derive(Default)]
pub(super) struct Counts {
    visits: [AtomicU64; KINDS.len()],
    busy: AtomicU64,
}

impl Counts {
    /// A run in which nobody did one of the things has shown nothing about it.
    pub(super) fn expect_all_kinds(&self) {
        for (kind, count) in KINDS.iter().zip(&self.visits) {
            assert!(count.load(Ordering::Relaxed) > 0, "nobody did: {kind}");
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, count) in KINDS.iter().zip(&self.visits) {
            write!(f, "{kind}: {}, ", count.load(Ordering::Relaxed))?;
        }
        write!(f, "told to come again: {}", self.busy.load(Ordering::Relaxed))
    }
}

/// A client that comes again and again with something else.
pub(super) struct Visitor<'a> {
    pub(super) client: &'a Client,
    pub(super) questions: &'a [Value],
    /// The answers to them.
    pub(super) right: &'a [Value],
    pub(super) random: Random,
    pub(super) counts: &'a Counts,
}

impl Visitor<'_> {
    pub(super) fn visit(&mut self) {
        let kind = self.random.below(KINDS.len());
        let number = self.random.below(self.questions.len());
        let (question, right) = (&self.questions[number], &self.right[number]);
        match KINDS[kind] {
            "whole" => match self.client.ask(question) {
                Outcome::Answer(answer) => assert_eq!(&answer, right, "{question}"),
                Outcome::Busy => _ = self.counts.busy.fetch_add(1, Ordering::Relaxed),
                Outcome::Refused(status) => panic!("{status} for {question}"),
            },
            "stream" => {
                let stream = self.client.begin(question).head();
                assert_eq!(&stream.rest(), right, "{question}");
            }
            "leave a stream" => {
                let mut stream = self.client.begin(question);
                let mut some = vec![0; 1 + self.random.below(2000)];
                let _ = stream.0.read_exact(&mut some);
            }
            "leave" => {
                let request = post("/v1/completions", &question.to_string());
                let stream = self.client.send(request.as_bytes());
                self.pause(30);
                drop(stream);
            }
            "read slowly" => self.read_slowly(question, right),
            "nonsense" => self.nonsense(),
            "half a body" => {
                let request = post("/v1/completions", &question.to_string());
                let half = request.len() - 1 - self.random.below(request.len() / 2);
                let stream = self.client.send(&request.as_bytes()[..half]);
                self.pause(30);
                drop(stream);
            }
            "structure" => self.structure(),
            _ => self.chat(),
        }
        self.counts.visits[kind].fetch_add(1, Ordering::Relaxed);
    }

    fn pause(&mut self, at_most_ms: u64) {
        thread::sleep(Duration::from_millis(self.random.0 % at_most_ms));
    }

    fn read_slowly(&mut self, question: &Value, right: &Value) {
        let mut stream = self.client.begin(question).head();
        let mut text = Vec::new();
        let mut some = [0; 256];
        loop {
            let count = stream.0.read(&mut some).unwrap();
            if count == 0 {
                break;
            }
            text.extend(&some[..count]);
            self.pause(10);
        }
        assert_eq!(&of_events(&String::from_utf8(text).unwrap()), right, "{question}");
    }

    /// Whatever is no request gets a refusal that blames the client.
    fn nonsense(&mut self) {
        let deep = "[".repeat(1 << (4 + self.random.below(12)));
        let bytes: String = (0..self.random.below(300))
            .map(|_| char::from(u8::try_from(32 + self.random.below(90)).unwrap()))
            .collect();
        let bodies = [
            String::new(),
            "{".into(),
            deep.clone(),
            format!(r#"{{"prompt": {deep}"#),
            format!("?{bytes}"),
            r#"{"prompt": "x", "max_tokens": -1}"#.into(),
            r#"{"prompt": "x", "max_tokens": 1e30}"#.into(),
            r#"{"prompt": [1, 2, 999999999]}"#.into(),
            r#"{"prompt": "x", "temperature": "hot", "surprise": 1}"#.into(),
            r#"{"prompt": "x", "guided_regex": "(a{1,9999}){1,9999}("}"#.into(),
            r#"{"prompt": "x", "n": 100000}"#.into(),
        ];
        let body = &bodies[self.random.below(bodies.len())];
        let route = ["/v1/completions", "/v1/chat/completions", "/tokenize"][self.random.below(3)];
        let (status, _, answer) = self.client.exchange(post(route, body).as_bytes());
        assert!((400..500).contains(&status), "{route}: {status} for {body}: {answer}");
    }

    fn structure(&mut self) {
        let choices = ["red", "green", "a very blue one"];
        let question =
            json!({"prompt": "The house was", "max_tokens": 30, "guided_choice": choices});
        match self.client.ask(&question) {
            Outcome::Answer(answer) => {
                let text = answer[0][0][1].as_str().unwrap();
                assert!(choices.contains(&text), "{answer}");
            }
            Outcome::Busy => _ = self.counts.busy.fetch_add(1, Ordering::Relaxed),
            Outcome::Refused(status) => panic!("{status} for {question}"),
        }
    }

    fn chat(&mut self) {
        let messages = json!([{"role": "user", "content": "Tell me of the sea."}]);
        let body = json!({"messages": messages, "max_tokens": 12, "seed": self.random.below(9)});
        let request = post("/v1/chat/completions", &body.to_string());
        let (status, head, answer) = self.client.exchange(request.as_bytes());
        match status {
            200 => {
                let answer: Value = serde_json::from_str(&answer).unwrap();
                assert!(answer["choices"][0]["message"]["content"].is_string(), "{answer}");
            }
            429 if head.contains("\nretry-after:") => {}
            _ => panic!("{status}: {answer}"),
        }
    }
}
