//! Changes of the logits of single tokens: penalties for what occurred, and biases.
//!
//! They touch those tokens alone, so they cost nothing in the size of the vocabulary. None of them
//! makes a token impossible: what would leave the range of finite numbers stops at its end.

use super::{Draw, SamplingParams};

/// Logits by token.
pub(super) trait Table {
    /// The logit of a token, unless it is none of the vocabulary or impossible.
    fn logit(&mut self, token: u32) -> Option<&mut f32>;
}

impl Table for [f32] {
    fn logit(&mut self, token: u32) -> Option<&mut f32> {
        self.get_mut(token as usize)
    }
}

/// The tokens of a sequence, counted, and kept up to date as it grows.
#[derive(Clone, Debug, Default)]
pub(super) struct Occurrences {
    prompt: Vec<u32>,
    output: Vec<u32>,
    /// By token.
    counts: Vec<Count>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Count {
    token: u32,
    in_prompt: bool,
    in_output: u32,
}

impl Occurrences {
    /// Counts these tokens, whatever was counted before; what the output has more than the last
    /// time is all that is counted anew.
    pub(super) fn follow(&mut self, prompt: &[u32], output: &[u32]) {
        if self.prompt != prompt {
            self.prompt = prompt.to_vec();
            self.output.clear();
            self.counts.clear();
            let count = |token: &u32| Count { token: *token, in_prompt: true, in_output: 0 };
            self.counts.extend(prompt.iter().map(count));
            self.counts.sort_unstable_by_key(|count| count.token);
            self.counts.dedup();
        }
        if !output.starts_with(&self.output) {
            self.output.clear();
            self.counts.retain(|count| count.in_prompt);
            self.counts.iter_mut().for_each(|count| count.in_output = 0);
        }
        let counted = self.output.len();
        for token in &output[counted..] {
            match self.counts.binary_search_by_key(token, |count| count.token) {
                Ok(index) => self.counts[index].in_output += 1,
                Err(index) => {
                    let count = Count { token: *token, in_prompt: false, in_output: 1 };
                    self.counts.insert(index, count);
                }
            }
        }
        self.output.extend_from_slice(&output[counted..]);
    }

    /// Counts the tokens of a draw that its parameters ask for.
    pub(super) fn follow_draw(&mut self, params: &SamplingParams, draw: Draw<'_>) {
        let repeats = params.repetition_penalty != 1.0;
        let prompt = if repeats { draw.prompt } else { &[] };
        let output = if repeats || params.penalises_output() { draw.output } else { &[] };
        self.follow(prompt, output);
    }

    /// Repetition penalty, then biases, then presence and frequency penalty: a larger logit never
    /// becomes the smaller one.
    pub(super) fn change(&self, params: &SamplingParams, logits: &mut (impl Table + ?Sized)) {
        let SamplingParams { repetition_penalty, presence_penalty, frequency_penalty, .. } = params;
        if *repetition_penalty != 1.0 {
            for count in &self.counts {
                change(logits, count.token, |logit| {
                    let is_negative = logit < 0.0;
                    if is_negative {
                        logit * repetition_penalty
                    } else {
                        logit / repetition_penalty
                    }
                });
            }
        }
        for (token, bias) in &params.logit_bias {
            change(logits, *token, |logit| logit + bias);
        }
        if params.penalises_output() {
            for count in self.counts.iter().filter(|count| count.in_output > 0) {
                let penalty = presence_penalty + frequency_penalty * f64::from(count.in_output);
                change(logits, count.token, |logit| logit - penalty);
            }
        }
    }
}

/// Changes a token's logit if there is a finite one.
#[allow(clippy::cast_possible_truncation, reason = "logits are f32")]
fn change(logits: &mut (impl Table + ?Sized), token: u32, to: impl FnOnce(f64) -> f64) {
    if let Some(logit) = logits.logit(token).filter(|logit| logit.is_finite()) {
        *logit = to(f64::from(*logit)).clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(
        params: &SamplingParams,
        prompt: &[u32],
        output: &[u32],
        logits: &[f32],
    ) -> Vec<f32> {
        let mut occurrences = Occurrences::default();
        occurrences.follow(prompt, output);
        let mut logits = logits.to_vec();
        occurrences.change(params, &mut logits[..]);
        logits
    }

    /// What transformers' `RepetitionPenaltyLogitsProcessor` gives for these.
    #[test]
    fn tokens_that_occurred_are_less_likely_once() {
        let params = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::default() };
        let logits = [4.0, 3.0, -1.0, 6.0];
        assert_eq!(changed(&params, &[], &[], &logits), logits);
        assert_eq!(changed(&params, &[0, 2, 0], &[3, 3], &logits), [2.0, 3.0, -2.0, 3.0]);
        assert_eq!(changed(&params, &[0, 99], &[0, 0], &logits), [2.0, 3.0, -1.0, 6.0]);
    }

    #[test]
    fn presence_and_frequency_count_the_output() {
        let presence = SamplingParams { presence_penalty: 0.5, ..SamplingParams::default() };
        let frequency = SamplingParams { frequency_penalty: -0.25, ..SamplingParams::default() };
        let both = SamplingParams { presence_penalty: 0.5, ..frequency.clone() };
        let logits = [1.0, 1.0, 1.0];
        assert_eq!(changed(&presence, &[2], &[0, 1, 0, 0, 7], &logits), [0.5, 0.5, 1.0]);
        assert_eq!(changed(&frequency, &[2], &[0, 1, 0, 0, 7], &logits), [1.75, 1.25, 1.0]);
        assert_eq!(changed(&both, &[2], &[0, 1, 0, 0, 7], &logits), [1.25, 0.75, 1.0]);
    }

    #[test]
    fn repetition_comes_before_bias() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            presence_penalty: 1.0,
            logit_bias: vec![(0, 6.0), (1, -6.0), (2, 1.0), (2, 2.0), (9, 1.0)],
            ..SamplingParams::default()
        };
        // Token 0: 4 / 2 + 6 - 1; token 1: 4 / 2 - 6, where bias first would give -2 * 2.
        assert_eq!(changed(&params, &[1], &[0], &[4.0, 4.0, 4.0]), [7.0, -4.0, 7.0]);
    }

    #[test]
    fn changed_logits_stay_finite_and_others_stay() {
        let params = SamplingParams {
            repetition_penalty: 1e300,
            logit_bias: vec![(0, -100.0), (3, -100.0), (4, 100.0)],
            ..SamplingParams::default()
        };
        let (inf, minus_inf) = (f32::INFINITY, f32::NEG_INFINITY);
        let logits = [-1.0, 1.0, 0.0, inf, minus_inf];
        let want = [f32::MIN, 0.0, 0.0, inf, minus_inf];
        assert_eq!(changed(&params, &[0, 1, 2, 3, 4], &[], &logits), want);
        let tiny = SamplingParams { repetition_penalty: 1e-300, ..SamplingParams::default() };
        assert_eq!(changed(&tiny, &[0, 1], &[], &[-1.0, 1.0]), [0.0, f32::MAX]);
    }

    #[test]
    fn counts_follow_any_history() {
        let histories: [(&[u32], &[u32]); 9] = [
            (&[5, 1], &[]),
            (&[5, 1], &[5, 9, 5]),
            (&[5, 1], &[5, 9, 5, 3]),
            (&[5, 1], &[5, 9]),
            (&[5, 1], &[5, 8, 1]),
            (&[2, 1], &[5, 8, 1]),
            (&[5, 1, 5], &[5, 8, 1]),
            (&[], &[5, 8, 1]),
            (&[], &[]),
        ];
        let mut grown = Occurrences::default();
        for (prompt, output) in histories {
            grown.follow(prompt, output);
            let mut fresh = Occurrences::default();
            fresh.follow(prompt, output);
            assert_eq!(grown.counts, fresh.counts, "{prompt:?} {output:?}");
        }
        grown.follow(&[5, 1], &[5, 9, 5]);
        let count = |token, in_prompt, in_output| Count { token, in_prompt, in_output };
        assert_eq!(grown.counts, [count(1, true, 0), count(5, true, 2), count(9, false, 1)]);
    }
}
