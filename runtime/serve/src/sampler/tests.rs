//! The sampler as a whole: parameter by parameter, their order, extremes, and all of it at random
//! against a reference.

mod head;
mod reference;

use super::*;

fn sampler(params: SamplingParams) -> Sampler {
    Sampler::new(SamplingParams { seed: Some(5), ..params }, 0).unwrap()
}

fn greedy() -> SamplingParams {
    SamplingParams::default()
}

fn hot() -> SamplingParams {
    SamplingParams { temperature: 1.0, ..greedy() }
}

/// Draws once, after a history.
fn after(params: &SamplingParams, logits: &[f32], prompt: &[u32], output: &[u32]) -> Option<u32> {
    sampler(params.clone()).sample(Draw { logits, prompt, output, ..Draw::default() })
}

/// Draws once, at the start.
fn first(params: &SamplingParams, logits: &[f32]) -> Option<u32> {
    after(params, logits, &[], &[])
}

/// Shares of each token in many draws.
fn assert_shares(params: SamplingParams, logits: &[f32], want: &[f64]) {
    let sampler = sampler(params);
    let draws = 20_000;
    let mut got = vec![0.0; logits.len()];
    for sequence in 0..draws {
        let token = sampler.fork(sequence).sample(Draw { logits, ..Draw::default() });
        got[token.unwrap() as usize] += 1.0 / draws as f64;
    }
    let near = |(a, b): (&f64, &f64)| if *b == 0.0 { *a == 0.0 } else { (a - b).abs() < 0.017 };
    assert!(got.iter().zip(want).all(near), "{got:?} instead of {want:?}");
}

/// Probabilities 0.4, 0.1, 0.2, 0.3.
fn logits() -> Vec<f32> {
    [0.4f32, 0.1, 0.2, 0.3].iter().map(|p| p.ln() + 3.0).collect()
}

#[test]
fn draws_follow_the_distribution() {
    assert_shares(hot(), &logits(), &[0.4, 0.1, 0.2, 0.3]);
    let half = SamplingParams { temperature: 0.5, ..hot() };
    assert_shares(half, &logits(), &[16.0 / 30.0, 1.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0]);
}

#[test]
fn draws_reach_every_part_of_a_vocabulary() {
    let mut many = vec![f32::NEG_INFINITY; 1000];
    let mut want = vec![0.0; 1000];
    for (token, (logit, share)) in
        [1, 200, 201, 999].into_iter().zip(logits().iter().zip([0.4, 0.1, 0.2, 0.3]))
    {
        (many[token], want[token]) = (*logit, share);
    }
    assert_shares(hot(), &many, &want);
}

#[test]
fn filters_keep_what_they_say() {
    let top_k = SamplingParams { top_k: 2, ..hot() };
    assert_shares(top_k, &logits(), &[4.0 / 7.0, 0.0, 0.0, 3.0 / 7.0]);
    let top_k = SamplingParams { top_k: 3, ..hot() };
    assert_shares(top_k, &logits(), &[4.0 / 9.0, 0.0, 2.0 / 9.0, 3.0 / 9.0]);
    let top_p = SamplingParams { top_p: 0.65, ..hot() };
    assert_shares(top_p, &logits(), &[4.0 / 7.0, 0.0, 0.0, 3.0 / 7.0]);
    let top_p = SamplingParams { top_p: 0.75, ..hot() };
    assert_shares(top_p, &logits(), &[4.0 / 9.0, 0.0, 2.0 / 9.0, 3.0 / 9.0]);
    let min_p = SamplingParams { min_p: 0.45, ..hot() };
    assert_shares(min_p, &logits(), &[4.0 / 9.0, 0.0, 2.0 / 9.0, 3.0 / 9.0]);
}

#[test]
fn each_filter_sees_what_the_one_before_has_left() {
    // Of what top k leaves, 4/7 are token 0's.
    let both = SamplingParams { top_k: 2, top_p: 0.56, ..hot() };
    assert_shares(both, &logits(), &[1.0, 0.0, 0.0, 0.0]);
    // Were min p first, 4/9 + 3/9 would reach 0.72, and token 2 be lost.
    let both = SamplingParams { top_p: 0.72, min_p: 0.45, ..hot() };
    assert_shares(both, &logits(), &[4.0 / 9.0, 0.0, 2.0 / 9.0, 3.0 / 9.0]);
    // At temperature 1/2 the shares are 16, 1, 4 and 9 of 30.
    let cold = SamplingParams { temperature: 0.5, top_p: 0.8, ..hot() };
    assert_shares(cold, &logits(), &[16.0 / 25.0, 0.0, 0.0, 9.0 / 25.0]);
}

#[test]
fn greedy_takes_the_first_of_the_best() {
    assert_eq!(first(&greedy(), &[1.0, 3.0, 3.0]), Some(1));
    assert_eq!(first(&greedy(), &[f32::NEG_INFINITY, -1.0]), Some(1));
    let mut many = vec![0.0; 1000];
    (many[990], many[500]) = (1.0, 1.0);
    assert_eq!(first(&greedy(), &many), Some(500));
}

#[test]
fn banned_and_masked_tokens_are_not_drawn() {
    let logits = &[1.0, 4.0, 3.0, 2.0];
    let allowed = SamplingParams { allowed_token_ids: Some(vec![0, 2, 3]), ..greedy() };
    let mut sampler = sampler(allowed);
    let mut drawn = |banned, mask| sampler.sample(Draw { logits, banned, mask, ..Draw::default() });
    assert_eq!(drawn(&[], None), Some(2));
    assert_eq!(drawn(&[2, 77], None), Some(3));
    assert_eq!(drawn(&[], Some(&[0b1011])), Some(3));
    assert_eq!(drawn(&[3], Some(&[0b1011])), Some(0));
    assert_eq!(drawn(&[], Some(&[0b0010])), None);
    assert_eq!(drawn(&[], Some(&[])), None);
}

#[test]
fn bad_words_are_kept_out_of_the_output() {
    let params = SamplingParams { bad_words: vec![vec![2], vec![0, 1, 3]], ..greedy() };
    let logits = &[1.0, 2.0, 4.0, 3.0];
    assert_eq!(after(&params, logits, &[], &[]), Some(3));
    assert_eq!(after(&params, logits, &[9], &[0, 1]), Some(1));
    assert_eq!(after(&params, logits, &[0, 1], &[]), Some(3));
    assert_eq!(after(&params, logits, &[0], &[1]), Some(3));
}

#[test]
fn what_is_impossible_stays_so_whatever_the_bias() {
    let params = SamplingParams {
        allowed_token_ids: Some(vec![0, 1, 2]),
        bad_words: vec![vec![1]],
        logit_bias: vec![(1, 100.0), (2, 100.0), (3, 100.0), (4, 100.0)],
        ..greedy()
    };
    let logits = &[1.0, 1.0, f32::NEG_INFINITY, 1.0, 1.0];
    assert_eq!(first(&params, logits), Some(0));
    let biased = SamplingParams { allowed_token_ids: None, ..params };
    assert_eq!(first(&biased, logits), Some(3));
}

#[test]
fn biases_of_a_hundred_decide_but_do_not_forbid() {
    let logits = &[9.0, 1.0];
    let bias = |bias: &[(u32, f64)]| SamplingParams { logit_bias: bias.to_vec(), ..hot() };
    assert_eq!(first(&bias(&[(1, 100.0)]), logits), Some(1));
    assert_eq!(first(&bias(&[(0, -100.0)]), logits), Some(1));
    assert_eq!(first(&bias(&[(0, -100.0)]), &[9.0]), Some(0));
    // 9 - 2 · ln 3 leaves odds of 1 to 9 where they were equal.
    let odds = -2.0 * 3f64.ln();
    assert_shares(bias(&[(0, odds / 2.0), (0, odds / 2.0)]), &[9.0, 9.0], &[0.1, 0.9]);
}

#[test]
fn penalties_depend_on_the_side_of_the_prompts_end() {
    let logits = &[4.0, 3.5, 3.25];
    let repetition = SamplingParams { repetition_penalty: 2.0, ..greedy() };
    assert_eq!(after(&repetition, logits, &[], &[]), Some(0));
    assert_eq!(after(&repetition, logits, &[0], &[1]), Some(2));
    let presence = SamplingParams { presence_penalty: 2.0, ..greedy() };
    assert_eq!(after(&presence, logits, &[0, 1], &[]), Some(0));
    assert_eq!(after(&presence, logits, &[1], &[0, 0, 0]), Some(1));
    // Token 0 comes to 4 - 0.25 · 3, token 1 to 3.5 - 0.25.
    let frequency = SamplingParams { frequency_penalty: 0.25, ..greedy() };
    assert_eq!(after(&frequency, logits, &[2], &[0, 1, 0, 0]), Some(0));
    assert_eq!(after(&frequency, logits, &[2], &[0, 1, 0, 0, 0]), Some(1));
    assert_eq!(after(&frequency, logits, &[2], &[0, 1, 0, 1, 0]), Some(0));
}

#[test]
fn penalties_come_before_temperature_and_filters() {
    // ln 4 taken from the best leaves 0.1, 0.1, 0.2, 0.3.
    let lowered = SamplingParams { logit_bias: vec![(0, -(4f64.ln()))], ..hot() };
    assert_shares(lowered.clone(), &logits(), &[1.0 / 7.0, 1.0 / 7.0, 2.0 / 7.0, 3.0 / 7.0]);
    let top_k = SamplingParams { top_k: 2, ..lowered.clone() };
    assert_shares(top_k, &logits(), &[0.0, 0.0, 0.4, 0.6]);
    let cold = SamplingParams { temperature: 0.5, ..lowered };
    assert_shares(cold, &logits(), &[1.0 / 15.0, 1.0 / 15.0, 4.0 / 15.0, 9.0 / 15.0]);
}

#[test]
fn nothing_is_drawn_from_nothing() {
    for params in [greedy(), hot(), SamplingParams { top_k: 3, top_p: 0.5, ..hot() }] {
        assert_eq!(first(&params, &[]), None);
        assert_eq!(first(&params, &[1.0, f32::NAN]), None);
        assert_eq!(first(&params, &[f32::NEG_INFINITY]), None);
        assert_eq!(first(&params, &[1.0, f32::INFINITY]), Some(1));
        let mut sampler = sampler(params);
        let mut banned =
            |logits, banned| sampler.sample(Draw { logits, banned, ..Draw::default() });
        assert_eq!(banned(&[1.0, 2.0], &[0, 1]), None);
        assert_eq!(banned(&[1.0, 2.0, 3.0], &[0, 2]), Some(1));
        // NaN shows a broken model even where no token can be drawn.
        assert_eq!(banned(&[1.0, f32::NAN], &[1]), None);
    }
}

#[test]
fn extremes_are_limits() {
    let cold = SamplingParams { temperature: f64::MIN_POSITIVE, ..hot() };
    assert_shares(cold, &logits(), &[1.0, 0.0, 0.0, 0.0]);
    let boiling = SamplingParams { temperature: 1e300, ..hot() };
    assert_shares(boiling, &logits(), &[0.25; 4]);
    let many = SamplingParams { top_k: usize::MAX, min_p: 1e-300, ..hot() };
    assert_shares(many, &logits(), &[0.4, 0.1, 0.2, 0.3]);
    let few = SamplingParams { top_p: f64::MIN_POSITIVE, ..hot() };
    assert_shares(few, &logits(), &[1.0, 0.0, 0.0, 0.0]);
    let equal = SamplingParams { min_p: 1.0, ..hot() };
    assert_shares(equal, &[2.0, 1.0, 2.0], &[0.5, 0.0, 0.5]);
}

#[test]
fn draws_depend_on_place_alone() {
    let logits: Vec<f32> = (0..50).map(|i| (i as f32).sin()).collect();
    let history: Vec<u32> = (0..40).collect();
    let penalty = SamplingParams { repetition_penalty: 1.5, ..hot() };
    for params in [hot(), penalty] {
        let draws = |sampler: &mut Sampler, at: &mut dyn Iterator<Item = usize>| {
            let draw = |n| {
                let (prompt, output) = history[..n + 9].split_at(9);
                sampler.sample(Draw { logits: &logits, prompt, output, ..Draw::default() })
            };
            at.map(draw).collect::<Vec<_>>()
        };
        let mut a = sampler(params);
        let forwards = draws(&mut a, &mut (0..30));
        let mut backwards = draws(&mut a, &mut (0..30).rev());
        backwards.reverse();
        assert_eq!(forwards, backwards);
        assert_eq!(draws(&mut a.fork(0), &mut (0..30)), forwards);
        assert_ne!(draws(&mut a.fork(1), &mut (0..30)), forwards);
    }
    let fresh = || Sampler::new(hot(), 0).unwrap();
    assert_ne!(fresh().seed(), fresh().seed());
    let sampler = fresh();
    assert_eq!(sampler.fork(3).seed(), sampler.seed());
}

#[test]
fn parameters_out_of_range_make_no_sampler() {
    let error = Sampler::new(SamplingParams { presence_penalty: 3.0, ..hot() }, 0).unwrap_err();
    assert_eq!(error.to_string(), "presence_penalty: is 3, and must be between -2 and 2");
}
