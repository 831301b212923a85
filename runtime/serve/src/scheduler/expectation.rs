//! How long answers are, compared with what is asked for.

/// Share of `max_tokens` that answers have used lately, with its spread: exponentially weighted
/// averages. At first answers are taken to be as long as they may.
#[derive(Debug)]
pub(super) struct Expectation {
    mean: f64,
    variance: f64,
}

/// Weight of the newest answer.
const WEIGHT: f64 = 0.05;

impl Default for Expectation {
    fn default() -> Expectation {
        Expectation { mean: 1.0, variance: 0.0 }
    }
}

impl Expectation {
    /// An answer has ended.
    pub(super) fn learn(&mut self, tokens: usize, max_tokens: usize) {
        if max_tokens == 0 {
            return;
        }
        let off = tokens as f64 / max_tokens as f64 - self.mean;
        self.mean += WEIGHT * off;
        self.variance = (1.0 - WEIGHT) * (self.variance + WEIGHT * off * off);
    }

    /// Tokens still to come of an answer that has so many of at most so many.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below max_tokens")]
    pub(super) fn rest(&self, tokens: usize, max_tokens: usize) -> usize {
        let share = (self.mean + self.variance.sqrt()).clamp(0.0, 1.0);
        let most = max_tokens.saturating_sub(tokens);
        let expected = (share * max_tokens as f64).ceil() as usize;
        match expected.checked_sub(tokens) {
            Some(rest) if rest > 0 => rest.min(most),
            // It is longer than expected: what is left shrinks in the same proportion.
            _ => (share * most as f64).ceil() as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_expected_to_be_as_long_as_before() {
        let mut expectation = Expectation::default();
        assert_eq!((expectation.rest(0, 100), expectation.rest(30, 100)), (100, 70));
        for _ in 0..200 {
            expectation.learn(20, 100);
        }
        let rest = expectation.rest(0, 1000);
        assert!((200..230).contains(&rest), "{rest}");
        assert!((10..30).contains(&expectation.rest(25, 100)));
        assert_eq!(expectation.rest(100, 100), 0);
        expectation.learn(0, 0);
        for i in 0..200 {
            expectation.learn(if i % 2 == 0 { 10 } else { 90 }, 100);
        }
        assert!(expectation.rest(0, 100) > 80, "the spread counts");
    }
}
