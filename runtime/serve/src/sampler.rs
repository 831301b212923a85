//! From logits to a token.
//!
//! The penalty for tokens that occurred in prompt or output (Keskar et al. 2019, arXiv:1909.05858;
//! negative logits are multiplied), temperature, then the k most likely tokens, then the fewest
//! that reach a share p of what is left (Holtzman et al. 2020, arXiv:1904.09751), then those with
//! at least a share of the most likely one's probability (Nguyen et al. 2024, arXiv:2407.01082):
//! the order of transformers. Equal logits rank by token id. Sums are taken in f64 in a fixed
//! order, and the random number is a function of seed, sequence and position, so the same request
//! draws the same tokens under any load.

use std::{
    cmp::Ordering,
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
};

use serde::{Deserialize, Serialize};
use text::GenerationDefaults;

use crate::{ServeError, philox::uniform};

/// How the next token is chosen; greedily by default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Divides positive logits of tokens that occurred, and multiplies negative ones; 1 is none.
    pub repetition_penalty: f64,
    /// Keeps so many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f64,
    /// Keeps tokens with at least this share of the most likely one's probability; 0 keeps all.
    pub min_p: f64,
    /// The seed; a new one each time if there is none.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 0.0,
            repetition_penalty: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: None,
        }
    }
}

impl SamplingParams {
    /// What the model's makers recommend, greedy unless they want sampling.
    pub fn recommended(defaults: &GenerationDefaults) -> SamplingParams {
        let repetition_penalty = defaults.repetition_penalty.unwrap_or(1.0);
        if defaults.do_sample != Some(true) {
            return SamplingParams { repetition_penalty, ..SamplingParams::default() };
        }
        SamplingParams {
            repetition_penalty,
            temperature: defaults.temperature.unwrap_or(1.0),
            top_k: defaults.top_k.unwrap_or(0),
            top_p: defaults.top_p.filter(|p| *p > 0.0).unwrap_or(1.0),
            min_p: defaults.min_p.unwrap_or(0.0),
            seed: None,
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`ServeError::Request`], which names the field.
    pub fn check(&self) -> Result<(), ServeError> {
        let SamplingParams { temperature, repetition_penalty, top_p, min_p, .. } = *self;
        let refuse = |field, value: f64, range| {
            Err(ServeError::request(field, format!("is {value}, and must be {range}")))
        };
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return refuse("temperature", temperature, "a number of at least 0");
        }
        if !(repetition_penalty > 0.0 && repetition_penalty.is_finite()) {
            return refuse("repetition_penalty", repetition_penalty, "a number above 0");
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return refuse("top_p", top_p, "above 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&min_p) {
            return refuse("min_p", min_p, "between 0 and 1");
        }
        Ok(())
    }
}

/// Draws the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    seed: u64,
    sequence: u64,
    /// Kept between draws for its memory.
    candidates: Vec<Candidate>,
    /// Logits after the repetition penalty, kept for its memory.
    penalised: Vec<f32>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    logit: f32,
    token: u32,
}

impl Sampler {
    /// A sampler for sequence number `sequence` of a request.
    ///
    /// # Errors
    /// As [`SamplingParams::check`].
    pub fn new(params: SamplingParams, sequence: u64) -> Result<Sampler, ServeError> {
        params.check()?;
        let seed = params.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        Ok(Sampler { params, seed, sequence, candidates: Vec::new(), penalised: Vec::new() })
    }

    /// The seed in use.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// As this, for another sequence of the request.
    pub fn fork(&self, sequence: u64) -> Sampler {
        Sampler { sequence, ..self.clone() }
    }

    /// Draws.
    pub fn sample(&mut self, draw: &Draw<'_>) -> Option<u32> {
        let before = [draw.prompt, draw.output].concat();
        self.sample_old(draw.logits, &before, draw.banned)
    }

    fn sample_old(&mut self, logits: &[f32], before: &[u32], banned: &[u32]) -> Option<u32> {
        if logits.iter().any(|l| l.is_nan()) {
            return None;
        }
        if self.params.repetition_penalty == 1.0 {
            return self.choose(logits, before.len() as u64, banned);
        }
        let mut penalised = std::mem::take(&mut self.penalised);
        penalised.clear();
        penalised.extend_from_slice(logits);
        for token in before {
            // From the model's logit: once, however often the token occurred.
            if let Some(logit) = logits.get(*token as usize) {
                penalised[*token as usize] = self.penalise(*logit);
            }
        }
        let token = self.choose(&penalised, before.len() as u64, banned);
        self.penalised = penalised;
        token
    }

    #[allow(clippy::cast_possible_truncation, reason = "logits are f32")]
    fn penalise(&self, logit: f32) -> f32 {
        let penalty = self.params.repetition_penalty as f32;
        if logit < 0.0 { logit * penalty } else { logit / penalty }
    }

    fn choose(&mut self, logits: &[f32], position: u64, banned: &[u32]) -> Option<u32> {
        let tokens = (0u32..).zip(logits).map(|(token, logit)| Candidate { logit: *logit, token });
        let possible = |c: &Candidate| c.logit > f32::NEG_INFINITY && !banned.contains(&c.token);
        let tokens = tokens.filter(possible);
        let best = tokens.clone().min_by(rank_old)?;
        if self.params.temperature == 0.0 || best.logit == f32::INFINITY {
            return Some(best.token);
        }
        self.candidates.clear();
        self.candidates.extend(tokens);
        self.keep_top_k();
        self.keep_top_p(best);
        self.keep_min_p(best);
        Some(self.draw(best, position))
    }

    /// Sorts what it keeps.
    fn keep_top_k(&mut self) {
        let k = self.params.top_k;
        if 0 < k && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, rank_old);
            self.candidates.truncate(k);
            self.candidates.sort_unstable_by(rank_old);
        }
    }

    /// Sorts as many of the best as it takes, instead of all.
    fn keep_top_p(&mut self, best: Candidate) {
        let Self { params, candidates, .. } = self;
        if params.top_p >= 1.0 {
            return;
        }
        let weight = |c: &Candidate| weight(params, best, *c);
        let wanted = params.top_p * candidates.iter().map(weight).sum::<f64>();
        let mut sorted = 64.min(candidates.len());
        loop {
            if sorted < candidates.len() {
                candidates.select_nth_unstable_by(sorted - 1, rank_old);
            }
            candidates[..sorted].sort_unstable_by(rank_old);
            let mut sum = 0.0;
            let reached = candidates[..sorted].iter().position(|c| {
                sum += weight(c);
                sum >= wanted
            });
            match reached {
                Some(last) => return candidates.truncate(last + 1),
                None if sorted == candidates.len() => return,
                None => sorted = (8 * sorted).min(candidates.len()),
            }
        }
    }

    fn keep_min_p(&mut self, best: Candidate) {
        let Self { params, candidates, .. } = self;
        if params.min_p > 0.0 {
            candidates.retain(|c| weight(params, best, *c) >= params.min_p);
        }
    }

    fn draw(&self, best: Candidate, position: u64) -> u32 {
        let weights = self.candidates.iter().map(|c| (c.token, weight(&self.params, best, *c)));
        let total: f64 = weights.clone().map(|(_, weight)| weight).sum();
        let mut left = total * uniform(self.seed, self.sequence, position);
        for (token, weight) in weights {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        // Rounding can leave a last crumb.
        best.token
    }
}

/// The more likely first, then the smaller id.
fn rank_old(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Probability relative to that of the best token.
fn weight(params: &SamplingParams, best: Candidate, c: Candidate) -> f64 {
    ((f64::from(c.logit) - f64::from(best.logit)) / params.temperature).exp()
}

#[cfg(any())]
mod tests {
    use super::*;

    fn sampler(mut params: SamplingParams) -> Sampler {
        params.seed = Some(5);
        Sampler::new(params, 0).unwrap()
    }

    /// Shares of each token in many draws.
    fn shares(params: SamplingParams, logits: &[f32]) -> Vec<f64> {
        let mut sampler = sampler(params);
        let draws = 40_000;
        let mut counts = vec![0.0; logits.len()];
        for position in 0..draws {
            counts[sampler.choose(logits, position, &[]).unwrap() as usize] += 1.0 / draws as f64;
        }
        counts
    }

    fn assert_shares(params: SamplingParams, logits: &[f32], want: &[f64]) {
        let got = shares(params, logits);
        let near = |(a, b): (&f64, &f64)| if *b == 0.0 { *a == 0.0 } else { (a - b).abs() < 0.012 };
        assert!(got.iter().zip(want).all(near), "{got:?} instead of {want:?}");
    }

    /// Probabilities 0.4, 0.1, 0.2, 0.3.
    fn logits() -> Vec<f32> {
        [0.4f32, 0.1, 0.2, 0.3].iter().map(|p| p.ln() + 3.0).collect()
    }

    fn hot() -> SamplingParams {
        SamplingParams { temperature: 1.0, ..SamplingParams::default() }
    }

    #[test]
    fn draws_follow_the_distribution() {
        assert_shares(hot(), &logits(), &[0.4, 0.1, 0.2, 0.3]);
        let half = SamplingParams { temperature: 0.5, ..hot() };
        assert_shares(half, &logits(), &[16.0 / 30.0, 1.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0]);
    }

    #[test]
    fn filters_keep_what_they_say() {
        let top_k = SamplingParams { top_k: 2, ..hot() };
        assert_shares(top_k, &logits(), &[4.0 / 7.0, 0.0, 0.0, 3.0 / 7.0]);
        let top_p = SamplingParams { top_p: 0.65, ..hot() };
        assert_shares(top_p, &logits(), &[4.0 / 7.0, 0.0, 0.0, 3.0 / 7.0]);
        let top_p = SamplingParams { top_p: 0.75, ..hot() };
        assert_shares(top_p, &logits(), &[4.0 / 9.0, 0.0, 2.0 / 9.0, 3.0 / 9.0]);
        let min_p = SamplingParams { min_p: 0.45, ..hot() };
        assert_shares(min_p, &logits(), &[4.0 / 9.0, 0.0, 2.0 / 9.0, 3.0 / 9.0]);
        // Top p counts shares of what top k has left.
        let both = SamplingParams { top_k: 2, top_p: 0.56, ..hot() };
        assert_shares(both, &logits(), &[1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_large_nucleus_is_found_without_sorting_everything() {
        let logits: Vec<f32> = (0..2000).map(|i| ((i * 37) % 2000) as f32 * 1e-3).collect();
        let mut order: Vec<usize> = (0..2000).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let weights: Vec<f64> = order.iter().map(|i| f64::from(logits[*i]).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let size = weights
            .iter()
            .take_while(|w| {
                sum += **w;
                sum < 0.9 * total
            })
            .count()
            + 1;
        let mut sampler = sampler(SamplingParams { top_p: 0.9, ..hot() });
        sampler.sample(&logits, &[], &[]).unwrap();
        assert_eq!(sampler.candidates.len(), size);
        assert!(sampler.candidates.iter().zip(&order).all(|(c, i)| c.token as usize == *i));
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        let mut greedy = sampler(SamplingParams::default());
        assert_eq!(greedy.sample(&[1.0, 3.0, 3.0], &[], &[]), Some(1));
        assert_eq!(greedy.sample(&[1.0, 3.0, 3.0], &[], &[1]), Some(2));
        assert_eq!(greedy.sample(&[f32::NEG_INFINITY, -1.0], &[], &[]), Some(1));
    }

    #[test]
    fn nothing_is_drawn_from_nothing() {
        for mut sampler in [sampler(SamplingParams::default()), sampler(hot())] {
            assert_eq!(sampler.sample(&[], &[], &[]), None);
            assert_eq!(sampler.sample(&[1.0, f32::NAN], &[], &[]), None);
            assert_eq!(sampler.sample(&[f32::NEG_INFINITY], &[], &[]), None);
            assert_eq!(sampler.sample(&[1.0, 2.0], &[], &[0, 1]), None);
            assert_eq!(sampler.sample(&[1.0, f32::INFINITY], &[], &[]), Some(1));
        }
    }

    #[test]
    fn extreme_temperatures_are_limits() {
        let cold = SamplingParams { temperature: f64::MIN_POSITIVE, ..hot() };
        assert_shares(cold, &logits(), &[1.0, 0.0, 0.0, 0.0]);
        let boiling = SamplingParams { temperature: 1e300, ..hot() };
        assert_shares(boiling, &logits(), &[0.25; 4]);
    }

    #[test]
    fn draws_depend_on_place_alone() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32).sin()).collect();
        let mut a = sampler(hot());
        let first: Vec<_> = (0..20).map(|p| a.choose(&logits, p, &[])).collect();
        let mut b = sampler(hot());
        let backwards: Vec<_> = (0..20).rev().map(|p| b.choose(&logits, p, &[])).collect();
        assert!(first.iter().eq(backwards.iter().rev()));
        let other = Sampler::new(SamplingParams { seed: Some(5), ..hot() }, 1);
        let mut other = other.unwrap();
        assert!((0..20).zip(&first).any(|(p, token)| other.choose(&logits, p, &[]) != *token));
        let fresh = || Sampler::new(hot(), 0).unwrap().seed();
        assert_ne!(fresh(), fresh());
    }

    /// What transformers' RepetitionPenaltyLogitsProcessor gives for these.
    #[test]
    fn tokens_that_occurred_are_less_likely_once() {
        let penalty = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::default() };
        let mut greedy = sampler(penalty.clone());
        assert_eq!(greedy.sample(&[4.0, 3.0, -1.0], &[], &[]), Some(0));
        assert_eq!(greedy.sample(&[4.0, 3.0, -1.0], &[0, 2], &[]), Some(1));
        assert_eq!(greedy.penalised, [2.0, 3.0, -2.0]);
        assert_eq!(greedy.sample(&[4.0, 1.5, -1.0], &[0, 0, 0, 99], &[]), Some(0));
        let mut hot = sampler(SamplingParams { temperature: 1e-9, ..penalty });
        assert_eq!(hot.sample(&[-3.0, -2.0], &[1], &[]), Some(0));
        let makers = GenerationDefaults { repetition_penalty: Some(1.3), ..Default::default() };
        let recommended = SamplingParams::recommended(&makers);
        assert_eq!((recommended.repetition_penalty, recommended.temperature), (1.3, 0.0));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let refused = |params: SamplingParams| params.check().unwrap_err().to_string();
        for temperature in [-0.1, f64::NAN, f64::INFINITY] {
            assert!(
                refused(SamplingParams { temperature, ..hot() }).starts_with("temperature: is")
            );
        }
        for repetition_penalty in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let params = SamplingParams { repetition_penalty, ..hot() };
            assert!(refused(params).starts_with("repetition_penalty: is"));
        }
        for top_p in [0.0, 1.01, f64::NAN] {
            assert!(refused(SamplingParams { top_p, ..hot() }).starts_with("top_p: is"));
        }
        assert_eq!(
            refused(SamplingParams { min_p: -1.0, ..hot() }),
            "min_p: is -1, and must be between 0 and 1"
        );
    }
}

/// TEMP
pub struct Draw<'a> {
    pub logits: &'a [f32],
    pub prompt: &'a [u32],
    pub output: &'a [u32],
    pub banned: &'a [u32],
    pub mask: Option<&'a [u32]>,
}
/// TEMP
pub fn rank(_l: &[f32], _t: u32) -> usize {
    0
}
/// TEMP
pub fn top_logprobs(_l: &[f32], _s: f32, _k: usize) -> Vec<(u32, f32)> {
    vec![]
}
