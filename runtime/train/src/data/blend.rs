//! Taking turns among sources in a fixed ratio.
//!
//! After n samples, of which `x` came from a source with the share `w`, `|x - w·n|` is at most
//! `1 - 1/(2s - 2)` for s sources: below one sample, always, which no greedy choice of the source
//! that lags most keeps up. Tijdeman 1980, "The chairman assignment problem", Discrete Mathematics
//! 32: among those whose lag allows it, the one whose time is up first. All numbers are integers,
//! so the order is the same everywhere.

use super::error::DataError;

/// Decimal places of the largest weight that count.
const PLACES: i32 = 12;

/// The most sources; the sums below stay in 128 bits.
const MAX_SOURCES: usize = 4096;

/// Shares of sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blend {
    weights: Vec<u64>,
    total: u64,
}

impl Blend {
    /// Shares in the ratio of `weights`, exact to twelve decimal places of the largest.
    ///
    /// # Errors
    /// [`DataError::Blend`] for weights that are not above zero, or far too small beside others.
    pub(super) fn new(weights: &[f64]) -> Result<Blend, DataError> {
        let refuse = |reason: String| Err(DataError::Blend(reason));
        if weights.is_empty() || weights.len() > MAX_SOURCES {
            return refuse(format!("{} sources; 1 to {MAX_SOURCES} can be", weights.len()));
        }
        let largest = weights.iter().copied().fold(0.0, f64::max);
        if !largest.is_finite() || weights.iter().any(|w| w.is_nan() || *w <= 0.0) {
            return refuse("weights are finite numbers above zero".to_owned());
        }
        // Powers of ten keep decimal fractions exact.
        #[allow(clippy::cast_possible_truncation, reason = "it is between -324 and 309")]
        let places = PLACES - 1 - largest.log10().floor() as i32;
        let scaled = |w: f64| {
            // In two steps: 10^places may be out of range where the product is not.
            let half = places / 2;
            (w * 10f64.powi(half) * 10f64.powi(places - half)).round()
        };
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is between 0 and about 10^12"
        )]
        let weights: Vec<u64> = weights.iter().map(|w| scaled(*w) as u64).collect();
        if weights.contains(&0) {
            return refuse("a weight is less than a trillionth of the largest".to_owned());
        }
        let common = weights.iter().fold(0, |a, b| gcd(a, *b));
        let weights: Vec<u64> = weights.iter().map(|w| w / common).collect();
        Ok(Blend { total: weights.iter().sum(), weights })
    }

    pub(super) fn sources(&self) -> usize {
        self.weights.len()
    }

    /// Chooses the source of the next sample, and counts it.
    pub(super) fn take(&self, taken: &mut [u64]) -> usize {
        let source = self.choose(taken);
        taken[source] += 1;
        source
    }

    fn choose(&self, taken: &[u64]) -> usize {
        let s = self.sources() as i128;
        if s == 1 {
            return 0;
        }
        let next = taken.iter().map(|n| i128::from(*n)).sum::<i128>() + 1;
        let (total, d) = (i128::from(self.total), 2 * s - 2);
        // Lags in units of 1 / (d · total).
        let lag =
            |i: usize| d * (i128::from(self.weights[i]) * next - i128::from(taken[i]) * total);
        let eligible = (0..self.sources()).filter(|i| lag(*i) >= total);
        let first = eligible.min_by(|a, b| {
            // The time until a lag of (d - 1) / d, times the total: cross-multiplied.
            let left = |i: usize| (d - 1) * total - lag(i);
            let weight = |i: usize| i128::from(self.weights[i]);
            (left(*a) * weight(*b)).cmp(&(left(*b) * weight(*a)))
        });
        // Counts that this order cannot lead to have no eligible source.
        first.or_else(|| (0..self.sources()).max_by_key(|i| lag(*i))).unwrap_or(0)
    }

    /// Whether counts are ones that this order leads to, as far as their ratio shows.
    pub(super) fn admits(&self, taken: &[u64]) -> bool {
        let sum: u128 = taken.iter().map(|n| u128::from(*n)).sum();
        let total = u128::from(self.total);
        taken.len() == self.sources()
            && sum < 1 << 63
            && taken.iter().zip(&self.weights).all(|(taken, weight)| {
                let (have, due) = (u128::from(*taken) * total, u128::from(*weight) * sum);
                have.abs_diff(due) < total || self.sources() == 1
            })
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(weights: &[f64], n: usize) -> Vec<usize> {
        let blend = Blend::new(weights).unwrap();
        let mut taken = vec![0; weights.len()];
        (0..n).map(|_| blend.take(&mut taken)).collect()
    }

    #[test]
    fn decimal_weights_are_exact() {
        let blend = |weights: &[f64]| Blend::new(weights).unwrap().weights;
        assert_eq!(blend(&[0.7, 0.2, 0.1]), [7, 2, 1]);
        assert_eq!(blend(&[3.0, 1.0]), [3, 1]);
        assert_eq!(blend(&[1e300, 5e299]), [2, 1]);
        assert_eq!(blend(&[1e-320, 1e-320]), [1, 1]);
        assert_eq!(order(&[1.0, 1.0], 4), [0, 1, 0, 1]);
        assert_eq!(order(&[5.0], 3), [0, 0, 0]);
    }

    #[test]
    fn senseless_weights_are_refused() {
        for weights in
            [&[][..], &[0.0], &[-1.0, 2.0], &[f64::NAN], &[f64::INFINITY, 1.0], &[1.0, 1e-20]]
        {
            assert!(Blend::new(weights).is_err(), "{weights:?}");
        }
    }

    #[test]
    fn counts_of_another_blend_are_noticed() {
        let blend = Blend::new(&[0.7, 0.3]).unwrap();
        assert!(blend.admits(&[7, 3]) && blend.admits(&[0, 0]));
        assert!(!blend.admits(&[5, 5]) && !blend.admits(&[7]) && !blend.admits(&[u64::MAX, 0]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_moment_is_within_one_sample_of_the_ratio(
            weights in prop::collection::vec(prop_oneof![1e-3..1e3, 0.01..1.0, 1.0..1.001], 1..12),
        ) {
            let blend = Blend::new(&weights).unwrap();
            let mut taken = vec![0u64; weights.len()];
            let total: f64 = weights.iter().sum();
            for n in 1..=2_000u32 {
                blend.take(&mut taken);
                for (taken, weight) in taken.iter().zip(&weights) {
                    let lag = weight / total * f64::from(n) - *taken as f64;
                    prop_assert!(lag.abs() < 1.0, "{lag} after {n} of {weights:?}");
                }
                prop_assert!(blend.admits(&taken));
            }
        }
    }
}
