//! What the engine has done so far, and what it is doing.

use std::time::Duration;

/// A histogram: how many values were at most each bound, and how many in all.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Upper bounds, ascending.
    pub bounds: &'static [f64],
    /// Values in each bucket, not cumulated; one more than bounds.
    pub counts: Vec<u64>,
    /// The sum of the values.
    pub sum: f64,
}

/// Seconds, for latencies of whole requests.
pub(crate) const REQUEST_SECONDS: &[f64] =
    &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0];
/// Seconds, for latencies of tokens.
pub(crate) const TOKEN_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4];
/// Numbers of tokens.
pub(crate) const TOKENS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5];

impl Histogram {
    /// An empty one.
    pub fn new(bounds: &'static [f64]) -> Histogram {
        Histogram { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// Adds a value.
    pub fn add(&mut self, value: f64) {
        self.counts[self.bounds.partition_point(|bound| *bound < value)] += 1;
        self.sum += value;
    }

    /// Adds a time in seconds.
    pub fn add_time(&mut self, time: Duration) {
        self.add(time.as_secs_f64());
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// The state of an engine between two steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Sequences that take part in steps.
    pub running: usize,
    /// Requests that wait for room.
    pub waiting: usize,
    /// Blocks of key/value memory in all.
    pub blocks: usize,
    /// Blocks that sequences use.
    pub used_blocks: usize,
    /// Blocks that nobody uses and that hold a cached prefix.
    pub cached_blocks: usize,
    /// Steps.
    pub steps: u64,
    /// Time that the model has computed for. What else an engine at work takes is the scheduler's,
    /// the sampler's and the channels'.
    pub model_time: Duration,
    /// Tokens of prompts that were looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Tokens of prompts that were found there.
    pub prefix_hits: u64,
    /// Tokens of prompts, cached ones among them.
    pub prompt_tokens: u64,
    /// New tokens.
    pub generation_tokens: u64,
    /// How often a sequence had to give its memory back and be computed again.
    pub preemptions: u64,
    /// Ended at an end-of-sequence token or stop string.
    pub finished_stop: u64,
    /// Ended at their number of tokens.
    pub finished_length: u64,
    /// Ended by the client.
    pub finished_abort: u64,
    /// Ended by an error.
    pub finished_error: u64,
    /// From arrival to the first token.
    pub time_to_first_token: Histogram,
    /// Between two tokens of a sequence.
    pub inter_token_latency: Histogram,
    /// From arrival to the end.
    pub e2e_latency: Histogram,
    /// From arrival to the first step that the request takes part in.
    pub queue_time: Histogram,
    /// From that step to the first token.
    pub prefill_time: Histogram,
    /// From the first token to the last.
    pub decode_time: Histogram,
    /// Tokens of each prompt.
    pub request_prompt_tokens: Histogram,
    /// New tokens of each request.
    pub request_generation_tokens: Histogram,
    /// Tokens of each step.
    pub iteration_tokens: Histogram,
}

impl Default for Stats {
    fn default() -> Stats {
        let request = || Histogram::new(REQUEST_SECONDS);
        let tokens = || Histogram::new(TOKENS);
        Stats {
            running: 0,
            waiting: 0,
            blocks: 0,
            used_blocks: 0,
            cached_blocks: 0,
            steps: 0,
            model_time: Duration::ZERO,
            prefix_queries: 0,
            prefix_hits: 0,
            prompt_tokens: 0,
            generation_tokens: 0,
            preemptions: 0,
            finished_stop: 0,
            finished_length: 0,
            finished_abort: 0,
            finished_error: 0,
            time_to_first_token: request(),
            inter_token_latency: Histogram::new(TOKEN_SECONDS),
            e2e_latency: request(),
            queue_time: request(),
            prefill_time: request(),
            decode_time: request(),
            request_prompt_tokens: tokens(),
            request_generation_tokens: tokens(),
            iteration_tokens: tokens(),
        }
    }
}
