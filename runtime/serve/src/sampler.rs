//! From logits to a token.
//!
//! 1. Tokens outside the list of allowed ones or the mask, banned ones and those that would
//!    complete a bad word become impossible.
//! 2. The repetition penalty for tokens in prompt and output, then biases, then the presence and
//!    frequency penalties for tokens in the output.
//! 3. Temperature 0 takes the most likely token, of equal ones the first; others divide.
//! 4. Top k, then top p of what is left, then min p, then a draw, the most likely tokens first.
//!
//! vLLM adds biases before the repetition penalty, which here sees the model's own logits, and
//! applies min p before top k; the order of the filters is that of transformers. Log-probabilities
//! are none of this: they are the model's, by [`Logits::logit`](crate::Logits::logit),
//! [`top_logprobs`] and [`rank`].
//!
//! The random number is a function of seed, sequence and position, and weights are computed and
//! summed in a fixed order, so the same request draws the same tokens under any load. The cost of
//! a greedy draw is one pass over the logits; whatever changes logits adds a copy of them, and
//! sampling a pass of exponentials. Where the head of a row is at hand, most tokens are drawn from
//! that as they would be from the row: [`Sampler::sample_from_head`].

mod bad_words;
mod filters;
mod head;
mod logprobs;
mod mask;
mod nucleus;
mod params;
mod peaks;
mod penalties;
mod weights;

use std::{
    cell::RefCell,
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    sync::Arc,
};

use self::{
    bad_words::completions,
    filters::{Filters, decide, top_k},
    head::Seen,
    mask::copy_allowed,
    peaks::has_nan,
    penalties::Occurrences,
    weights::Weights,
};
use crate::{Head, ServeError, philox::uniform};

pub use self::{
    logprobs::{rank, top_logprobs},
    params::SamplingParams,
};

/// What a token is drawn from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Draw<'a> {
    /// The model's logits, one a token of the vocabulary.
    pub logits: &'a [f32],
    /// The tokens of the prompt.
    pub prompt: &'a [u32],
    /// The tokens drawn so far.
    pub output: &'a [u32],
    /// Tokens that are impossible this time.
    pub banned: &'a [u32],
    /// A bit for each token, 32 a word, the lowest first: set where the token is possible. Tokens
    /// behind the last word are not.
    pub mask: Option<&'a [u32]>,
}

/// Draws the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: Arc<SamplingParams>,
    seed: u64,
    sequence: u64,
    occurrences: Occurrences,
}

/// Memory as large as the vocabulary: samplers are many, and those of a thread draw in turn.
#[derive(Debug, Default)]
struct Scratch {
    logits: Vec<f32>,
    filters: Filters,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Sampler {
    /// A sampler for sequence number `sequence` of a request.
    ///
    /// # Errors
    /// As [`SamplingParams::check`].
    pub fn new(params: SamplingParams, sequence: u64) -> Result<Sampler, ServeError> {
        params.check()?;
        let seed = params.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        let params = Arc::new(params);
        Ok(Sampler { params, seed, sequence, occurrences: Occurrences::default() })
    }

    /// A sampler with the same parameters and seed for another sequence of the request.
    pub fn fork(&self, sequence: u64) -> Sampler {
        Sampler { sequence, ..self.clone() }
    }

    /// The seed in use.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Draws the next token.
    ///
    /// The result depends on seed, sequence and draw alone, not on what was drawn before; tokens
    /// are counted faster where the output continues that of the draw before.
    ///
    /// `None` if a logit is NaN or every token is impossible.
    pub fn sample(&mut self, draw: Draw<'_>) -> Option<u32> {
        SCRATCH.with_borrow_mut(|Scratch { logits, filters }| {
            let logits = if changes(&self.params, draw) {
                // Those of impossible tokens have to be numbers too.
                if has_nan(draw.logits) {
                    return None;
                }
                self.change(draw, logits);
                logits
            } else {
                draw.logits
            };
            filters.choose(&self.params, logits, || self.uniform(draw))
        })
    }

    /// As [`sample`](Self::sample), from the head of a row; `draw.logits` are not read.
    ///
    /// The token is the one that the whole row gives. `None` if the head does not tell which that
    /// is, or that there is one.
    pub fn sample_from_head(&mut self, head: Head<'_>, draw: Draw<'_>) -> Option<u32> {
        let seen = Seen::new(&self.params, &mut self.occurrences, head, draw)?;
        let (params, first) = (&*self.params, seen.first());
        let best = *first.ranked.first()?;
        if params.temperature == 0.0 {
            return Some(best.token);
        }
        let weights = Weights::new(best, params.temperature);
        let mut known = None;
        let total = || *known.get_or_insert_with(|| seen.total(weights, params.temperature));
        let top_k = top_k(params, head.vocab_size);
        let token = decide(params, top_k, weights, first, total, self.uniform(draw))?;
        Some(token.token)
    }

    fn uniform(&self, draw: Draw<'_>) -> f64 {
        let position = (draw.prompt.len() + draw.output.len()) as u64;
        uniform(self.seed, self.sequence, position)
    }

    /// Copies the logits as the parameters change them.
    fn change(&mut self, draw: Draw<'_>, logits: &mut Vec<f32>) {
        let Draw { output, banned, mask, .. } = draw;
        let params = &*self.params;
        copy_allowed(draw.logits, params.allowed_token_ids.as_deref(), mask, logits);
        for token in completions(&params.bad_words, output).chain(banned.iter().copied()) {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        self.occurrences.follow_draw(params, draw);
        self.occurrences.change(params, &mut logits[..]);
    }
}

/// Whether the draw is from other logits than the model's.
fn changes(params: &SamplingParams, draw: Draw<'_>) -> bool {
    draw.mask.is_some()
        || !draw.banned.is_empty()
        || params.allowed_token_ids.is_some()
        || changes_logits(params, draw)
        || completions(&params.bad_words, draw.output).next().is_some()
}

/// Whether a token's logit is changed to another that is possible.
fn changes_logits(params: &SamplingParams, draw: Draw<'_>) -> bool {
    !params.logit_bias.is_empty()
        || params.repetition_penalty != 1.0
        || (params.penalises_output() && !draw.output.is_empty())
}

#[cfg(test)]
mod tests;
