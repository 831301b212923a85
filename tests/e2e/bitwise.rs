//! The numeric contract: what a token's distribution does not depend on, bit for bit.

use std::ops::ControlFlow;

use frontend::ImportOptions;
use serve::Session;

use crate::{
    families::{compile_case, expect, greedy},
    support::{compile_to, data, open, options},
};

fn bits(logprobs: &[Option<f32>]) -> Vec<u32> {
    logprobs.iter().map(|p| p.map_or(0, f32::to_bits)).collect()
}

fn score(session: &mut Session, tokens: &[u32]) -> Vec<u32> {
    bits(&session.score(tokens).unwrap())
}

/// Grouped heads, a window, bf16 weights with long-rope, learned positions.
const CASES: [&str; 4] = ["llama-gqa3", "mistral-window64", "qwen2-bf16", "gpt2-gelu-new"];

#[test]
fn scores_depend_neither_on_threads_nor_on_what_follows() {
    for case in CASES {
        let (path, expect) = compile_case(case);
        let longest = expect.prompts.iter().max_by_key(|p| p.len()).unwrap();
        let mut one = open(&path, 1);
        let whole = score(&mut one, longest);
        for threads in [2, 3] {
            let other = score(&mut open(&path, threads), longest);
            assert_eq!(whole, other, "{case}: {threads} threads");
        }
        for n in [1, 2, 16, 17, 65, longest.len() - 1] {
            let n = n.min(longest.len());
            assert_eq!(score(&mut one, &longest[..n]), whole[..n], "{case}: prefix of {n}");
        }
    }
}

#[test]
fn scores_do_not_depend_on_how_a_prompt_is_cut() {
    for case in CASES {
        let folder = data("families").join(case);
        let expect = expect(&folder);
        let longest = expect.prompts.iter().max_by_key(|p| p.len()).unwrap();
        let mut all = Vec::new();
        // Steps of one token, of odd sizes, and of the whole prompt.
        for (tokens, rows) in [(1, 1), (7, 7), (64, 5), (512, 64)] {
            let import = ImportOptions {
                max_seq_len: Some(longest.len() as u64),
                max_batch_tokens: tokens,
                max_sequences: 1,
                logit_rows: rows,
                ..ImportOptions::default()
            };
            let (path, _) = compile_to(case, &folder, &options(import));
            all.push(score(&mut open(&path, 2), longest));
        }
        for other in &all[1..] {
            assert_eq!(all[0], *other, "{case}");
        }
    }
}

#[test]
fn generating_and_scoring_agree_wherever_the_prompt_ends() {
    for case in CASES {
        let (path, expect) = compile_case(case);
        let prompt = expect.prompts.iter().find(|p| p.len() >= 15).unwrap();
        let mut session = open(&path, 2);
        let mut continue_with = |prompt: &[u32], n: usize| {
            session.generate(prompt, &greedy(n), |_| ControlFlow::Continue(())).unwrap()
        };
        let story = continue_with(prompt, 20);
        let text = [&prompt[..], &story.tokens].concat();
        let halfway = continue_with(&text[..prompt.len() + 9], 11);
        assert_eq!(halfway.tokens, story.tokens[9..], "{case}");
        let all: Vec<u32> = story.logprobs.iter().map(|p| p.to_bits()).collect();
        let half: Vec<u32> = halfway.logprobs.iter().map(|p| p.to_bits()).collect();
        assert_eq!(half, all[9..], "{case}");
        assert_eq!(score(&mut session, &text)[prompt.len()..], all, "{case}");
    }
}

#[test]
fn an_embedding_does_not_depend_on_its_batch() {
    let (path, expect) = compile_case("bert-gelu");
    let mut session = open(&path, 2);
    let lists: Vec<&[u32]> = expect.prompts.iter().map(Vec::as_slice).collect();
    let together = session.embed(&lists).unwrap();
    let mut alone = open(&path, 1);
    for (list, want) in lists.iter().zip(&together) {
        let got = alone.embed(&[list]).unwrap();
        let same = got[0].iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{} tokens", list.len());
    }
}
