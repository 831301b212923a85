//! The fewest tokens that reach a share of the probability.
//!
//! Most often they are few: then a few of the best, found by [`Peaks`], are sorted. Otherwise a
//! histogram of the weights tells where in the ranking the last one lies, and only tokens about as
//! likely are sorted.

use super::{
    peaks::{Candidate, Peaks},
    weights::{INTERVALS, Weights, interval},
};

/// Ranked tokens that are tried first, and then.
const FEW: [usize; 2] = [64, 512];

/// The last in the ranking of the fewest tokens whose weights reach `wanted`; `None` if all are
/// needed. `scratch` may hold anything, before and after.
pub(super) fn nucleus(
    wanted: f64,
    weights: Weights,
    logits: &[f32],
    peaks: &mut Peaks,
    scratch: &mut Vec<Candidate>,
) -> Option<Candidate> {
    for few in FEW {
        let bound = peaks.bound(few);
        if bound == f32::NEG_INFINITY {
            break;
        }
        peaks.collect(logits, |logit| logit >= bound, scratch);
        scratch.sort_unstable_by(Candidate::rank);
        if let Some(last) = reach(scratch, weights, wanted) {
            return Some(last);
        }
    }
    let mut sums = vec![0.0; INTERVALS];
    for (first, run) in peaks.runs(logits) {
        for weight in weights.of_run(first.token, run, |_, _| true) {
            sums[interval(weight)] += f64::from(weight);
        }
    }
    let mut before = 0.0;
    let last = sums.into_iter().position(|sum| {
        let reaches = before + sum >= wanted;
        before += if reaches { 0.0 } else { sum };
        reaches
    })?;
    scratch.clear();
    for (first, run) in peaks.runs(logits) {
        let weights = weights.of_run(first.token, run, |_, _| true);
        let tokens = (first.token..).zip(run).zip(weights);
        let tokens = tokens.filter(|(_, weight)| interval(*weight) == last);
        scratch.extend(tokens.map(|((token, logit), _)| Candidate { logit: *logit, token }));
    }
    scratch.sort_unstable_by(Candidate::rank);
    // Summed in another order, the same weights may just not reach.
    reach(scratch, weights, wanted - before).or(scratch.last().copied())
}

/// The place of the token with which the sum of weights reaches `wanted`.
pub(super) fn place(ranked: &[Candidate], weights: Weights, wanted: f64) -> Option<usize> {
    let mut sum = 0.0;
    ranked.iter().position(|c| {
        sum += weights.of(c.logit);
        sum >= wanted
    })
}

fn reach(ranked: &[Candidate], weights: Weights, wanted: f64) -> Option<Candidate> {
    place(ranked, weights, wanted).map(|place| ranked[place])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nucleus by a sort of everything.
    fn sorted(top_p: f64, logits: &[f32]) -> Option<Candidate> {
        let mut all: Vec<Candidate> =
            (0..).zip(logits).map(|(token, logit)| Candidate { logit: *logit, token }).collect();
        all.sort_by(Candidate::rank);
        let weight = |c: &Candidate| (f64::from(c.logit) - f64::from(all[0].logit)).exp();
        let wanted = top_p * all.iter().map(weight).sum::<f64>();
        let mut sum = 0.0;
        let reaches = |c: &&Candidate| {
            sum += weight(c);
            sum >= wanted
        };
        all.iter().find(reaches).copied()
    }

    #[test]
    fn small_and_large_nuclei_are_those_of_a_sort() {
        let step = |i: u32| (i.wrapping_mul(0x9e37_79b9) >> 8) as f32 / (1 << 24) as f32;
        for (n, range, share) in [(300, 9.0, 0.5), (40_000, 30.0, 0.001), (40_000, 2.0, 0.9)] {
            let logits: Vec<f32> = (0..n).map(|i| step(i) * range).collect();
            let mut peaks = Peaks::default();
            peaks.read(&logits);
            let weights = Weights::new(peaks.best(&logits).unwrap(), 1.0);
            let mut sums = vec![];
            weights.sums(&peaks, &logits, |_, _| true, &mut sums);
            for top_p in [1e-9, 0.01, 0.1, share, 0.95, 0.999] {
                let wanted = top_p * sums.iter().sum::<f64>();
                let got = nucleus(wanted, weights, &logits, &mut peaks, &mut vec![]);
                let (got, want) = (got.unwrap(), sorted(top_p, &logits).unwrap());
                // A place in the ranking may differ by rounding.
                let place = |c: &Candidate| logits.iter().filter(|l| **l > c.logit).count();
                let (a, b) = (place(&got), place(&want));
                assert!(a.abs_diff(b) <= 1 + b / 10_000, "{a} instead of {b}: {top_p} of {n}");
            }
        }
    }

    #[test]
    fn equal_tokens_are_taken_by_id() {
        let logits = [1.0; 5000];
        let mut peaks = Peaks::default();
        peaks.read(&logits);
        let weights = Weights::new(peaks.best(&logits).unwrap(), 1.0);
        let mut last = |wanted| nucleus(wanted, weights, &logits, &mut peaks, &mut vec![]);
        assert_eq!(last(0.5).map(|c| c.token), Some(0));
        assert_eq!(last(2500.0).map(|c| c.token), Some(2499));
        assert_eq!(last(5000.5), None);
    }
}
