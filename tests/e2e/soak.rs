//! The server under clients of every kind: those that leave, read slowly, send nonsense, and many.
//!
//! They watch the memory and the descriptors of a process, which is this binary again, with a
//! server and nothing else in it. `cargo xtask soak` gives them longer.

mod client;
mod process;

use std::{
    env,
    num::NonZeroUsize,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use frontend::ImportOptions;
use serde_json::{Value, json};
use serve::{Engine, EngineOptions, http::ServerOptions};

use crate::support::{Random, compile_to, data, options_with_text};
use client::{Client, Outcome};
use process::{ARTIFACT, KV_BYTES, Server};

/// Longest prompt and answer of what is asked here.
const LONGEST: usize = 160;
/// Clients of every kind at once.
const CLIENTS: u64 = 24;
/// Memory that a process may grow by from its second quarter to its end.
const SLACK: u64 = 12 << 20;

fn seconds() -> u64 {
    env::var("BROLLY_SOAK_SECONDS").map_or(30, |seconds| seconds.parse().unwrap())
}

/// Requests whose answers do not depend on anything else.
fn questions() -> Vec<Value> {
    let text = std::fs::read_to_string(data("stories/README.md")).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut random = Random(11);
    let question = |number: usize| {
        // Some begin alike, so that they share blocks.
        let start = 8 * random.below(4);
        let prompt = words[start..][..4 + random.below(30)].join(" ");
        json!({
            "prompt": prompt,
            "max_tokens": 1 + random.below(48),
            "temperature": number % 2,
            "seed": number,
            "logprobs": number.is_multiple_of(3).then_some(2),
            "n": if number.is_multiple_of(7) { 3 } else { 1 },
            "ignore_eos": true,
        })
    };
    (0..40).map(question).collect()
}

/// Blocks for so many of the longest sequences.
fn server(sequences: usize) -> Server {
    let folder = data("stories");
    let options = options_with_text(&folder, ImportOptions::default());
    let (path, _) = compile_to("soak", &folder, &options);
    let engine = Engine::open(&path, &EngineOptions::default()).unwrap();
    let limits = engine.limits().unwrap().clone();
    let block_bytes = engine.memory().state_bytes / u64::from(limits.blocks);
    drop(engine);
    let blocks = sequences * LONGEST.div_ceil(limits.block_size);
    Server::start(&path, blocks as u64 * block_bytes)
}

/// The child process; elsewhere there is nothing to serve.
#[test]
fn serves() {
    let Ok(artifact) = env::var(ARTIFACT) else { return };
    let options = EngineOptions {
        kv_cache_bytes: Some(env::var(KV_BYTES).unwrap().parse().unwrap()),
        max_num_seqs: NonZeroUsize::new(16),
        max_queue: 200,
        ..EngineOptions::default()
    };
    let engine = Engine::open(Path::new(&artifact), &options).unwrap();
    let template = include_str!("../clients/chat_template.jinja").to_owned();
    let options =
        ServerOptions { port: 0, chat_template: Some(template), ..ServerOptions::default() };
    serve::http::serve(engine, options, |address| println!("serving at {address}")).unwrap();
}

/// Asks each question alone, for the answers that are right.
fn answers(client: &Client, questions: &[Value]) -> Vec<Value> {
    questions.iter().map(|question| client.ask(question).unwrap_answer()).collect()
}

#[test]
fn overload_is_answered_or_refused() {
    let server = server(4);
    let client = server.client();
    let questions = questions();
    let right = answers(&client, &questions);
    let plan = client.metric("brolly_memory_reserved_bytes");
    let counts = [const { AtomicU64::new(0) }; 2];
    thread::scope(|scope| {
        for number in 0..500 {
            let (client, counts) = (&client, &counts);
            let (question, right) = (&questions[number % 40], &right[number % 40]);
            scope.spawn(move || match client.ask(question) {
                Outcome::Answer(answer) => {
                    assert_eq!(&answer, right, "{question}");
                    counts[0].fetch_add(1, Ordering::Relaxed);
                }
                Outcome::Busy => _ = counts[1].fetch_add(1, Ordering::Relaxed),
                Outcome::Refused(status) => panic!("{status} for {question}"),
            });
        }
    });
    let [answered, busy] = counts.map(AtomicU64::into_inner);
    println!("{answered} answered, {busy} told to come again");
    assert_eq!(answered + busy, 500);
    assert!(answered >= 200, "the queue holds 200");
    client.wait_for_rest();
    let peak = server.peak_anonymous_bytes();
    assert!(peak as f64 <= plan, "{peak} bytes, and {plan} were planned");
    server.terminate();
    server.expect_success();
}

#[test]
fn nothing_leaks() {
    let duration = Duration::from_secs(seconds());
    let server = server(6);
    let client = server.client();
    let questions = questions();
    let right = answers(&client, &questions);
    client.wait_for_rest();
    let descriptors = server.descriptors();
    let start = Instant::now();
    let is_over = || start.elapsed() >= duration;
    let outcomes = client::Counts::default();
    let mut samples = Vec::new();
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let mut visitor = client::Visitor {
                client: &client,
                questions: &questions,
                right: &right,
                random: Random(number),
                counts: &outcomes,
            };
            scope.spawn(move || {
                while !is_over() {
                    visitor.visit();
                }
            });
        }
        while !is_over() {
            thread::sleep(duration / 100);
            samples.push(server.anonymous_bytes());
        }
    });
    println!("{outcomes}");
    outcomes.expect_all_kinds();
    client.wait_for_rest();
    assert_eq!(client.metric("brolly_kv_blocks_used"), 0.0, "blocks leaked");
    server.wait_for_descriptors(descriptors);
    let quarter = samples.len() / 4;
    let median = |samples: &[u64]| {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        sorted[sorted.len() / 2]
    };
    let (warm, end) =
        (median(&samples[quarter..2 * quarter]), median(&samples[samples.len() - quarter..]));
    println!("{warm} bytes in the second quarter, {end} in the last");
    assert!(end <= warm + SLACK, "memory grew from {warm} to {end} bytes");
    // What is accepted is answered, though the end has come.
    let streams: Vec<_> = questions[..8].iter().map(|question| client.begin(question)).collect();
    client.wait_for("brolly_num_requests_running", |running| running > 0.0);
    let begun: Vec<_> = streams.into_iter().map(client::Stream::head).collect();
    server.terminate();
    for (stream, right) in begun.into_iter().zip(&right) {
        assert_eq!(&stream.rest(), right);
    }
    server.expect_success();
}
