//! Draws from heads of rows are those from whole rows, or none.

use proptest::{collection::vec, prelude::*};

use super::{
    reference::{logits, mask, params, tokens},
    *,
};

/// The head of a row: logits, and tokens.
fn best(logits: &[f32], k: usize) -> (Vec<f32>, Vec<i64>) {
    let top = top_logprobs(logits, 0.0, k);
    top.iter().map(|(token, logit)| (*logit, i64::from(*token))).unzip()
}

fn logsumexp(logits: &[f32]) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(*l - most).exp()).sum();
    #[allow(clippy::cast_possible_truncation, reason = "as models give it")]
    let log = sum.ln() as f32;
    most + log
}

/// What a head of `k` tokens tells.
fn from_head(sampler: &mut Sampler, k: usize, draw: Draw<'_>) -> Option<u32> {
    let (all, vocab_size) = (draw.logits, draw.logits.len());
    let (logits, tokens) = best(all, k);
    let logsumexp = logsumexp(all);
    let head = Head { logits: &logits, tokens: &tokens, logsumexp, vocab_size };
    sampler.sample_from_head(head, Draw { logits: &[], ..draw })
}

/// Rows as models give them, many tokens unlikely.
fn steep() -> impl Strategy<Value = Vec<f32>> {
    let row = |(n, slope, levels): (usize, f32, bool)| {
        let logit = move |i: usize| {
            let noise = (i as f32 * 12.9898).sin() * 3.0;
            let place = i.wrapping_mul(7919) % n;
            let logit = noise - slope * (place as f32 + 1.0).ln();
            if levels { (logit * 2.0).round() / 2.0 } else { logit }
        };
        (0..n).map(logit).collect()
    };
    (600..4000usize, 0.5..4.0f32, any::<bool>()).prop_map(row)
}

/// Settings that filters see, at temperatures about 1 as well.
fn settings() -> impl Strategy<Value = SamplingParams> {
    let temperature = prop_oneof![Just(1.0), 0.2..1.5, 0.95..1.05];
    (params(), proptest::option::of(temperature)).prop_map(|(params, temperature)| {
        let temperature = temperature.unwrap_or(params.temperature);
        SamplingParams { temperature, ..params }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_head_tells_what_the_row_does_or_nothing(
        params in settings(),
        logits in prop_oneof![logits(), steep()],
        k in prop_oneof![1..9usize, 1..300usize],
        prompt in tokens(0..20),
        output in tokens(0..20),
        banned in prop_oneof![Just(vec![]), tokens(0..4)],
        mask in mask(),
    ) {
        let mut sampler = Sampler::new(params, 0).unwrap();
        for sequence in 0..8 {
            sampler.sequence = sequence;
            let (logits, mask) = (&logits, mask.as_deref());
            let draw = Draw { logits, prompt: &prompt, output: &output, banned: &banned, mask };
            let told = from_head(&mut sampler, k, draw);
            if told.is_some() {
                prop_assert_eq!(told, sampler.sample(draw));
            }
        }
    }

    #[test]
    fn a_head_of_all_that_is_possible_tells_all(
        params in settings(),
        mut logits in logits(),
        rest in vec(Just(f32::NEG_INFINITY), 1..5),
    ) {
        logits.extend(rest);
        let mut sampler = sampler(SamplingParams { allowed_token_ids: None, ..params });
        let draw = Draw { logits: &logits, ..Draw::default() };
        let (told, wanted) = (from_head(&mut sampler, logits.len(), draw), sampler.sample(draw));
        // Where a draw falls between two tokens, as near as sums are known.
        prop_assert!(told == wanted || told.is_none());
        let SamplingParams { temperature, top_k, .. } = *sampler.params();
        if temperature == 0.0 || (1..logits.len()).contains(&top_k) {
            prop_assert_eq!(told, wanted);
        }
    }
}

/// The share of draws that heads of 256 tokens decide.
fn share(params: SamplingParams, logits: &[f32]) -> f64 {
    let sampler = sampler(params);
    let draws = 2000;
    let told = (0..draws).filter(|sequence| {
        let draw = Draw { logits, ..Draw::default() };
        from_head(&mut sampler.fork(*sequence), 256, draw).is_some()
    });
    told.count() as f64 / draws as f64
}

#[test]
fn heads_decide_most_draws() {
    // Zipf's law with an exponent of 1.5: the first 256 of 20,000 have 95 % of the probability.
    let logits: Vec<f32> =
        (0..20_000).map(|i| -1.5 * ((i * 7919 % 20_000) as f32 + 1.0).ln()).collect();
    let at = |temperature: f64| SamplingParams { temperature, ..hot() };
    assert!(share(greedy(), &logits) == 1.0);
    assert!(share(at(1.0), &logits) > 0.92);
    assert!(share(at(0.6), &logits) > 0.97);
    assert!(share(at(0.8), &logits) > 0.85);
    for params in [
        SamplingParams { top_k: 20, top_p: 0.8, ..at(0.7) },
        SamplingParams { top_k: 256, ..at(1.7) },
        SamplingParams { min_p: 0.05, ..at(1.0) },
        SamplingParams { top_p: 0.9, ..at(1.0) },
    ] {
        assert!(share(params, &logits) > 0.99);
    }
}

#[test]
fn a_head_of_a_row_that_is_no_number_tells_nothing() {
    let row = |logit: f32| {
        let mut logits: Vec<f32> = (0..40u8).map(f32::from).collect();
        logits[7] = logit;
        logits
    };
    for logit in [f32::NAN, f32::INFINITY] {
        let logits = row(logit);
        let draw = Draw { logits: &logits, ..Draw::default() };
        assert_eq!(from_head(&mut sampler(greedy()), 9, draw), None);
    }
    let logits = row(0.5);
    let draw = Draw { logits: &logits, ..Draw::default() };
    assert_eq!(from_head(&mut sampler(greedy()), 9, draw), Some(39));
}
