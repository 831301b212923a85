//! What is asked of the servers.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::WHAT;
use super::server::Server;
use crate::process::{Failure, Result};

/// Shortest and longest prompt, and answer.
const PROMPT: [f64; 2] = [32.0, 1024.0];
const NEW: [f64; 2] = [16.0, 256.0];
/// Token ids below this are special in some vocabularies.
const FIRST_TOKEN: u64 = 300;
const TOKENS: u64 = 20_000;

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) prompt: Vec<u64>,
    pub(super) new: usize,
    pub(super) seed: u64,
}

/// How an answer came.
#[derive(Debug)]
pub(super) struct Times {
    /// From the request to the first token.
    pub(super) first: Duration,
    /// Between tokens.
    pub(super) between: Vec<Duration>,
}

/// Numbers that are the same each time: SplitMix64 (Steele et al. 2014).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(round: usize) -> Random {
        Random(round as u64)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn tokens(&mut self, count: usize) -> Vec<u64> {
        (0..count).map(|_| FIRST_TOKEN + self.next() % TOKENS).collect()
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within bounds")]
    fn length(&mut self, [least, most]: [f64; 2]) -> usize {
        let unit = self.next() as f64 / u64::MAX as f64;
        (least * (most / least).powf(unit)).round() as usize
    }

    pub(super) fn shapes(&mut self, count: usize) -> Vec<Shape> {
        let shape = |seed| {
            let (prompt, new) = (self.length(PROMPT), self.length(NEW));
            Shape { prompt: self.tokens(prompt), new, seed }
        };
        (0..count as u64).map(shape).collect()
    }
}

impl Server {
    /// Sends all requests, so many at a time. Returns a value for each of [`WHAT`].
    pub(super) fn load(&self, streams: usize, shapes: &[Shape]) -> Result<[f64; WHAT.len()]> {
        self.ask(&Shape { prompt: vec![FIRST_TOKEN; 8], new: 2, seed: 0 })?;
        let queue: Mutex<VecDeque<&Shape>> = Mutex::new(shapes.iter().collect());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let client = || {
            let mut all = Vec::new();
            while let Some(shape) = next() {
                all.push(self.ask(shape)?);
            }
            Ok(all)
        };
        let start = Instant::now();
        let times: Vec<Result<Vec<Times>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..streams).map(|_| scope.spawn(client)).collect();
            let ended = |_| Err(Failure::Explained("a client broke".to_owned()));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(ended)).collect()
        });
        let seconds = start.elapsed().as_secs_f64();
        let times: Vec<Times> =
            times.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        let tokens: usize = shapes.iter().map(|s| s.prompt.len() + s.new).sum();
        let first = times.iter().map(|t| t.first.as_secs_f64()).collect();
        let between = times.iter().flat_map(|t| &t.between).map(Duration::as_secs_f64).collect();
        let [ttft_50, ttft_99] = percentiles(first);
        let [itl_50, itl_99] = percentiles(between);
        Ok([tokens as f64 / seconds, ttft_50, ttft_99, itl_50, itl_99])
    }
}

/// Half and 99 of 100 are at most this.
fn percentiles(mut values: Vec<f64>) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    let at = |percent: usize| {
        let rank = (values.len() * percent).div_ceil(100).max(1) - 1;
        values.get(rank).copied().unwrap_or(f64::NAN)
    };
    [at(50), at(99)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values() {
        assert_eq!(percentiles((1..=200).map(f64::from).rev().collect()), [100.0, 198.0]);
        assert_eq!(percentiles(vec![7.0]), [7.0, 7.0]);
    }

    #[test]
    fn requests_are_within_bounds_and_the_same_each_time() {
        let shapes = Random::new(3).shapes(300);
        assert!(shapes.iter().all(|s| (32..=1024).contains(&s.prompt.len())));
        assert!(shapes.iter().all(|s| (16..=256).contains(&s.new)));
        assert!(shapes.iter().any(|s| s.prompt.len() < 64));
        assert!(shapes.iter().any(|s| s.prompt.len() > 512));
        let again = Random::new(3).shapes(300);
        assert_eq!(again[299].prompt, shapes[299].prompt);
        assert_ne!(Random::new(4).shapes(1)[0].prompt, shapes[0].prompt);
    }
}
