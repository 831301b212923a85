//! One of the likely tokens: top k, then top p, then min p, then the draw.
//!
//! The order is that of transformers, where each filter sees what the one before has left; vLLM
//! takes min p first. All three keep a prefix of the ranking, and the draw goes down it to where
//! the weights reach a share of all that are kept: inversion of the distribution function. So the
//! first of the ranking decide most draws, and [`decide`] does not need more than these and bounds
//! of the sum of all weights; [`Filters`] has all logits, and sums exactly.

use super::{
    SamplingParams,
    nucleus::{nucleus, place},
    peaks::{Candidate, Peaks},
    weights::Weights,
};

/// Ranked tokens that are tried first, and then.
const FEW: [usize; 2] = [64, 512];

/// The first tokens of a ranking.
#[derive(Clone, Copy, Debug)]
pub(super) struct First<'a> {
    pub(super) ranked: &'a [Candidate],
    /// Whether there are no other tokens that are possible.
    pub(super) is_all: bool,
}

/// So many of the most likely tokens are kept; `None` if all are.
pub(super) fn top_k(params: &SamplingParams, vocab_size: usize) -> Option<usize> {
    Some(params.top_k).filter(|k| (1..vocab_size).contains(k))
}

/// The token at the place `uniform`, in [0, 1), of what the filters leave, by rank; `None` if the
/// first tokens do not tell.
///
/// `total` gives two numbers between which the sum of the weights of all tokens is: the answer is
/// that of every number between them.
pub(super) fn decide(
    params: &SamplingParams,
    top_k: Option<usize>,
    weights: Weights,
    first: First<'_>,
    mut total: impl FnMut() -> [f64; 2],
    uniform: f64,
) -> Option<Candidate> {
    let First { ranked: mut kept, is_all } = first;
    // Whether what is kept ends with these.
    let mut is_cut = false;
    if let Some(k) = top_k {
        if k > kept.len() && !is_all {
            return None;
        }
        kept = &kept[..k.min(kept.len())];
        is_cut = true;
    }
    // Where these reach a share of all that is kept: `Some(None)` if behind them.
    let mut reached = |kept: &[Candidate], is_cut: bool, share: f64| {
        let sums =
            if is_cut { [kept.iter().map(|c| weights.of(c.logit)).sum(); 2] } else { total() };
        let [a, b] = sums.map(|sum: f64| place(kept, weights, share * sum));
        (a == b).then_some(a)
    };
    if params.top_p < 1.0 {
        match reached(kept, is_cut, params.top_p)? {
            Some(last) => {
                kept = &kept[..=last];
                is_cut = true;
            }
            // Summed in another order, all may just not reach.
            None if is_cut || is_all => {}
            None => return None,
        }
    }
    #[allow(clippy::cast_possible_truncation, reason = "weights are f32")]
    let min_p = params.min_p as f32;
    if min_p > 0.0 {
        let is_less = |c: &Candidate| weights.of(c.logit) < f64::from(min_p);
        match kept.iter().position(is_less) {
            Some(end) => {
                kept = &kept[..end];
                is_cut = true;
            }
            None if is_cut || is_all => {}
            None => return None,
        }
    }
    match reached(kept, is_cut, uniform)? {
        Some(place) => Some(kept[place]),
        None if is_cut || is_all => kept.last().copied(),
        None => None,
    }
}

/// Draws tokens from all logits; holds nothing between draws but memory.
#[derive(Debug, Default)]
pub(super) struct Filters {
    peaks: Peaks,
    sums: Vec<f64>,
    candidates: Vec<Candidate>,
}

impl Filters {
    /// The token at the place `uniform`, in [0, 1), of what the filters leave, by rank.
    ///
    /// `None` if a logit is NaN or every token is impossible.
    pub(super) fn choose(
        &mut self,
        params: &SamplingParams,
        logits: &[f32],
        uniform: impl FnOnce() -> f64,
    ) -> Option<u32> {
        let Filters { peaks, sums, candidates } = self;
        if !peaks.read(logits) {
            return None;
        }
        let best = peaks.best(logits)?;
        if params.temperature == 0.0 || best.logit == f32::INFINITY {
            return Some(best.token);
        }
        let weights = Weights::new(best, params.temperature);
        let uniform = uniform();
        let top_k = top_k(params, logits.len());
        let mut known = None;
        let mut total = |peaks: &Peaks| {
            *known.get_or_insert_with(|| {
                weights.sums(peaks, logits, |_, _| true, sums);
                sums.iter().sum::<f64>()
            })
        };
        for few in FEW.into_iter().chain(top_k.filter(|k| *k > FEW[1])) {
            peaks.most_likely(logits, few, f32::MIN, candidates);
            let first = First { ranked: candidates, is_all: candidates.len() < few };
            let total = || [total(peaks); 2];
            if let Some(c) = decide(params, top_k, weights, first, total, uniform) {
                return Some(c.token);
            }
        }
        let total = total(peaks);
        Some(self.far(params, weights, logits, (best, total), uniform).token)
    }

    /// As [`decide`] without top k, for a token that is not among the first.
    fn far(
        &mut self,
        params: &SamplingParams,
        weights: Weights,
        logits: &[f32],
        (best, total): (Candidate, f64),
        uniform: f64,
    ) -> Candidate {
        let Filters { peaks, sums, candidates } = self;
        #[allow(clippy::cast_possible_truncation, reason = "weights are f32")]
        let min_p = params.min_p as f32;
        let last = (params.top_p < 1.0)
            .then(|| nucleus(params.top_p * total, weights, logits, peaks, candidates))
            .flatten();
        let sum = match last {
            None if min_p == 0.0 => total,
            None => {
                weights.sums(peaks, logits, |_, weight| weight >= min_p, sums);
                sums.iter().sum()
            }
            Some(last) => {
                let keeps = |c: Candidate, weight: f32| {
                    // Not lazily, for the compiler to use vectors.
                    let is_before = (c.logit == last.logit) & (c.token <= last.token);
                    ((c.logit > last.logit) | is_before) & (weight >= min_p)
                };
                weights.sums(peaks, logits, keeps, sums);
                sums.iter().sum()
            }
        };
        // Rounding can lead behind what is kept.
        let found = nucleus(uniform * sum, weights, logits, peaks, candidates);
        let is_kept = |c: &Candidate| {
            last.is_none_or(|last| c.rank(&last).is_le()) && weights.of(c.logit) >= f64::from(min_p)
        };
        found.filter(is_kept).or(last.filter(is_kept)).unwrap_or(best)
    }
}
