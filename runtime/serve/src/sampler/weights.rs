//! Probabilities up to a common factor.
//!
//! The weight of a token is its probability relative to that of the best one. It is computed from
//! additions and products alone, which vectors do at once and every machine rounds alike; runs
//! are summed in f32 in a fixed order, and runs together in f64.

use super::peaks::{Candidate, LANES, Peaks, RUN};

/// Gives logits their weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights {
    best: f32,
    /// From differences of logits to exponents of 2.
    scale: f32,
}

/// Tokens that are less likely than the best one by 43 factors of 2 weigh nothing: together they
/// are below what f32 rounds off the others.
const LEAST_EXPONENT: f32 = -43.0;

impl Weights {
    /// Weights for the logit of the best token, and a temperature above 0.
    #[allow(clippy::cast_possible_truncation, reason = "logits are f32")]
    pub(super) fn new(best: Candidate, temperature: f64) -> Weights {
        // With 0 and infinity, -inf and equal logits would give NaN.
        let (least, most) = (f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX));
        let scale = (std::f64::consts::LOG2_E / temperature).clamp(least, most) as f32;
        Weights { best: best.logit, scale }
    }

    /// The weight of a logit no larger than that of the best token.
    pub(super) fn of(self, logit: f32) -> f64 {
        f64::from(exp2(self.exponent(logit)))
    }

    /// The sum of the kept weights in each run. A token that is more likely than a kept one, or as
    /// likely with a smaller id, must be kept.
    pub(super) fn sums(
        self,
        peaks: &Peaks,
        logits: &[f32],
        keeps: impl Fn(Candidate, f32) -> bool,
        out: &mut Vec<f64>,
    ) {
        out.clear();
        out.extend(peaks.runs(logits).map(|(first, run)| {
            let weight = exp2(self.exponent(first.logit));
            if weight == 0.0 || !keeps(first, weight) {
                return 0.0;
            }
            let mut sums = [0.0; LANES];
            for group in self.of_run(first.token, run, &keeps).as_chunks::<LANES>().0 {
                for (sum, weight) in sums.iter_mut().zip(group) {
                    *sum += weight;
                }
            }
            sums.iter().map(|sum| f64::from(*sum)).sum()
        }));
    }

    /// The weights in a run that begins with token `first`; 0 of those that are not kept, and
    /// behind its end.
    pub(super) fn of_run(
        self,
        first: u32,
        run: &[f32],
        keeps: impl Fn(Candidate, f32) -> bool,
    ) -> [f32; RUN] {
        let mut weights = [0.0; RUN];
        for (weight, logit) in weights.iter_mut().zip(run) {
            *weight = exp2(self.exponent(*logit));
        }
        for ((weight, logit), token) in weights.iter_mut().zip(run).zip(first..) {
            *weight =
                if keeps(Candidate { logit: *logit, token }, *weight) { *weight } else { 0.0 };
        }
        weights
    }

    fn exponent(self, logit: f32) -> f32 {
        (logit - self.best) * self.scale
    }
}

/// Parts of a histogram of weights.
pub(super) const INTERVALS: usize = interval(0.0) + 1;

/// The interval of a weight, the largest weights in the first: 32 of them halve the weight.
pub(super) const fn interval(weight: f32) -> usize {
    // The exponent and the first 5 bits of the fraction, counted down from those of 1.
    (1f32.to_bits().saturating_sub(weight.to_bits()) >> 18) as usize
}

/// `2^x` for `x <= 0`, off by less than 3e-7 of it, and 0 below the least exponent.
fn exp2(x: f32) -> f32 {
    /// 1.5 · 2^23: added to a small number, it leaves an integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const L: f32 = std::f32::consts::LN_2;
    let rounded = x + ROUND;
    let fraction = x - (rounded - ROUND);
    // Taylor's series of e^(fraction · ln 2); the fraction is between -1/2 and 1/2.
    let mut series = L * L * L * L * L * L / 720.0;
    let coefficients =
        [L * L * L * L * L / 120.0, L * L * L * L / 24.0, L * L * L / 6.0, L * L / 2.0, L, 1.0];
    for coefficient in coefficients {
        series = series * fraction + coefficient;
    }
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1f32.to_bits()));
    if x < LEAST_EXPONENT { 0.0 } else { series * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(best: f32, temperature: f64) -> Weights {
        Weights::new(Candidate { logit: best, token: 0 }, temperature)
    }

    #[test]
    fn exp2_is_that_of_the_library() {
        assert_eq!(exp2(0.0), 1.0);
        for i in 0..=1_000_000 {
            let x = -43.0 * i as f32 / 1e6;
            let (got, want) = (f64::from(exp2(x)), f64::from(x).exp2());
            assert!((got / want - 1.0).abs() < 3e-7, "2^{x} is {got} instead of {want}");
        }
        for x in [-43.001, -127.5, -1e30, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp2(x), 0.0);
        }
    }

    #[test]
    fn intervals_order_weights() {
        let weights: Vec<f32> = (0..3000u16).map(|i| exp2(f32::from(i) / -64.0)).collect();
        let intervals: Vec<usize> = weights.iter().map(|w| interval(*w)).collect();
        assert!(intervals.is_sorted());
        assert_eq!([0, 64, 128, 2999].map(|i| intervals[i]), [0, 32, 64, INTERVALS - 1]);
    }

    #[test]
    fn extreme_temperatures_are_limits() {
        for temperature in [f64::from_bits(1), 1e-300, 1e-3] {
            let cold = weights(3.0, temperature);
            assert_eq!([3.0, 2.9, f32::NEG_INFINITY].map(|l| cold.of(l)), [1.0, 0.0, 0.0]);
        }
        for temperature in [1e30, f64::MAX] {
            let hot = weights(3.0, temperature);
            assert_eq!([3.0, -9.0, f32::NEG_INFINITY].map(|l| hot.of(l)), [1.0, 1.0, 0.0]);
        }
    }

    #[test]
    fn sums_are_those_of_the_kept_weights() {
        let logit = |i: f32| 5.0 + 5.0 * i.sin() - i / 100.0;
        let logits: Vec<f32> = (0..1000u16).map(|i| logit(f32::from(i))).collect();
        let mut peaks = Peaks::default();
        peaks.read(&logits);
        let weights = weights(10.0, 0.9);
        for least in [-30.0, 2.0, 9.9] {
            let mut sums = vec![];
            weights.sums(&peaks, &logits, |c, _| c.logit >= least, &mut sums);
            assert_eq!(sums.len(), 8);
            for (sum, run) in sums.iter().zip(logits.chunks(128)) {
                let kept = run.iter().filter(|l| **l >= least);
                let want: f64 = kept.map(|l| ((f64::from(*l) - 10.0) / 0.9).exp()).sum();
                assert!((sum - want).abs() <= 2e-6 * want, "{sum} instead of {want}");
            }
        }
    }
}
