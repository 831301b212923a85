//! The sampler at random against a reference that is dense, slow and literal.
//!
//! Logits, biases and penalties are multiples of 1/8, so that changed logits are exact and ties
//! frequent. Weights are not: where a limit or a draw falls within rounding of a weight, either
//! side is right.

use proptest::{collection::vec, prelude::*};

use super::*;

const ROUNDING: f64 = 1e-5;

/// The token that a draw gives, with limits and random number off by these.
fn reference(params: &SamplingParams, draw: Draw<'_>, uniform: f64, off: [f64; 3]) -> Option<u32> {
    let occurs = |tokens: &[u32], token: u32| tokens.iter().filter(|t| **t == token).count();
    let is_possible = |token: u32| {
        let bit = |mask: &[u32]| {
            (0..32 * mask.len())
                .any(|bit| bit == token as usize && mask[bit / 32] & (1 << (bit % 32)) != 0)
        };
        let ends_word = |word: &Vec<u32>| [draw.output, &[token]].concat().ends_with(word);
        params.allowed_token_ids.as_ref().is_none_or(|allowed| allowed.contains(&token))
            && draw.mask.is_none_or(bit)
            && !draw.banned.contains(&token)
            && !params.bad_words.iter().any(ends_word)
    };
    let changed = |token: u32| {
        let mut logit = f64::from(draw.logits[token as usize]);
        if occurs(draw.prompt, token) + occurs(draw.output, token) > 0 {
            let penalty = params.repetition_penalty;
            logit = if logit < 0.0 { logit * penalty } else { logit / penalty };
        }
        for (biased, bias) in &params.logit_bias {
            logit += if *biased == token { *bias } else { 0.0 };
        }
        let count = occurs(draw.output, token);
        logit -= params.frequency_penalty * count as f64;
        logit - if count > 0 { params.presence_penalty } else { 0.0 }
    };
    let all = 0..u32::try_from(draw.logits.len()).unwrap();
    let mut tokens: Vec<(u32, f64)> = all
        .filter(|token| is_possible(*token))
        .map(|token| (token, changed(token)))
        .filter(|(_, logit)| *logit > f64::NEG_INFINITY)
        .collect();
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let best = *tokens.first()?;
    if params.temperature == 0.0 {
        return Some(best.0);
    }
    let weight = |(_, logit): &(u32, f64)| ((logit - best.1) / params.temperature).exp();
    if params.top_k > 0 {
        tokens.truncate(params.top_k);
    }
    if params.top_p < 1.0 {
        let wanted = params.top_p * tokens.iter().map(weight).sum::<f64>() * (1.0 + off[0]);
        let sum = |n: usize| tokens[..n].iter().map(weight).sum::<f64>();
        let size = (1..tokens.len()).find(|n| sum(*n) >= wanted).unwrap_or(tokens.len());
        tokens.truncate(size);
    }
    tokens.retain(|token| weight(token) >= params.min_p * (1.0 + off[1]));
    let place = (uniform + off[2]).clamp(0.0, 1.0) * tokens.iter().map(weight).sum::<f64>();
    let sum = |n: usize| tokens[..n].iter().map(weight).sum::<f64>();
    let index = (1..tokens.len()).find(|n| sum(*n) > place).unwrap_or(tokens.len()) - 1;
    Some(tokens[index].0)
}

/// The tokens that rounding may lead to.
fn right(params: &SamplingParams, draw: Draw<'_>, uniform: f64) -> Vec<Option<u32>> {
    let offs = [0.0, -ROUNDING, ROUNDING];
    let mut right = Vec::new();
    for a in offs {
        for b in offs {
            right.extend(offs.map(|c| reference(params, draw, uniform, [a, b, c])));
        }
    }
    right
}

fn eighths(range: std::ops::RangeInclusive<i32>) -> impl Strategy<Value = f64> {
    range.prop_map(|n| f64::from(n) / 8.0)
}

pub(super) fn logits() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        15 => (-60..60i16).prop_map(|n| f32::from(n) / 8.0),
        1 => Just(f32::NEG_INFINITY),
    ];
    vec(logit, 1..600)
}

/// Tokens that are often the same, and some beyond the vocabulary.
pub(super) fn tokens(size: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u32>> {
    vec(prop_oneof![0..8u32, 0..700u32], size)
}

prop_compose! {
    fn changes()(
        repetition_penalty in prop_oneof![Just(1.0), Just(0.5), Just(2.0), Just(4.0)],
        presence_penalty in prop_oneof![Just(0.0), eighths(-16..=16)],
        frequency_penalty in prop_oneof![Just(0.0), eighths(-16..=16)],
        logit_bias in vec((0..9u32, eighths(-800..=800)), 0..3),
        bad_words in vec(vec(0..9u32, 1..4), 0..4),
        allowed_token_ids in prop_oneof![4 => Just(None), 1 => tokens(1..9).prop_map(Some)],
    ) -> SamplingParams {
        SamplingParams {
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            bad_words,
            allowed_token_ids,
            ..SamplingParams::default()
        }
    }
}

prop_compose! {
    pub(super) fn params()(
        changes in prop_oneof![Just(SamplingParams::default()), changes()],
        temperature in prop_oneof![1 => Just(0.0), 3 => 0.1..3.0],
        top_k in prop_oneof![Just(0), 1..9usize, 1..700usize],
        top_p in prop_oneof![Just(1.0), 0.01..1.0],
        min_p in prop_oneof![Just(0.0), 0.0..0.3],
        seed: u64,
    ) -> SamplingParams {
        SamplingParams { temperature, top_k, top_p, min_p, seed: Some(seed), ..changes }
    }
}

/// None, or a mask that may be longer or shorter than the vocabulary.
pub(super) fn mask() -> impl Strategy<Value = Option<Vec<u32>>> {
    let word = prop_oneof![Just(0), Just(u32::MAX), any::<u32>()];
    prop_oneof![2 => Just(None), 1 => vec(word, 0..22).prop_map(Some)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn draws_are_those_of_the_reference(
        params in params(),
        logits in logits(),
        prompt in tokens(0..20),
        mut output in tokens(0..20),
        banned in prop_oneof![Just(vec![]), tokens(0..4)],
        mask in mask(),
        sequence: u64,
    ) {
        let mut sampler = Sampler::new(params.clone(), sequence).unwrap();
        for step in 0..4 {
            let (logits, mask) = (&logits, mask.as_deref());
            let draw = Draw { logits, prompt: &prompt, output: &output, banned: &banned, mask };
            let position = (prompt.len() + output.len()) as u64;
            let got = sampler.sample(draw);
            let right = right(&params, draw, uniform(sampler.seed(), sequence, position));
            prop_assert!(right.contains(&got), "step {step}: {got:?} is none of {right:?}");
            let Some(token) = got else { break };
            if step == 2 {
                output.clear();
            }
            output.push(token);
        }
    }

    #[test]
    fn log_probabilities_and_ranks_are_those_of_a_sort(logits in logits(), k in 0..30usize) {
        let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|l| l - 2.0)).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        prop_assert_eq!(&top_logprobs(&logits, 2.0, k), &all[..k.min(all.len())]);
        for (place, (token, _)) in all.iter().enumerate() {
            prop_assert_eq!(rank(&logits, *token), place + 1);
        }
    }
}
