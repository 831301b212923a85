//! The engine on compiled models: an answer depends on nothing but its request.

use std::{num::NonZeroUsize, ops::ControlFlow, path::Path};

use driver::CompileOptions;
use frontend::ImportOptions;
use ir::DType;
use serve::{
    Engine, EngineOptions, Event, EventStream, Finish, GenerateParams, Request, SamplingParams,
    Stats,
};

use crate::{
    families::{compile_case, expect},
    support::{Random, compile_to, data, open, options},
};

/// Tokens with the bits of their probabilities, by sequence, and those of the prompt.
#[derive(Debug, PartialEq)]
struct Answer {
    prompt: Vec<Option<u32>>,
    tokens: Vec<Vec<(u32, u32)>>,
    finish: Vec<Option<Finish>>,
}

/// Requests that begin alike in part, greedy and not, with one sequence and several.
fn requests(prompts: &[Vec<u32>], longest: usize) -> Vec<Request> {
    let mut random = Random(7);
    let mut all = Vec::new();
    for number in 0..32 {
        let head = &prompts[random.below(prompts.len())];
        let tail = &prompts[random.below(prompts.len())];
        let cut = random.below(head.len() + 1);
        let mut prompt = [&head[..cut], tail].concat();
        prompt.truncate(1 + random.below(longest - 24));
        let sampling = SamplingParams {
            temperature: random.below(2) as f64,
            seed: Some(number),
            ..SamplingParams::default()
        };
        let max_tokens = Some(random.below(24));
        let params =
            GenerateParams { max_tokens, sampling, ignore_eos: true, ..Default::default() };
        let n = 1 + random.below(3) * random.below(2);
        let prompt_logprobs = (random.below(3) == 0).then_some(0);
        all.push(Request { n, prompt_logprobs, ..Request::new(prompt, params) });
    }
    all
}

fn read(mut stream: EventStream, n: usize) -> Answer {
    let mut answer = Answer { prompt: vec![], tokens: vec![vec![]; n], finish: vec![None; n] };
    while let Some(event) = stream.blocking_recv() {
        match event {
            Event::Prompt(prompt) => {
                let bits = |l: serve::TokenLogprob| l.logprob.to_bits();
                answer.prompt = prompt.logprobs.into_iter().map(|l| l.map(bits)).collect();
            }
            Event::Token(new) => {
                let token = new.token.map(|t| (t.token, t.logprob.to_bits()));
                answer.tokens[new.sequence].extend(token);
                answer.finish[new.sequence] = new.finish;
            }
            Event::Failed(error) => panic!("{error}"),
        }
    }
    answer
}

/// Teaches the engine that answers are short, so that it admits more than fit.
fn mislead(engine: &Engine) {
    let vocab_size = u32::try_from(engine.info().vocab_size).unwrap();
    let params = GenerateParams {
        max_tokens: Some(20),
        stop_token_ids: (0..vocab_size).collect(),
        ..GenerateParams::default()
    };
    for _ in 0..100 {
        let answer = read(engine.submit(Request::new(vec![1], params.clone())).unwrap(), 1);
        assert_eq!(answer.tokens[0].len(), 1);
    }
}

/// All requests at once, `rounds` times in the same engine.
fn serve(
    path: &Path,
    options: &EngineOptions,
    all: &[Request],
    rounds: usize,
) -> (Vec<Answer>, Stats) {
    let engine = Engine::open(path, options).unwrap();
    let mut answers = Vec::new();
    if options.kv_cache_bytes.is_some() {
        mislead(&engine);
    }
    for _ in 0..rounds {
        let streams: Vec<_> = all.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
        answers.extend(streams.into_iter().zip(all).map(|(stream, r)| read(stream, r.n)));
    }
    engine.drain();
    engine.join().unwrap();
    (answers, engine.stats())
}

/// Each request when it is alone, without a cache.
fn one_by_one(path: &Path, all: &[Request]) -> Vec<Answer> {
    let options = EngineOptions { prefix_cache: false, ..EngineOptions::default() };
    let engine = Engine::open(path, &options).unwrap();
    all.iter().map(|r| read(engine.submit(r.clone()).unwrap(), r.n)).collect()
}

/// In memory for little more than the longest of them, an engine that expects short answers.
fn check_preemption(name: &str, path: &Path, prompts: &[Vec<u32>]) {
    let mut all = requests(prompts, 45);
    for request in &mut all {
        (request.params.max_tokens, request.n) = (Some(60), 1);
    }
    let alone = one_by_one(path, &all);
    let engine = Engine::open(path, &EngineOptions::default()).unwrap();
    let limits = engine.limits().unwrap().clone();
    let block_bytes = engine.memory().state_bytes / u64::from(limits.blocks);
    drop(engine);
    let longest = all.iter().map(|r| r.prompt.len() + 60).max().unwrap();
    let blocks = longest.div_ceil(limits.block_size) + 2;
    let options = EngineOptions {
        kv_cache_bytes: Some(blocks as u64 * block_bytes),
        ..EngineOptions::default()
    };
    let (answers, stats) = serve(path, &options, &all, 1);
    for (index, (answer, want)) in answers.iter().zip(&alone).enumerate() {
        assert_eq!(answer, want, "{name}: preempted: request {index}");
    }
    assert!(stats.preemptions > 0, "{name}: memory was enough for all");
}

fn check(name: &str, path: &Path, prompts: &[Vec<u32>], longest: usize) {
    check_preemption(name, path, prompts);
    let all = requests(prompts, longest);
    let one_by_one = one_by_one(path, &all);
    let mut session = open(path, 1);
    for (request, answer) in all.iter().zip(&one_by_one) {
        let Request { prompt, params, .. } = request;
        let alone = session.generate(prompt, params, |_| ControlFlow::Continue(())).unwrap();
        let bits = alone.logprobs.iter().map(|p| p.to_bits());
        let tokens: Vec<(u32, u32)> = alone.tokens.iter().copied().zip(bits).collect();
        assert_eq!(tokens, answer.tokens[0], "{name}: a session");
    }
    let at = |n| NonZeroUsize::new(n).unwrap();
    for (what, options, rounds) in [
        ("cold and warm", EngineOptions::default(), 2),
        (
            "one thread, odd chunks",
            EngineOptions {
                threads: Some(at(1)),
                prefill_chunk: at(7),
                max_num_batched_tokens: Some(at(13)),
                ..EngineOptions::default()
            },
            2,
        ),
        (
            "one token at a time",
            EngineOptions { max_num_batched_tokens: Some(at(1)), ..EngineOptions::default() },
            1,
        ),
    ] {
        let (answers, stats) = serve(path, &options, &all, rounds);
        for (index, answer) in answers.iter().enumerate() {
            let want = &one_by_one[index % all.len()];
            assert_eq!(answer, want, "{name}: {what}: request {index}");
        }
        if rounds == 2 {
            assert!(stats.prefix_hits > 0, "{name}: {what}: nothing came from the cache");
        }
    }
}

#[test]
fn answers_depend_neither_on_load_nor_cache_nor_memory() {
    for case in ["llama-gqa3", "mistral-window64", "qwen2-bf16", "gpt2-gelu-new"] {
        let (path, expect) = compile_case(case);
        check(case, &path, &expect.prompts, expect.max_seq_len());
    }
}

#[test]
fn neither_do_they_with_rounded_keys_and_values() {
    let case = data("families").join("llama-gqa3");
    let expect = expect(&case);
    for kv_dtype in [DType::Bf16, DType::I8, DType::F8E4M3] {
        let import = ImportOptions {
            max_seq_len: Some(expect.max_seq_len() as u64),
            ..ImportOptions::default()
        };
        let options = CompileOptions { kv_dtype, ..options(import) };
        let (path, _) = compile_to(&format!("engine-{kv_dtype}"), &case, &options);
        check(&format!("{kv_dtype}"), &path, &expect.prompts, expect.max_seq_len());
    }
}

/// Sequences that are several windows long, together and alone far longer than the memory, which
/// holds a window and one step.
#[test]
fn windows_slide_through_memory_that_holds_no_whole_sequence() {
    let (path, expect) = compile_case("mistral-window64");
    let mut all = requests(&expect.prompts, expect.max_seq_len());
    all.truncate(12);
    for (number, request) in all.iter_mut().enumerate() {
        let longest = &expect.prompts[expect.prompts.len() - 1];
        request.prompt = longest[number % 3..][..250].to_vec();
        (request.params.max_tokens, request.n) = (Some(40), 1 + number % 2);
    }
    let alone = one_by_one(&path, &all);
    let engine = Engine::open(&path, &EngineOptions::default()).unwrap();
    let limits = engine.limits().unwrap().clone();
    assert_eq!(limits.window, Some(64));
    let block_bytes = engine.memory().state_bytes / u64::from(limits.blocks);
    drop(engine);
    for blocks in [5usize, 12] {
        assert!(blocks * limits.block_size < 290);
        let options = EngineOptions {
            kv_cache_bytes: Some(blocks as u64 * block_bytes),
            ..EngineOptions::default()
        };
        let (answers, _) = serve(&path, &options, &all, 2);
        for (index, answer) in answers.iter().enumerate() {
            let want = &alone[index % all.len()];
            assert_eq!(answer, want, "{blocks} blocks: request {index}");
        }
    }
}
