//! What the head of a row tells of a draw.
//!
//! The head has the most likely tokens. Its own, as far as they are possible, are changed as all
//! are; of the tail, the other tokens, there are bounds: no logit is above the head's last, and
//! their weights sum to what the head's lack of the row's sum of exponentials. As tokens are drawn
//! in order of their rank ([`decide`]), that most often leaves one token, which is then the one
//! that the whole row gives, bit for bit.
//!
//! At another temperature than 1 a weight w becomes w^p with p = 1 / T. For n weights of the sum S,
//! none above m, the sum of these lies between n^(1-p) · S^p, by the power mean inequality, and
//! m^(p-1) · S.

use super::{
    Draw, SamplingParams,
    bad_words::completions,
    changes, changes_logits,
    filters::First,
    mask,
    peaks::Candidate,
    penalties::{Occurrences, Table},
    weights::Weights,
};
use crate::Head;

/// Relative error of sums of [`Weights`], in any order.
const ROUNDING: f64 = 5e-6;
/// Relative error of a sum of exponentials in f32, such as a model's, a part of the row after
/// another.
const OFF: f64 = 2e-5;

/// What is known of a draw's logits.
#[derive(Debug)]
pub(super) struct Seen<'a> {
    head: Head<'a>,
    /// The head's tokens that are possible, as changed, by rank.
    known: Vec<Candidate>,
    /// So many of these come before all others.
    sure: usize,
    /// No logit of the tail is above this; `None` if there is none that is possible.
    last: Option<f32>,
    /// Tokens of the tail whose logits are changed, with the most that they can be.
    lifted: Vec<Candidate>,
    /// Tokens of the tail that are impossible, at most.
    forbidden: usize,
}

/// The logits of the head's tokens, and bounds of the tail's.
struct Sparse<'a> {
    /// By token, as are the others.
    known: &'a mut [Candidate],
    lifted: &'a mut Vec<Candidate>,
    last: Option<f32>,
    vocab_size: usize,
    is_possible: &'a dyn Fn(u32) -> bool,
}

impl Table for Sparse<'_> {
    fn logit(&mut self, token: u32) -> Option<&mut f32> {
        if let Ok(at) = self.known.binary_search_by_key(&token, |c| c.token) {
            return Some(&mut self.known[at].logit);
        }
        let last = self.last?;
        if token as usize >= self.vocab_size || !(self.is_possible)(token) {
            return None;
        }
        let at = match self.lifted.binary_search_by_key(&token, |c| c.token) {
            Ok(at) => at,
            Err(at) => {
                self.lifted.insert(at, Candidate { logit: last, token });
                at
            }
        };
        Some(&mut self.lifted[at].logit)
    }
}

impl<'a> Seen<'a> {
    /// `None` if the head tells nothing: then the row may hold what is no number.
    pub(super) fn new(
        params: &SamplingParams,
        occurrences: &mut Occurrences,
        head: Head<'a>,
        draw: Draw<'_>,
    ) -> Option<Seen<'a>> {
        if !head.logsumexp.is_finite() || params.allowed_token_ids.is_some() {
            return None;
        }
        let tokens = head.tokens().take_while(|(_, logit)| *logit >= f32::MIN);
        let known: Vec<Candidate> =
            tokens.map(|(token, logit)| Candidate { logit, token }).collect();
        let is_all = known.len() < head.logits.len() || known.len() >= head.vocab_size;
        let last = known.last()?.logit;
        let last = (!is_all).then_some(last);
        let sure = known.len();
        let mut seen = Seen { head, known, sure, last, lifted: Vec::new(), forbidden: 0 };
        if changes(params, draw) {
            seen.change(params, occurrences, draw);
        }
        (seen.sure > 0).then_some(seen)
    }

    fn change(&mut self, params: &SamplingParams, occurrences: &mut Occurrences, draw: Draw<'_>) {
        let Seen { head, known, sure, last, lifted, forbidden } = self;
        let ended = completions(&params.bad_words, draw.output);
        let banned: Vec<u32> = ended.chain(draw.banned.iter().copied()).collect();
        let is_possible = |token: u32| {
            !banned.contains(&token) && draw.mask.is_none_or(|mask| mask::has(mask, token))
        };
        known.retain(|c| is_possible(c.token));
        *forbidden = if draw.mask.is_some() { head.vocab_size } else { banned.len() };
        *sure = known.len();
        if !changes_logits(params, draw) {
            return;
        }
        known.sort_unstable_by_key(|c| c.token);
        let vocab_size = head.vocab_size;
        occurrences.follow_draw(params, draw);
        occurrences.change(
            params,
            &mut Sparse { known, lifted, last: *last, vocab_size, is_possible: &is_possible },
        );
        known.sort_unstable_by(Candidate::rank);
        let most = lifted.iter().map(|c| c.logit).chain(*last).reduce(f32::max);
        *sure = known.iter().take_while(|c| most.is_none_or(|most| c.logit > most)).count();
    }

    /// The tokens that come before all others.
    pub(super) fn first(&self) -> First<'_> {
        let is_all = self.last.is_none() && self.sure == self.known.len();
        First { ranked: &self.known[..self.sure], is_all }
    }

    /// Two numbers between which the sum of all tokens' weights is, however it is rounded.
    pub(super) fn total(&self, weights: Weights, temperature: f64) -> [f64; 2] {
        let known: f64 = self.known.iter().map(|c| weights.of(c.logit)).sum();
        let [least, most] = self.last.map_or([0.0; 2], |last| self.tail(last, temperature));
        let lifted: f64 = self.lifted.iter().map(|c| weights.of(c.logit)).sum();
        let least = (known + least) * (1.0 - ROUNDING);
        let most = (known + most + lifted) * (1.0 + ROUNDING);
        // Nothing is between those two for extreme temperatures, where there is no number.
        if least <= most { [least, most] } else { [0.0, f64::INFINITY] }
    }

    /// As [`total`](Self::total), of the tail, but for what of it is lifted.
    fn tail(&self, last: f32, temperature: f64) -> [f64; 2] {
        let Head { logits, logsumexp, vocab_size, .. } = self.head;
        let first = Candidate { logit: logits[0], token: 0 };
        let weights = Weights::new(first, 1.0);
        let own: f64 = logits.iter().map(|logit| weights.of(*logit)).sum();
        let [first, last, sum, best] =
            [first.logit, last, logsumexp, self.known[0].logit].map(f64::from);
        let all = (sum - first).exp();
        // The logarithm is an f32.
        let off = OFF + 2.4e-7 * sum.abs();
        let least = (all * (1.0 - off) - own * (1.0 + ROUNDING)).max(0.0);
        let most = all * (1.0 + off) - own * (1.0 - ROUNDING);
        if most.is_nan() || most < 0.0 {
            return [0.0, f64::NAN];
        }
        let (n, p) = ((vocab_size - logits.len()) as f64, 1.0 / temperature);
        // Relative to the best token as it is now.
        let by_largest = |sum: f64| (p * (last - best) - (last - first) + sum.ln()).exp();
        let by_mean = |sum: f64| ((1.0 - p) * n.ln() + p * (sum.ln() + first - best)).exp();
        let largest = (p * (last - best)).exp();
        let [least, most] = if p >= 1.0 {
            [by_mean(least), by_largest(most)]
        } else {
            [by_largest(least), by_mean(most)]
        };
        let lost = (self.forbidden + self.lifted.len()) as f64 * largest;
        [(least - lost).max(0.0), most.min(n * largest)]
    }
}
