//! One of the likely tokens: top k, then top p, then min p, then the draw.
//!
//! The order is that of transformers, where each filter sees what the one before has left; vLLM
//! takes min p first. All three keep a prefix of the ranking, so its last token says what is kept.

use super::{
    SamplingParams,
    nucleus::{nucleus, reach},
    peaks::{Candidate, Peaks},
    weights::Weights,
};

/// Draws tokens; holds nothing between draws but memory.
#[derive(Debug, Default)]
pub(super) struct Filters {
    peaks: Peaks,
    sums: Vec<f64>,
    candidates: Vec<Candidate>,
}

impl Filters {
    /// The token at the place `uniform`, in [0, 1), of what the filters leave, by id.
    ///
    /// `None` if a logit is NaN or every token is impossible.
    pub(super) fn choose(
        &mut self,
        params: &SamplingParams,
        logits: &[f32],
        uniform: impl FnOnce() -> f64,
    ) -> Option<u32> {
        if !self.peaks.read(logits) {
            return None;
        }
        let best = self.peaks.best(logits)?;
        if params.temperature == 0.0 || best.logit == f32::INFINITY {
            return Some(best.token);
        }
        let weights = Weights::new(best, params.temperature);
        let last = self.filter(params, weights, logits);
        #[allow(clippy::cast_possible_truncation, reason = "weights are f32")]
        let min_p = params.min_p as f32;
        let token = match last {
            None if min_p == 0.0 => self.draw(weights, logits, uniform(), |_, _| true),
            None => self.draw(weights, logits, uniform(), |_, weight| weight >= min_p),
            Some(last) => self.draw(weights, logits, uniform(), |c, weight| {
                // Not lazily, for the compiler to use vectors.
                let is_before = (c.logit == last.logit) & (c.token <= last.token);
                ((c.logit > last.logit) | is_before) & (weight >= min_p)
            }),
        };
        // Rounding can leave a last crumb.
        Some(token.unwrap_or(best.token))
    }

    /// The last token in the ranking that top k and top p keep, unless they keep all.
    fn filter(
        &mut self,
        params: &SamplingParams,
        weights: Weights,
        logits: &[f32],
    ) -> Option<Candidate> {
        let SamplingParams { top_k, top_p, .. } = *params;
        let Filters { peaks, sums, candidates } = self;
        if 0 < top_k && top_k < logits.len() {
            peaks.most_likely(logits, top_k, f32::MIN, candidates);
            let sum: f64 = candidates.iter().map(|c| weights.of(c.logit)).sum();
            let last = if top_p < 1.0 { reach(candidates, weights, top_p * sum) } else { None };
            last.or(candidates.last().copied())
        } else if top_p < 1.0 {
            weights.sums(peaks, logits, |_, _| true, sums);
            let wanted = top_p * sums.iter().sum::<f64>();
            nucleus(wanted, weights, logits, peaks, candidates)
        } else {
            None
        }
    }

    fn draw(
        &mut self,
        weights: Weights,
        logits: &[f32],
        uniform: f64,
        keeps: impl Fn(Candidate, f32) -> bool,
    ) -> Option<u32> {
        let Filters { peaks, sums, .. } = self;
        weights.sums(peaks, logits, &keeps, sums);
        let mut left = uniform * sums.iter().sum::<f64>();
        let mut runs = peaks.runs(logits).zip(sums);
        let (first, run) = runs.find_map(|(run, sum)| {
            let is_here = left < *sum;
            left -= if is_here { 0.0 } else { *sum };
            is_here.then_some(run)
        })?;
        let passes = |(_, weight): &(u32, f32)| {
            left -= f64::from(*weight);
            left < 0.0
        };
        let mut tokens = (first.token..).zip(weights.of_run(first.token, run, &keeps));
        tokens.find(passes).map(|(token, _)| token)
    }
}
