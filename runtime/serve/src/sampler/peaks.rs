//! The largest logit of each run of tokens: an index that finds the most likely tokens.
//!
//! One pass over the vocabulary makes it. At least k tokens have logits no smaller than the k-th
//! largest peak, so the k most likely tokens lie in the few runs whose peaks reach it, and neither
//! the vocabulary nor a copy of it has to be sorted.

use std::cmp::Ordering;

/// Tokens that share a peak.
pub(super) const RUN: usize = 128;

/// Width in which loops over runs are written, for the compiler to use vectors.
pub(super) const LANES: usize = 16;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) logit: f32,
    pub(super) token: u32,
}

impl Candidate {
    /// The more likely first, then the smaller id.
    pub(super) fn rank(&self, other: &Candidate) -> Ordering {
        let by_logit = other.logit.partial_cmp(&self.logit);
        by_logit.unwrap_or(Ordering::Equal).then(self.token.cmp(&other.token))
    }
}

#[derive(Debug, Default)]
pub(super) struct Peaks {
    peaks: Vec<f32>,
    /// In another order, kept for its memory.
    shuffled: Vec<f32>,
}

impl Peaks {
    /// Reads logits; returns whether none is NaN.
    pub(super) fn read(&mut self, logits: &[f32]) -> bool {
        self.peaks.clear();
        let mut has_nan = false;
        self.peaks.extend(logits.chunks(RUN).map(|run| {
            let (peak, run_has_nan) = peak(run);
            has_nan |= run_has_nan;
            peak
        }));
        !has_nan
    }

    /// The most likely token, of equal ones the first; `None` if all are impossible.
    pub(super) fn best(&self, logits: &[f32]) -> Option<Candidate> {
        let logit = self.peaks.iter().copied().fold(f32::NEG_INFINITY, larger);
        if logit == f32::NEG_INFINITY {
            return None;
        }
        let start = RUN * self.peaks.iter().position(|peak| *peak == logit)?;
        let index = start + logits[start..].iter().position(|l| *l == logit)?;
        Some(Candidate { logit, token: u32::try_from(index).ok()? })
    }

    /// A logit that at least `k` tokens reach, close to what only they reach; -inf if that is not
    /// known.
    pub(super) fn bound(&mut self, k: usize) -> f32 {
        if k == 0 || k > self.peaks.len() {
            return f32::NEG_INFINITY;
        }
        self.shuffled.clone_from(&self.peaks);
        let (_, bound, _) = self.shuffled.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        *bound
    }

    /// The tokens whose logits are kept, by id. A logit larger than a kept one must be kept.
    pub(super) fn collect(
        &self,
        logits: &[f32],
        keeps: impl Fn(f32) -> bool,
        out: &mut Vec<Candidate>,
    ) {
        out.clear();
        for (first, run) in self.runs(logits).filter(|(first, _)| keeps(first.logit)) {
            let tokens = (first.token..).zip(run).filter(|(_, logit)| keeps(**logit));
            out.extend(tokens.map(|(token, logit)| Candidate { logit: *logit, token }));
        }
    }

    /// The runs in order, each with its first token and its peak.
    pub(super) fn runs<'a>(
        &self,
        logits: &'a [f32],
    ) -> impl Iterator<Item = (Candidate, &'a [f32])> {
        let first = (0..).step_by(RUN).zip(&self.peaks);
        first.map(|(token, logit)| Candidate { logit: *logit, token }).zip(logits.chunks(RUN))
    }

    /// The `k` most likely of the tokens that `least` allows, in order.
    pub(super) fn most_likely(
        &mut self,
        logits: &[f32],
        k: usize,
        least: f32,
        out: &mut Vec<Candidate>,
    ) {
        let bound = larger(self.bound(k), least);
        self.collect(logits, |logit| logit >= bound, out);
        if k < out.len() {
            if k > 0 {
                out.select_nth_unstable_by(k - 1, Candidate::rank);
            }
            out.truncate(k);
        }
        out.sort_unstable_by(Candidate::rank);
    }
}

/// Whether a logit is NaN.
pub(super) fn has_nan(logits: &[f32]) -> bool {
    logits.chunks(RUN).any(|run| run.iter().fold(false, |found, logit| found | logit.is_nan()))
}

/// The largest logit of a run, and whether one is NaN.
fn peak(run: &[f32]) -> (f32, bool) {
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut nan = [0; LANES];
    let (groups, rest) = run.as_chunks::<LANES>();
    for group in groups {
        for lane in 0..LANES {
            max[lane] = larger(group[lane], max[lane]);
            nan[lane] |= u32::from(group[lane].is_nan());
        }
    }
    let last = rest.iter().copied().fold(f32::NEG_INFINITY, larger);
    let has_nan = nan.into_iter().fold(0, |a, b| a | b) != 0 || has_nan(rest);
    (max.into_iter().fold(last, larger), has_nan)
}

/// `b` unless `a` is larger; one instruction, unlike `f32::max`.
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits without order, many of them equal.
    fn logits(n: u32) -> Vec<f32> {
        let logit = |i: u32| (i.wrapping_mul(0x9e37_79b9).rotate_left(9) % 997) as f32;
        (0..n).map(|i| logit(i) - 500.0).collect()
    }

    #[test]
    fn the_most_likely_are_those_of_a_sort() {
        let mut peaks = Peaks::default();
        let mut found = Vec::new();
        for n in [0, 1, 15, 16, 17, 127, 128, 129, 1000, 5000] {
            let logits = logits(n);
            let mut all: Vec<Candidate> =
                (0..).zip(&logits).map(|(token, l)| Candidate { logit: *l, token }).collect();
            all.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token)));
            assert!(peaks.read(&logits));
            assert_eq!(peaks.best(&logits), all.first().copied());
            for k in [0, 1, 2, 7, 39, 40, 41, 600, 6000] {
                peaks.most_likely(&logits, k, f32::MIN, &mut found);
                assert_eq!(found, all[..k.min(all.len())], "{k} of {n}");
            }
        }
    }

    #[test]
    fn nan_is_seen_wherever_it_is() {
        let mut peaks = Peaks::default();
        for at in [0, 1, 127, 128, 140, 299] {
            let mut logits = logits(300);
            assert!(peaks.read(&logits));
            logits[at] = f32::NAN;
            assert!(!peaks.read(&logits), "{at}");
        }
    }

    #[test]
    fn zeros_of_both_signs_are_equal() {
        let logits = [-1.0, -0.0, 0.0];
        let mut peaks = Peaks::default();
        peaks.read(&logits);
        assert_eq!(peaks.best(&logits).unwrap().token, 1);
        let mut found = Vec::new();
        peaks.most_likely(&logits, 2, f32::MIN, &mut found);
        assert_eq!(found.iter().map(|c| c.token).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn impossible_tokens_are_not_among_the_likely() {
        let mut logits = logits(300);
        logits[..298].fill(f32::NEG_INFINITY);
        let mut peaks = Peaks::default();
        peaks.read(&logits);
        let mut found = Vec::new();
        peaks.most_likely(&logits, 5, f32::MIN, &mut found);
        assert_eq!(found.len(), 2);
        peaks.most_likely(&logits, 5, f32::NEG_INFINITY, &mut found);
        assert_eq!(found.iter().filter(|c| c.token < 298).map(|c| c.token).max(), Some(2));
        logits.fill(f32::NEG_INFINITY);
        peaks.read(&logits);
        assert_eq!(peaks.best(&logits), None);
    }
}
