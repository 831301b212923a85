//! Whole generations on a stand-in model, alone and together.

use super::*;
use crate::{SamplingParams, score::score, testing::Mock};

fn run(model: &mut Mock, requests: &[(&[u32], SamplingParams, Stopping)]) -> Vec<Sequence> {
    let mut pool = model.pool();
    let mut sequences: Vec<Sequence> = requests
        .iter()
        .map(|(prompt, sampling, stopping)| {
            let sampler = Sampler::new(sampling.clone(), 0).unwrap();
            Sequence::new(prompt, sampler, stopping.clone(), model.limits(), &mut pool).unwrap()
        })
        .collect();
    let mut batch = Batch::default();
    while advance(model, &mut sequences, &mut batch, |_| Ok(ControlFlow::Continue(()))).unwrap() {}
    sequences
}

fn hot(seed: u64) -> SamplingParams {
    SamplingParams { temperature: 1.0, seed: Some(seed), ..SamplingParams::default() }
}

fn tokens(max_tokens: usize) -> Stopping {
    Stopping { max_tokens, ..Stopping::default() }
}

#[test]
fn a_batch_gives_what_each_request_gives_alone() {
    let prompts: [&[u32]; 6] = [&[1], &[2, 3, 4], &[5; 20], &[9, 8], &[7; 33], &[1, 2]];
    let request = |i: usize| (prompts[i], hot(i as u64), tokens(5 + 3 * i));
    let requests: Vec<_> = (0..6).map(request).collect();
    let mut model = Mock::new(|_| ());
    let together = run(&mut model, &requests);
    for (i, sequence) in together.iter().enumerate() {
        let alone = run(&mut Mock::new(|l| l.max_batch_tokens = 64), &[request(i)]);
        assert_eq!(sequence.new_tokens(), alone[0].new_tokens());
        assert_eq!(sequence.logprobs(), alone[0].logprobs());
        assert_eq!(sequence.new_tokens().len(), 5 + 3 * i);
        assert_eq!(sequence.finish(), Some(Finish::Length));
    }
    assert!(model.steps.iter().any(|(tokens, sequences, _)| (*tokens, *sequences) == (4, 4)));
    assert!(model.steps.iter().any(|(tokens, _, rows)| (*tokens, *rows) == (16, 0)));
}

#[test]
fn log_probabilities_are_those_of_score_whatever_the_sampling() {
    let sampling = SamplingParams { top_k: 5, temperature: 2.0, ..hot(3) };
    let prompt: &[u32] = &[4, 5, 6];
    let sequence = run(&mut Mock::new(|_| ()), &[(prompt, sampling, tokens(30))]).remove(0);
    let all = [prompt, sequence.new_tokens()].concat();
    let mut model = Mock::new(|_| ());
    let mut pool = model.pool();
    let scores = score(&mut model, &mut pool, &all).unwrap();
    let scores: Vec<f32> = scores[3..].iter().map(|s| s.unwrap()).collect();
    assert_eq!(scores, sequence.logprobs());
}

#[test]
fn a_prompt_may_be_cut_into_prompt_and_continuation() {
    let greedy = SamplingParams::default;
    let whole = run(&mut Mock::new(|_| ()), &[(&[3], greedy(), tokens(20))]).remove(0);
    let prompt = [&[3], &whole.new_tokens()[..9]].concat();
    let rest = run(&mut Mock::new(|_| ()), &[(&prompt, greedy(), tokens(11))]).remove(0);
    assert_eq!(rest.new_tokens(), &whole.new_tokens()[9..]);
    assert_eq!(rest.logprobs(), &whole.logprobs()[9..]);
}

#[test]
fn sequences_end_at_their_tokens_but_not_too_early() {
    let greedy = SamplingParams::default;
    let free = run(&mut Mock::new(|_| ()), &[(&[3], greedy(), tokens(10))]).remove(0);
    let end = free.new_tokens()[4];
    let at = free.new_tokens().iter().position(|t| *t == end).unwrap();
    let stopping = Stopping { end_ids: vec![end], ..tokens(10) };
    let ended = run(&mut Mock::new(|_| ()), &[(&[3], greedy(), stopping.clone())]).remove(0);
    assert_eq!(ended.new_tokens(), &free.new_tokens()[..=at]);
    assert_eq!(ended.finish(), Some(Finish::EndOfSequence(end)));
    let patient = Stopping { min_tokens: 8, ..stopping };
    let late = run(&mut Mock::new(|_| ()), &[(&[3], greedy(), patient)]).remove(0);
    assert!(late.new_tokens().len() >= 8 && !late.new_tokens()[..8].contains(&end));
}

#[test]
fn the_caller_can_end_a_sequence() {
    let mut model = Mock::new(|_| ());
    let mut pool = model.pool();
    let sampler = || Sampler::new(SamplingParams::default(), 0).unwrap();
    let limits = model.limits().clone();
    let mut sequence =
        |prompt: &[u32]| Sequence::new(prompt, sampler(), tokens(6), &limits, &mut pool).unwrap();
    let mut sequences = [sequence(&[1]), sequence(&[2])];
    let mut batch = Batch::default();
    let mut seen = 0;
    while advance(&mut model, &mut sequences, &mut batch, |new| {
        seen += usize::from(new.sequence == 0);
        let stop = new.sequence == 0 && seen == 2;
        Ok(if stop { ControlFlow::Break(Finish::Stop(7)) } else { ControlFlow::Continue(()) })
    })
    .unwrap()
    {}
    assert_eq!((seen, sequences[0].finish()), (2, Some(Finish::Stop(7))));
    assert_eq!(sequences[1].new_tokens().len(), 6);
}

#[test]
fn no_new_tokens_are_no_work() {
    let mut model = Mock::new(|_| ());
    let none = run(&mut model, &[(&[1], SamplingParams::default(), tokens(0))]).remove(0);
    assert_eq!((none.new_tokens(), none.finish()), (&[][..], Some(Finish::Length)));
    assert!(model.steps.is_empty());
}

#[test]
fn requests_that_cannot_be_served_are_refused() {
    let model = Mock::new(|l| l.blocks = 4);
    let mut pool = model.pool();
    let mut refused = |prompt: &[u32], stopping| {
        let sampler = Sampler::new(SamplingParams::default(), 0).unwrap();
        let sequence = Sequence::new(prompt, sampler, stopping, model.limits(), &mut pool);
        sequence.unwrap_err().to_string()
    };
    assert!(refused(&[], tokens(1)).starts_with("prompt: is empty"));
    assert!(refused(&[50], tokens(1)).contains("token 0 is 50"));
    assert!(refused(&[1; 60], tokens(5)).contains("60 tokens and 5 new ones are more than the 64"));
    assert!(refused(&[1], tokens(usize::MAX)).contains("are more than the 64"));
    assert!(refused(&[1; 20], tokens(1)).contains("6 more blocks of key/value memory are needed"));
    let patient = Stopping { min_tokens: 3, ..tokens(2) };
    assert!(refused(&[1], patient).starts_with("min_tokens: is 3"));
}

#[test]
fn logits_that_are_no_numbers_end_with_an_error() {
    for seven in [f32::INFINITY, f32::NAN] {
        let mut model = Mock::new(|_| ());
        model.seven = Some(seven);
        let mut pool = model.pool();
        let sampler = Sampler::new(SamplingParams::default(), 0).unwrap();
        let limits = model.limits().clone();
        let sequence = Sequence::new(&[1, 2], sampler, tokens(3), &limits, &mut pool).unwrap();
        let mut batch = Batch::default();
        let ended =
            advance(&mut model, &mut [sequence], &mut batch, |_| panic!("no token is drawn"));
        let error = ended.unwrap_err().to_string();
        assert!(error.starts_with("the logits after position 1 hold NaN or infinity"), "{error}");
    }
}

#[test]
fn parameters_that_forbid_every_token_are_refused() {
    let mut model = Mock::new(|_| ());
    let mut pool = model.pool();
    let limits = model.limits().clone();
    let mut sequence = |params| {
        let sampler = Sampler::new(params, 0).unwrap();
        Sequence::new(&[1, 2], sampler, tokens(9), &limits, &mut pool)
    };
    let beyond = SamplingParams { bad_words: vec![vec![4, 50]], ..SamplingParams::default() };
    let error = sequence(beyond).unwrap_err().to_string();
    assert_eq!(error, "bad_words: has token 50, and the vocabulary has ids below 50");
    let once = SamplingParams {
        allowed_token_ids: Some(vec![4]),
        bad_words: vec![vec![4, 4, 4]],
        ..SamplingParams::default()
    };
    let mut sequences = [sequence(once).unwrap()];
    let mut batch = Batch::default();
    let mut step =
        || advance(&mut model, &mut sequences, &mut batch, |_| Ok(ControlFlow::Continue(())));
    assert!(step().unwrap() && step().unwrap());
    let error = step().unwrap_err().to_string();
    assert!(error.starts_with("sampling parameters: leave no token"), "{error}");
    assert!(error.contains("after position 3"), "{error}");
    assert_eq!(sequences[0].new_tokens(), [4, 4]);
}

#[test]
fn presence_and_frequency_do_not_count_the_prompt() {
    let sampling = SamplingParams {
        presence_penalty: 2.0,
        frequency_penalty: 2.0,
        // The stand-in's logits are between 0 and 8.
        logit_bias: vec![(3, 9.0)],
        ..SamplingParams::default()
    };
    let sequence = run(&mut Mock::new(|_| ()), &[(&[3; 10], sampling, tokens(1))]).remove(0);
    assert_eq!(sequence.new_tokens(), [3]);
}

#[test]
fn prompt_and_output_count_for_the_repetition_penalty() {
    let sampling = SamplingParams { repetition_penalty: 1e6, ..SamplingParams::default() };
    let prompt: &[u32] = &[3, 4, 5];
    let sequence = run(&mut Mock::new(|_| ()), &[(prompt, sampling, tokens(30))]).remove(0);
    // Every logit of the stand-in is positive.
    let all: std::collections::BTreeSet<_> = prompt.iter().chain(sequence.new_tokens()).collect();
    assert_eq!(all.len(), 33);
}
