//! Times a session: prefill and decode of a language model, or an encoder's runs.

use std::{ops::ControlFlow, time::Instant};

use exec::LaunchTime;
use serde::Serialize;
use serve::{GenerateParams, Session};

use crate::{
    failure::{Failure, Result},
    session::failure,
};

/// What is run.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    /// One prompt a stream.
    pub(super) prompts: Vec<Vec<u32>>,
    /// New tokens of each stream.
    pub(super) gen_tokens: usize,
}

/// Seconds of one round.
#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    /// All prompts, until each stream has its first token; an encoder's run.
    pub(super) prefill: f64,
    /// The first stream's first token.
    pub(super) first_token: f64,
    /// From then on, and the tokens of that time.
    pub(super) decode: f64,
    pub(super) decode_tokens: usize,
    /// Launches of the last step of a prompt, by operator.
    pub(super) prefill_ops: Vec<OpTime>,
    /// Launches of the last step of decoding, by operator.
    pub(super) decode_ops: Vec<OpTime>,
}

/// Launches of one operator in one step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct OpTime {
    pub(super) op: String,
    pub(super) launches: usize,
    pub(super) seconds: f64,
    pub(super) flops: f64,
    pub(super) bytes: f64,
}

impl Workload {
    /// Prompts of so many tokens, any but the same: a fixed sequence of pseudo-random numbers.
    pub(super) fn new(streams: usize, tokens: usize, gen_tokens: usize, vocab: u64) -> Workload {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut token = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            u32::try_from((state >> 33) % vocab.max(1)).unwrap_or(0)
        };
        let prompts = (0..streams).map(|_| (0..tokens).map(|_| token()).collect());
        Workload { prompts: prompts.collect(), gen_tokens }
    }

    /// The prompts.
    pub(super) fn prompts(&self) -> Vec<&[u32]> {
        self.prompts.iter().map(Vec::as_slice).collect()
    }

    /// Checks that batches and pieces change no bit.
    ///
    /// # Errors
    /// [`Failure::Bug`] if they do.
    pub(super) fn verify(&self, session: &mut Session, is_encoder: bool) -> Result<()> {
        let first = &self.prompts[0];
        if is_encoder {
            let together = session.embed(&self.prompts()).map_err(failure)?;
            let alone = session.embed(&[first]).map_err(failure)?;
            return agree("an embedding alone and in a batch", &together[0], &alone[0]);
        }
        let new = self.gen_tokens.min(8);
        let params = params(new);
        let requests: Vec<_> = self.prompts().into_iter().map(|p| (p, &params)).collect();
        let together =
            session.generate_batch(&requests, |_| ControlFlow::Continue(())).map_err(failure)?;
        let whole = [first.as_slice(), &together[0].tokens].concat();
        let scores = session.score(&whole).map_err(failure)?;
        let scores: Vec<f32> = scores[first.len()..].iter().filter_map(|s| *s).collect();
        agree("`score` and a batch of `generate`", &together[0].logprobs, &scores)
    }

    /// Runs it once; times of launches are there where they are measured.
    pub(super) fn round(
        &self,
        session: &mut Session,
        is_encoder: bool,
        is_profiled: bool,
    ) -> Result<Round> {
        session.set_profiling(is_profiled);
        let mut round = Round::default();
        if is_encoder {
            let start = Instant::now();
            session.embed(&self.prompts()).map_err(failure)?;
            round.prefill = start.elapsed().as_secs_f64();
            round.first_token = round.prefill;
            round.prefill_ops = by_op(&session.launch_times());
            return Ok(round);
        }
        let firsts = self.generate(session, 1)?;
        round.prefill = firsts.iter().copied().fold(0.0, f64::max);
        round.first_token = firsts.iter().copied().fold(f64::INFINITY, f64::min);
        round.prefill_ops = by_op(&session.launch_times());
        if self.gen_tokens > 1 {
            let times = self.generate(session, self.gen_tokens)?;
            // Every stream has its first token from here on.
            let begin = first_of_last(&times, self.gen_tokens);
            let end = times.iter().copied().fold(begin, f64::max);
            round.decode = end - begin;
            round.decode_tokens = times.iter().filter(|t| **t > begin).count();
            round.decode_ops = by_op(&session.launch_times());
        }
        Ok(round)
    }

    /// When each token came, stream by stream.
    fn generate(&self, session: &mut Session, tokens: usize) -> Result<Vec<f64>> {
        let params = params(tokens);
        let requests: Vec<_> = self.prompts().into_iter().map(|p| (p, &params)).collect();
        let mut times = vec![Vec::with_capacity(tokens); requests.len()];
        let start = Instant::now();
        session
            .generate_batch(&requests, |event| {
                times[event.request].push(start.elapsed().as_secs_f64());
                ControlFlow::Continue(())
            })
            .map_err(failure)?;
        Ok(times.concat())
    }
}

fn params(max_tokens: usize) -> GenerateParams {
    GenerateParams { max_tokens: Some(max_tokens), ignore_eos: true, ..GenerateParams::default() }
}

/// When the last stream had its first token, of streams of `tokens` each.
fn first_of_last(times: &[f64], tokens: usize) -> f64 {
    times.iter().step_by(tokens).copied().fold(0.0, f64::max)
}

fn agree(what: &str, a: &[f32], b: &[f32]) -> Result<()> {
    if a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()) {
        return Ok(());
    }
    Err(Failure::Bug(format!("{what} differ, and must not by a bit: {a:?}, {b:?}")))
}

fn by_op(launches: &[LaunchTime<'_>]) -> Vec<OpTime> {
    let mut out: Vec<OpTime> = Vec::new();
    for launch in launches {
        let op = launch.kernel.op.as_str();
        let at = out.iter().position(|o| o.op == op).unwrap_or_else(|| {
            let op = op.to_owned();
            out.push(OpTime { op, launches: 0, seconds: 0.0, flops: 0.0, bytes: 0.0 });
            out.len() - 1
        });
        out[at].launches += 1;
        out[at].seconds += launch.time.as_secs_f64();
        out[at].flops += launch.flops as f64;
        out[at].bytes += launch.bytes as f64;
    }
    out.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_fixed_and_within_the_vocabulary() {
        let workload = Workload::new(3, 50, 4, 97);
        assert_eq!(workload.prompts, Workload::new(3, 50, 4, 97).prompts);
        assert!(workload.prompts.iter().flatten().all(|t| *t < 97));
        assert_ne!(workload.prompts[0], workload.prompts[1]);
    }

    #[test]
    fn decoding_begins_when_every_stream_has_begun() {
        // Two streams of three tokens.
        let times = [1.0, 2.0, 3.0, 1.5, 2.5, 3.5];
        assert_eq!(first_of_last(&times, 3), 1.5);
        assert!(agree("x", &[1.0], &[1.0]).is_ok() && agree("x", &[0.0], &[-0.0]).is_err());
    }
}
