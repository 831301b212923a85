//! What a request may ask of the sampler, with defaults and ranges.

use serde::{Deserialize, Serialize};
use text::GenerationDefaults;

use crate::ServeError;

/// How the next token is chosen; greedily by default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Divides positive logits of tokens in prompt or output, and multiplies negative ones, once
    /// however often they occurred; 1 is none. Keskar et al. 2019, arXiv:1909.05858.
    pub repetition_penalty: f64,
    /// Taken once from the logits of tokens in the output, -2 to 2; 0 is none.
    pub presence_penalty: f64,
    /// Taken from the logit of a token for each time that it is in the output, -2 to 2; 0 is none.
    pub frequency_penalty: f64,
    /// Added to the logits of these tokens, -100 to 100; biases of one token add up.
    pub logit_bias: Vec<(u32, f64)>,
    /// Sequences of tokens that the output does not hold: the last token of each is impossible
    /// after the others.
    pub bad_words: Vec<Vec<u32>>,
    /// The only tokens that are possible; all of them if there is no list.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Keeps so many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities reach this sum; 1 keeps all. Holtzman et al.
    /// 2020, arXiv:1904.09751.
    pub top_p: f64,
    /// Keeps tokens with at least this share of the most likely one's probability; 0 keeps all.
    /// Nguyen et al. 2024, arXiv:2407.01082.
    pub min_p: f64,
    /// The seed; a new one each time if there is none.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            bad_words: Vec::new(),
            allowed_token_ids: None,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: None,
        }
    }
}

impl SamplingParams {
    /// What the model's makers recommend, greedy unless they want sampling.
    pub fn recommended(defaults: &GenerationDefaults) -> SamplingParams {
        let repetition_penalty = defaults.repetition_penalty.unwrap_or(1.0);
        if defaults.do_sample != Some(true) {
            return SamplingParams { repetition_penalty, ..SamplingParams::default() };
        }
        SamplingParams {
            repetition_penalty,
            temperature: defaults.temperature.unwrap_or(1.0),
            top_k: defaults.top_k.unwrap_or(0),
            top_p: defaults.top_p.filter(|p| *p > 0.0).unwrap_or(1.0),
            min_p: defaults.min_p.unwrap_or(0.0),
            ..SamplingParams::default()
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`ServeError::Request`], which names the field.
    pub fn check(&self) -> Result<(), ServeError> {
        let SamplingParams { temperature, repetition_penalty, top_p, min_p, .. } = *self;
        let refuse = |field, value: f64, range| {
            Err(ServeError::request(field, format!("is {value}, and must be {range}")))
        };
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return refuse("temperature", temperature, "a number of at least 0");
        }
        if !(repetition_penalty > 0.0 && repetition_penalty.is_finite()) {
            return refuse("repetition_penalty", repetition_penalty, "a number above 0");
        }
        for (field, penalty) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            if !(-2.0..=2.0).contains(&penalty) {
                return refuse(field, penalty, "between -2 and 2");
            }
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return refuse("top_p", top_p, "above 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&min_p) {
            return refuse("min_p", min_p, "between 0 and 1");
        }
        let is_outside = |(_, bias): &&(u32, f64)| !(-100.0..=100.0).contains(bias);
        if let Some((token, bias)) = self.logit_bias.iter().find(is_outside) {
            let reason = format!("of token {token} is {bias}, and must be between -100 and 100");
            return Err(ServeError::request("logit_bias", reason));
        }
        if let Some(index) = self.bad_words.iter().position(Vec::is_empty) {
            let reason = format!("word {index} is empty, and must have a token at least");
            return Err(ServeError::request("bad_words", reason));
        }
        if self.allowed_token_ids.as_ref().is_some_and(Vec::is_empty) {
            let reason = "is empty, and must have a token at least, or be left out";
            return Err(ServeError::request("allowed_token_ids", reason));
        }
        Ok(())
    }

    /// Checks that every token is in a vocabulary of this size.
    ///
    /// # Errors
    /// [`ServeError::Request`], which names the field.
    pub fn check_vocabulary(&self, vocab_size: usize) -> Result<(), ServeError> {
        let biased = self.logit_bias.iter().map(|(token, _)| ("logit_bias", *token));
        let bad = self.bad_words.iter().flatten().map(|token| ("bad_words", *token));
        let allowed = self.allowed_token_ids.iter().flatten();
        let allowed = allowed.map(|token| ("allowed_token_ids", *token));
        let is_unknown = |(_, token): &(_, u32)| *token as usize >= vocab_size;
        if let Some((field, token)) = biased.chain(bad).chain(allowed).find(is_unknown) {
            let reason =
                format!("has token {token}, and the vocabulary has ids below {vocab_size}");
            return Err(ServeError::request(field, reason));
        }
        Ok(())
    }

    /// Whether presence or frequency of tokens in the output counts.
    pub(super) fn penalises_output(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut SamplingParams)) -> String {
        let mut params = SamplingParams::default();
        change(&mut params);
        params.check().unwrap_err().to_string()
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for value in [-0.1, f64::NAN, f64::INFINITY] {
            assert!(refused(|p| p.temperature = value).starts_with("temperature: is"));
        }
        for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(
                refused(|p| p.repetition_penalty = value).starts_with("repetition_penalty: is")
            );
        }
        for value in [-2.1, 2.1, f64::NAN] {
            assert!(refused(|p| p.presence_penalty = value).starts_with("presence_penalty: is"));
            assert!(refused(|p| p.frequency_penalty = value).starts_with("frequency_penalty: is"));
        }
        for value in [0.0, 1.01, f64::NAN] {
            assert!(refused(|p| p.top_p = value).starts_with("top_p: is"));
        }
        assert_eq!(refused(|p| p.min_p = -1.0), "min_p: is -1, and must be between 0 and 1");
        for value in [-100.5, 101.0, f64::NAN] {
            let error = refused(|p| p.logit_bias = vec![(3, 1.0), (4, value)]);
            assert!(error.starts_with("logit_bias: of token 4 is"), "{error}");
        }
        let error = refused(|p| p.bad_words = vec![vec![1], vec![]]);
        assert!(error.starts_with("bad_words: word 1 is empty"), "{error}");
        let error = refused(|p| p.allowed_token_ids = Some(vec![]));
        assert!(error.starts_with("allowed_token_ids: is empty"), "{error}");
    }

    #[test]
    fn the_ends_of_ranges_are_taken() {
        for end in [-1.0, 1.0] {
            let params = SamplingParams {
                presence_penalty: 2.0 * end,
                frequency_penalty: 2.0 * end,
                logit_bias: vec![(0, 100.0 * end)],
                bad_words: vec![vec![0]],
                allowed_token_ids: Some(vec![0]),
                top_p: 1.0,
                min_p: 1.0,
                ..SamplingParams::default()
            };
            params.check().unwrap();
        }
    }

    #[test]
    fn tokens_must_be_in_the_vocabulary() {
        let all = |token| SamplingParams {
            logit_bias: vec![(1, 1.0), (token, 1.0)],
            bad_words: vec![vec![1], vec![2, token]],
            allowed_token_ids: Some(vec![1, token]),
            ..SamplingParams::default()
        };
        all(9).check_vocabulary(10).unwrap();
        let mut params = all(10);
        let mut refused = |change: fn(&mut SamplingParams)| {
            let error = params.check_vocabulary(10).unwrap_err().to_string();
            change(&mut params);
            error
        };
        let reason = "has token 10, and the vocabulary has ids below 10";
        assert_eq!(refused(|p| p.logit_bias.clear()), format!("logit_bias: {reason}"));
        assert_eq!(refused(|p| p.bad_words.clear()), format!("bad_words: {reason}"));
        assert_eq!(refused(|_| ()), format!("allowed_token_ids: {reason}"));
    }

    #[test]
    fn makers_are_heard() {
        let makers = GenerationDefaults { repetition_penalty: Some(1.3), ..Default::default() };
        let recommended = SamplingParams::recommended(&makers);
        assert_eq!((recommended.repetition_penalty, recommended.temperature), (1.3, 0.0));
        let makers = GenerationDefaults { do_sample: Some(true), top_k: Some(7), ..makers };
        let recommended = SamplingParams::recommended(&makers);
        assert_eq!((recommended.top_k, recommended.temperature), (7, 1.0));
    }
}
