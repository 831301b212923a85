//! The engine's thread, seen from its clients.

use std::{sync::atomic::AtomicUsize, time::Instant};

use super::*;
use crate::{Finish, testing::Mock};

fn identity() -> Identity {
    Identity {
        info: ModelInfo {
            architecture: "Mock".into(),
            kind: ModelKind::Decoder,
            vocab_size: 50,
            hidden_size: 8,
            max_seq_len: 64,
            parameters: 0,
        },
        bundle: TextBundle::default(),
        memory: Memory::default(),
    }
}

fn engine(mock: Mock, options: &EngineOptions) -> Engine {
    Engine::of_model(mock, identity(), options).unwrap()
}

fn request(first: u32, max_tokens: usize) -> Request {
    let params = GenerateParams { max_tokens: Some(max_tokens), ..GenerateParams::default() };
    Request::new(vec![first, 2, 3], params)
}

/// All tokens of a request, and how it ended.
fn tokens(mut stream: EventStream) -> (Vec<u32>, Option<Finish>) {
    let (mut tokens, mut finish) = (Vec::new(), None);
    while let Some(event) = stream.blocking_recv() {
        match event {
            Event::Prompt(_) => {}
            Event::Token(new) => {
                tokens.extend(new.token.map(|t| t.token));
                finish = new.finish;
            }
            Event::Failed(error) => panic!("{error}"),
        }
    }
    (tokens, finish)
}

#[test]
fn requests_of_many_threads_get_their_own_answers() {
    let engine = engine(Mock::new(|_| ()), &EngineOptions::default());
    let alone: Vec<_> = (0..8).map(|i| tokens(engine.submit(request(i, 10)).unwrap())).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let ask = |i: u32| {
            let engine = engine.clone();
            scope.spawn(move || tokens(engine.submit(request(i, 10)).unwrap()))
        };
        let threads: Vec<_> = (0..8).map(ask).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
    assert!(alone.iter().all(|(t, f)| t.len() == 10 && *f == Some(Finish::Length)));
    engine.drain();
    engine.join().unwrap();
    let stats = engine.stats();
    assert_eq!((stats.finished_length, stats.generation_tokens), (16, 160));
    assert_eq!((stats.running, stats.waiting, stats.used_blocks), (0, 0, 0));
    assert_eq!(stats.time_to_first_token.count(), 16);
}

#[test]
fn a_dropped_stream_ends_its_request() {
    let engine = engine(Mock::new(|l| l.max_seq_len = 64), &EngineOptions::default());
    let mut stream = engine.submit(request(1, 50)).unwrap();
    assert!(stream.blocking_recv().is_some());
    drop(stream);
    let start = Instant::now();
    while engine.stats().finished_abort + engine.stats().finished_length == 0 {
        assert!(start.elapsed().as_secs() < 10, "it goes on");
        thread::yield_now();
    }
    let uses = engine.block_uses().blocking_wait().unwrap();
    assert!(uses.iter().all(|u| matches!(u, BlockUse::Free | BlockUse::Cached)));
}

#[test]
fn a_full_queue_refuses_and_says_when_to_come_back() {
    let options = EngineOptions {
        max_queue: 3,
        max_num_seqs: NonZeroUsize::new(1),
        ..EngineOptions::default()
    };
    let engine = engine(Mock::new(|_| ()), &options);
    let mut streams = Vec::new();
    let refused = (0..1000).find_map(|i| match engine.submit(request(i % 40, 60)) {
        Ok(stream) => {
            streams.push(stream);
            None
        }
        Err(error) => Some(error),
    });
    let Some(SubmitError::QueueFull { waiting, retry_after }) = refused else {
        panic!("{refused:?}");
    };
    assert!((3..=4).contains(&waiting) && retry_after >= Duration::from_secs(1));
    for stream in streams {
        assert_eq!(tokens(stream).1, Some(Finish::Length), "what was accepted is answered");
    }
    assert!(engine.submit(request(1, 1)).is_ok(), "there is room again");
}

#[test]
fn the_requests_of_a_call_are_taken_together_or_not_at_all() {
    let options = EngineOptions {
        max_queue: 3,
        max_num_seqs: NonZeroUsize::new(1),
        ..EngineOptions::default()
    };
    let engine = engine(Mock::new(|_| ()), &options);
    let list = |n: u32| (0..n).map(|i| request(i, 30)).collect::<Vec<_>>();
    let streams = engine.submit_all(list(20)).unwrap();
    let refused = engine.submit_all(list(2)).unwrap_err();
    assert!(matches!(refused, SubmitError::QueueFull { .. }), "{refused}");
    for stream in streams {
        assert_eq!(tokens(stream).1, Some(Finish::Length));
    }
    let mut bad = list(3);
    bad[2].prompt.clear();
    assert!(matches!(engine.submit_all(bad), Err(SubmitError::Refused(_))));
    engine.drain();
    engine.join().unwrap();
    assert_eq!(engine.stats().finished_length, 20, "of a list refused, nothing is computed");
    assert_eq!(engine.stats().finished_abort, 0);
}

#[test]
fn draining_answers_what_was_accepted_and_takes_no_more() {
    let engine = engine(Mock::new(|_| ()), &EngineOptions::default());
    let streams: Vec<_> = (0..20).map(|i| engine.submit(request(i, 30)).unwrap()).collect();
    engine.drain();
    assert!(matches!(engine.submit(request(1, 1)), Err(SubmitError::Draining)));
    engine.join().unwrap();
    for stream in streams {
        assert_eq!(tokens(stream).0.len(), 30);
    }
}

#[test]
fn what_the_model_cannot_do_is_refused() {
    let engine = engine(Mock::new(|_| ()), &EngineOptions::default());
    let error = engine.embed(vec![vec![1]]).unwrap_err().to_string();
    assert!(error.contains("does not embed"), "{error}");
    let error = engine.submit(request(99, 1)).unwrap_err().to_string();
    assert!(error.contains("token 0 is 99"), "{error}");
    // Refused requests leave nothing behind.
    let refused = AtomicUsize::new(0);
    for _ in 0..2000 {
        if engine.submit(request(99, 1)).is_err() {
            refused.fetch_add(1, Ordering::Relaxed);
        }
    }
    assert_eq!(refused.into_inner(), 2000);
    assert_eq!(tokens(engine.submit(request(1, 4)).unwrap()).0.len(), 4);
}

/// Five hundred at once, with memory for four of the longest: each gets its own answer or is told
/// to come back.
#[test]
fn overload_gives_right_answers_or_clean_refusals() {
    let mock = || Mock::new(|l| l.blocks = 4 * 16);
    let alone = engine(mock(), &EngineOptions::default());
    let ask = |i: u32| {
        let mut request = request(i % 40, 20 + (i as usize * 7) % 41);
        request.n = 1 + (i as usize) % 2;
        request.params.ignore_eos = true;
        request
    };
    let want: Vec<_> = (0..500).map(|i| tokens(alone.submit(ask(i)).unwrap())).collect();
    let options = EngineOptions { max_queue: 100, ..EngineOptions::default() };
    let engine = engine(mock(), &options);
    let answers: Vec<_> = thread::scope(|scope| {
        let ask = |i: u32| {
            let engine = engine.clone();
            scope.spawn(move || engine.submit(ask(i)).map(tokens))
        };
        let threads: Vec<_> = (0..500).map(ask).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let mut answered = 0;
    for (answer, want) in answers.iter().zip(&want) {
        match answer {
            Ok(answer) => {
                // Sequences of one request come in any order of tokens.
                let sorted = |t: &(Vec<u32>, Option<Finish>)| {
                    let mut tokens = t.0.clone();
                    tokens.sort_unstable();
                    tokens
                };
                assert_eq!(sorted(answer), sorted(want));
                answered += 1;
            }
            Err(SubmitError::QueueFull { retry_after, .. }) => assert!(!retry_after.is_zero()),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(answered >= 100, "the queue holds a hundred");
    engine.drain();
    engine.join().unwrap();
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.used_blocks), (0, 0, 0));
}
