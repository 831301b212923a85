//! Whole requests on a stand-in model: alone and together, whatever the schedule.

use std::{cell::Cell, collections::HashMap};

use proptest::{prelude::*, test_runner::TestRunner};

use super::*;
use crate::{
    GenerateParams, Request, SamplingParams, TokenLogprob, engine::prepare::prepare, testing::Mock,
};

/// What has become of a request.
#[derive(Debug, Default)]
struct Answer {
    prompt: Option<PromptDone>,
    /// By sequence.
    tokens: Vec<Vec<TokenLogprob>>,
    finish: Vec<Option<Finish>>,
    error: Option<String>,
}

/// A core with a mock model, and the answers so far.
struct Bench {
    core: Core<Mock>,
    answers: HashMap<u64, Answer>,
    next: u64,
}

impl Bench {
    fn new(mock: Mock, change: impl FnOnce(&mut Budget), prefix_cache: bool) -> Bench {
        let mut budget = Budget::of(mock.limits());
        change(&mut budget);
        let core = Core::new(mock, budget, prefix_cache);
        Bench { core, answers: HashMap::new(), next: 0 }
    }

    fn add(&mut self, request: Request) -> Result<u64, String> {
        let number = self.next;
        self.next += 1;
        let limits = self.core.model().limits().clone();
        let n = request.n;
        let prepared = prepare(request, number, &limits, None, &[49]).map_err(|e| e.to_string())?;
        let answer = Answer { tokens: vec![vec![]; n], finish: vec![None; n], ..Answer::default() };
        self.answers.insert(number, answer);
        let Bench { core, answers, .. } = self;
        core.add(prepared, &mut |request, event| note(answers, request, event));
        Ok(number)
    }

    fn step(&mut self) -> bool {
        let Bench { core, answers, .. } = self;
        let more = core.step(&mut |request, event| note(answers, request, event)).unwrap();
        core.check();
        more
    }

    fn run(mut self) -> Bench {
        while self.step() {}
        let blocks = self.core.scheduler().blocks();
        assert_eq!(blocks.available(), blocks.blocks(), "all memory came back");
        self
    }
}

fn note(answers: &mut HashMap<u64, Answer>, request: u64, event: Event) -> ControlFlow<()> {
    let answer = answers.get_mut(&request).unwrap();
    assert!(answer.error.is_none());
    match event {
        Event::Prompt(prompt) => {
            assert!(answer.prompt.is_none() && answer.tokens.iter().all(Vec::is_empty));
            answer.prompt = Some(prompt);
        }
        Event::Token(new) => {
            assert!(answer.prompt.is_some() && answer.finish[new.sequence].is_none());
            answer.tokens[new.sequence].extend(new.token);
            answer.finish[new.sequence] = new.finish;
        }
        Event::Failed(error) => answer.error = Some(error.to_string()),
    }
    ControlFlow::Continue(())
}

fn request(prompt: &[u32], max_tokens: usize) -> Request {
    let params = GenerateParams { max_tokens: Some(max_tokens), ..GenerateParams::default() };
    Request::new(prompt.to_vec(), params)
}

fn seeded(prompt: &[u32], max_tokens: usize, seed: u64) -> Request {
    let mut request = request(prompt, max_tokens);
    request.params.sampling =
        SamplingParams { temperature: 1.0, seed: Some(seed), ..SamplingParams::default() };
    request
}

fn alone(request: Request) -> Answer {
    alone_with_window(request, None)
}

fn alone_with_window(request: Request, window: Option<usize>) -> Answer {
    let mock = Mock::new(|l| {
        (l.max_batch_tokens, l.window) = (64, window);
    });
    let mut bench = Bench::new(mock, |_| (), false);
    let number = bench.add(request).unwrap();
    bench.run().answers.remove(&number).unwrap()
}

/// Any mixture of requests, in too little memory, in any steps, with cold and warm cache, with a
/// window and without, with whole rows and heads of any size, gives each what it gets alone.
#[test]
fn answers_do_not_depend_on_the_load() {
    let prompt = prop_oneof![
        proptest::collection::vec(0..2u32, 1..40),
        (0..30u32).prop_map(|n| (0..30).chain(0..n).collect()),
    ];
    let one = (prompt, 0..20usize, any::<u64>(), 1..4usize, any::<bool>(), -1..2i32, 0..4usize);
    let window = proptest::option::of(1..24usize);
    let memory = (0..24u32, any::<bool>(), window, any::<bool>());
    let setting = (1..17usize, 1..9usize, 1..5usize, 1..17usize, memory, 0..51usize);
    let config = ProptestConfig { cases: 64, ..ProptestConfig::default() };
    let (preemptions, hits) = (Cell::new(0), Cell::new(0));
    TestRunner::new(config)
        .run(&(proptest::collection::vec(one, 1..20), setting), |(requests, setting)| {
            let (max_batch_tokens, prefill_chunk, max_sequences, max_rows, memory, head) = setting;
            let (more, cache, window, goes_on_alone) = memory;
            let mut mock = Mock::new(|l| {
                (l.max_batch_tokens, l.max_sequences) = (max_batch_tokens, max_sequences);
                (l.max_rows, l.window) = (max_rows, window);
                // The longest fits alone.
                let least = l.paging().at_once(l.max_seq_len, 1);
                l.blocks = u32::try_from(least).unwrap() + more;
            });
            (mock.head, mock.goes_on_alone) = (head, goes_on_alone);
            let change = |b: &mut Budget| (b.prefill_chunk, b.max_running) = (prefill_chunk, 8);
            let mut bench = Bench::new(mock, change, cache);
            let mut sent = Vec::new();
            for (prompt, max_tokens, seed, n, logprobs, priority, delay) in requests {
                let mut request = seeded(&prompt, max_tokens.min(64 - prompt.len()), seed);
                request.n = n;
                request.prompt_logprobs = logprobs.then_some(0);
                request.priority = priority;
                for _ in 0..delay {
                    bench.step();
                }
                sent.push((bench.add(request.clone()).unwrap(), request));
            }
            let bench = bench.run();
            preemptions.set(preemptions.get() + bench.core.stats().preemptions);
            hits.set(hits.get() + bench.core.stats().prefix_hits);
            for (number, request) in sent {
                let got = &bench.answers[&number];
                let want = alone_with_window(request, window);
                prop_assert_eq!(&got.tokens, &want.tokens);
                prop_assert_eq!(&got.finish, &want.finish);
                let logprobs = |a: &Answer| a.prompt.clone().unwrap().logprobs;
                prop_assert_eq!(logprobs(got), logprobs(&want));
                prop_assert!(got.error.is_none());
            }
            Ok(())
        })
        .unwrap();
    assert!(preemptions.get() > 0 && hits.get() > 0, "the cases are too easy");
}

#[test]
fn rows_are_copied_for_what_their_heads_do_not_tell() {
    let run = |head: usize, change: &dyn Fn(&mut Request)| {
        let mut mock = Mock::new(|_| ());
        mock.head = head;
        let fetches = mock.fetches();
        let mut bench = Bench::new(mock, |_| (), false);
        let mut request = request(&[3, 1, 4], 12);
        change(&mut request);
        let number = bench.add(request).unwrap();
        let answer = bench.run().answers.remove(&number).unwrap();
        (answer.tokens, answer.prompt, fetches.load(std::sync::atomic::Ordering::Relaxed))
    };
    let greedy = |request: &mut Request| request.top_logprobs = 4;
    let sampled = |request: &mut Request| {
        let sampling = &mut request.params.sampling;
        (sampling.temperature, sampling.top_k, sampling.seed) = (0.9, 4, Some(1));
    };
    let much = |request: &mut Request| request.top_logprobs = 5;
    let scored = |request: &mut Request| request.prompt_logprobs = Some(2);
    for (change, rows) in [
        (&greedy as &dyn Fn(&mut Request), 0..=0),
        (&sampled, 0..=0),
        (&much, 12..=12),
        // Two tokens of the prompt are likely or not.
        (&scored, 1..=2),
    ] {
        let (tokens, prompt, fetched) = run(4, change);
        assert!(rows.contains(&fetched), "{fetched} are not {rows:?}");
        assert_eq!((tokens, prompt, 0), run(0, change));
    }
}

#[test]
fn rows_of_a_step_are_copied_together() {
    let mut mock = Mock::new(|_| ());
    mock.head = 4;
    let (fetches, calls) = (mock.fetches(), mock.calls());
    let mut bench = Bench::new(mock, |_| (), false);
    for first in 0..4 {
        // The head does not have so many.
        let mut request = seeded(&[first, 3], 6, 1);
        (request.top_logprobs, request.params.ignore_eos) = (5, true);
        bench.add(request).unwrap();
    }
    bench.run();
    let count = |n: &std::sync::atomic::AtomicUsize| n.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((count(&fetches), count(&calls)), (4 * 6, 6));
}

#[test]
fn news_are_told_while_the_device_computes_the_next_step() {
    let mut mock = Mock::new(|_| ());
    mock.goes_on_alone = true;
    let mut bench = Bench::new(mock, |_| (), false);
    let mut one = seeded(&[3, 1], 3, 1);
    one.params.ignore_eos = true;
    let want = alone(one.clone());
    let number = bench.add(one.clone()).unwrap();
    let told = |bench: &Bench| {
        let answer = &bench.answers[&number];
        (answer.prompt.is_some(), answer.tokens[0].len(), answer.finish[0].is_some())
    };
    let mut all = Vec::new();
    while bench.step() {
        all.push(told(&bench));
    }
    // What ends a sequence is told at once.
    assert_eq!(all, [(true, 0, false), (true, 1, false), (true, 3, true)]);
    assert_eq!(bench.answers[&number].tokens, want.tokens);
    // What was held of a request that is cancelled is not told.
    let number = bench.add(one.clone()).unwrap();
    bench.step();
    bench.core.cancel(number);
    assert!(!bench.step());
    assert!(bench.answers[&number].tokens[0].is_empty());
    // It is told before all requests fail.
    let number = bench.add(one).unwrap();
    bench.step();
    let Bench { core, answers, .. } = &mut bench;
    core.fail_all(|| ServeError::Stopped, &mut |request, event| note(answers, request, event));
    assert_eq!(answers[&number].tokens[0].len(), 1);
    assert!(answers[&number].error.is_some());
    bench.run();
}

#[test]
fn a_client_that_leaves_while_the_device_computes_gives_everything_back() {
    let mut mock = Mock::new(|_| ());
    mock.goes_on_alone = true;
    let mut bench = Bench::new(mock, |_| (), true);
    let mut request = seeded(&[2; 9], 8, 1);
    (request.n, request.params.ignore_eos) = (2, true);
    bench.add(request).unwrap();
    let mut tokens = 0;
    let mut leave = |_, event| match event {
        Event::Token(_) => {
            tokens += 1;
            if tokens == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
        _ => ControlFlow::Continue(()),
    };
    while bench.core.step(&mut leave).unwrap() {
        bench.core.check();
    }
    assert_eq!(tokens, 3);
    assert_eq!(bench.core.stats().finished_abort, 2);
    bench.run();
}

#[test]
fn probabilities_of_the_prompt_are_those_of_the_answer_that_it_once_was() {
    let first = alone(seeded(&[4, 5, 6], 30, 3));
    let tokens: Vec<u32> = first.tokens[0].iter().map(|t| t.token).collect();
    let all = [&[4, 5, 6], &tokens[..]].concat();
    let mut scoring = request(&all, 0);
    scoring.prompt_logprobs = Some(2);
    let scored = alone(scoring);
    let prompt = scored.prompt.unwrap().logprobs;
    assert_eq!((prompt.len(), &prompt[0]), (all.len(), &None));
    for (prompt, answer) in prompt[3..].iter().zip(&first.tokens[0]) {
        let prompt = prompt.as_ref().unwrap();
        assert_eq!((prompt.token, prompt.logprob), (answer.token, answer.logprob));
        assert_eq!(prompt.top.len(), 2);
    }
    assert_eq!(scored.finish, [Some(Finish::Length)]);
    assert!(scored.tokens[0].is_empty());
}

#[test]
fn a_prompt_may_be_cut_into_prompt_and_continuation() {
    let whole = alone(request(&[3, 1, 4], 20));
    let tokens: Vec<u32> = whole.tokens[0].iter().map(|t| t.token).collect();
    let rest = alone(request(&[&[3, 1, 4], &tokens[..9]].concat(), 11));
    assert_eq!(rest.tokens[0], whole.tokens[0][9..]);
}

#[test]
fn the_second_of_two_equal_prompts_is_mostly_there() {
    let mut bench = Bench::new(Mock::new(|_| ()), |_| (), true);
    let prompt: Vec<u32> = (0..30).collect();
    let first = bench.add(request(&prompt, 5)).unwrap();
    let mut bench = bench.run();
    let second = bench.add(request(&prompt, 5)).unwrap();
    let mut salted = request(&prompt, 5);
    salted.cache_salt = Some("other".into());
    let third = bench.add(salted).unwrap();
    let bench = bench.run();
    let cached = |n: u64| bench.answers[&n].prompt.as_ref().unwrap().cached_tokens;
    assert_eq!([cached(first), cached(second), cached(third)], [0, 29, 0]);
    assert_eq!(bench.answers[&first].tokens, bench.answers[&second].tokens);
}

/// Fifty windows long, in memory for three: the answer is that in ample memory, and the second of
/// two equal prompts finds its last window.
#[test]
fn a_long_sequence_runs_in_the_memory_of_its_window() {
    let mock = |blocks| {
        Mock::new(|l| {
            (l.max_seq_len, l.table_len, l.window) = (800, 200, Some(16));
            l.blocks = blocks;
        })
    };
    let prompt: Vec<u32> = (0..770).map(|i| i * i % 43).collect();
    let ask = || {
        let mut request = seeded(&prompt, 30, 5);
        request.params.ignore_eos = true;
        request
    };
    let mut ample = Bench::new(mock(200), |_| (), false);
    let number = ample.add(ask()).unwrap();
    let want = ample.run().answers.remove(&number).unwrap();
    let mut bench = Bench::new(mock(12), |_| (), true);
    let first = bench.add(ask()).unwrap();
    let mut bench = bench.run();
    let tokens = |bench: &Bench| bench.core.model().steps.iter().map(|s| s.0).sum::<usize>();
    assert_eq!(tokens(&bench), 799, "each is computed once");
    let second = bench.add(ask()).unwrap();
    let bench = bench.run();
    assert_eq!(bench.answers[&second].prompt.as_ref().unwrap().cached_tokens, 769);
    assert_eq!(tokens(&bench), 799 + 30);
    for number in [first, second] {
        assert_eq!(bench.answers[&number].tokens, want.tokens);
        assert_eq!(bench.answers[&number].tokens[0].len(), 30);
    }
    assert_eq!(bench.core.stats().preemptions, 0);
    // A window and half a block more are too little.
    let mut bench = Bench::new(mock(4), |_| (), true);
    let refused = bench.add(ask()).unwrap_err();
    assert!(refused.contains("more than the 16 that the key/value memory holds"), "{refused}");
}

#[test]
fn sequences_of_a_request_share_the_prompt_and_differ() {
    let mut bench = Bench::new(Mock::new(|_| ()), |_| (), true);
    let prompt: Vec<u32> = (0..18).collect();
    let mut many = seeded(&prompt, 12, 9);
    (many.n, many.params.ignore_eos) = (4, true);
    let number = bench.add(many.clone()).unwrap();
    let bench = bench.run();
    let tokens: usize = bench.core.model().steps.iter().map(|(tokens, ..)| tokens).sum();
    assert_eq!(tokens, 18 + 4 * 11, "the prompt is computed once");
    let answer = &bench.answers[&number];
    let first = alone(Request { n: 1, ..many.clone() });
    assert_eq!(answer.tokens[0], first.tokens[0]);
    assert!(answer.tokens[1..].iter().all(|t| *t != answer.tokens[0] && t.len() == 12));
}

#[test]
fn sequences_end_at_the_tokens_that_end_them() {
    let free = alone(request(&[1, 2], 40));
    let tokens: Vec<u32> = free.tokens[0].iter().map(|t| t.token).collect();
    let mut stopping = request(&[1, 2], 40);
    stopping.params.stop_token_ids = vec![tokens[7]];
    let first = tokens.iter().position(|t| *t == tokens[7]).unwrap();
    let stopped = alone(stopping.clone());
    assert_eq!(stopped.finish, [Some(Finish::StopToken(tokens[7]))]);
    assert_eq!(stopped.tokens[0].len(), first + 1);
    stopping.params.min_tokens = first + 3;
    let late = alone(stopping);
    assert!(late.tokens[0].len() > first + 3);
    assert!(late.tokens[0][..first + 3].iter().all(|t| t.token != tokens[7]));
}

#[test]
fn what_is_broken_for_one_is_told_to_one() {
    let mut mock = Mock::new(|_| ());
    mock.seven = Some(f32::NAN);
    let mut bench = Bench::new(mock, |_| (), true);
    let broken = bench.add(request(&[1, 2], 4)).unwrap();
    let bench = bench.run();
    let error = bench.answers[&broken].error.as_ref().unwrap();
    assert!(error.starts_with("the logits after position 1 hold NaN"), "{error}");
    assert_eq!(bench.core.stats().finished_error, 1);
}

#[test]
fn a_cancelled_request_gives_everything_back() {
    let mut bench = Bench::new(Mock::new(|_| ()), |_| (), true);
    let mut many = seeded(&[1; 20], 30, 1);
    (many.n, many.params.ignore_eos) = (3, true);
    let mut other = request(&[2; 20], 3);
    other.params.ignore_eos = true;
    let (first, second) = (bench.add(many).unwrap(), bench.add(other).unwrap());
    for _ in 0..5 {
        bench.step();
    }
    bench.core.cancel(first);
    let bench = bench.run();
    assert!(bench.answers[&first].finish.iter().all(Option::is_none));
    assert_eq!(bench.answers[&second].finish, [Some(Finish::Length)]);
    assert_eq!(bench.core.stats().finished_abort, 3);
}

#[test]
fn bad_requests_are_refused_by_field() {
    let mut bench = Bench::new(Mock::new(|_| ()), |_| (), true);
    let mut refused = |request: Request| bench.add(request).unwrap_err();
    assert!(refused(request(&[], 1)).starts_with("prompt: is empty"));
    let unknown = "prompt: token 1 is 50, and the vocabulary has ids below 50";
    assert_eq!(refused(request(&[1, 50], 1)), unknown);
    let long = "prompt: 60 tokens and 5 new ones are more than the 64 that the model is compiled \
                or opened for";
    assert_eq!(refused(request(&[1; 60], 5)), long);
    assert!(refused(request(&[1; 65], 0)).contains("65 tokens and 0 new ones"));
    let mut early = request(&[1], 3);
    early.params.min_tokens = 4;
    assert_eq!(refused(early), "min_tokens: is 4, above the 3 tokens to generate");
    assert!(refused(Request { n: 0, ..request(&[1], 1) }).starts_with("n: is 0"));
    let mut bench = Bench::new(Mock::new(|l| l.blocks = 4), |_| (), true);
    let small = bench.add(request(&[1; 10], 10)).unwrap_err();
    assert!(small.contains("more than the 16 that the key/value memory holds"), "{small}");
}
