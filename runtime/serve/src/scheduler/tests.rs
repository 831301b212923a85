//! Random arrivals, answers and cancellations without a model.

use std::collections::{HashMap, HashSet};

use proptest::{prelude::*, test_runner::TestRunner};

use super::*;
use crate::paging::Paging;

/// A request of the simulation.
#[derive(Clone, Debug)]
struct Arrival {
    prompt: Vec<u32>,
    max_tokens: usize,
    /// Tokens after which it ends by itself.
    tokens: usize,
    priority: i32,
    forks: usize,
    rows: bool,
    /// Steps after the one before it.
    delay: usize,
    /// Steps after which its client leaves.
    patience: Option<usize>,
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let prompt = proptest::collection::vec(0..3u32, 1..30);
    let patience = proptest::option::weighted(0.1, 0..40usize);
    (prompt, 1..20usize, 1..20usize, -1..2i32, 0..3usize, any::<bool>(), 0..4usize, patience)
        .prop_map(|(prompt, max_tokens, tokens, priority, forks, rows, delay, patience)| Arrival {
            prompt,
            max_tokens,
            tokens: tokens.min(max_tokens),
            priority,
            forks: if forks == 2 { 2 } else { 0 },
            rows,
            delay,
            patience,
        })
}

/// What a simulated sequence carries.
#[derive(Clone, Debug)]
struct State {
    request: usize,
    tokens: usize,
}

struct Simulation {
    scheduler: Scheduler<State>,
    budget: Budget,
    window: Option<usize>,
    next: u64,
    /// Step at which each request came, by number.
    arrived: HashMap<usize, u64>,
    finished: usize,
    preemptions: usize,
}

impl Simulation {
    fn new(blocks: u32, block_size: usize, budget: Budget) -> Simulation {
        Simulation::with_window(blocks, block_size, None, budget)
    }

    fn with_window(
        blocks: u32,
        block_size: usize,
        window: Option<usize>,
        budget: Budget,
    ) -> Simulation {
        let manager = BlockManager::new(blocks, block_size, true).with_window(window);
        let scheduler = Scheduler::new(budget.clone(), manager);
        let arrived = HashMap::new();
        Simulation { scheduler, budget, window, next: 0, arrived, finished: 0, preemptions: 0 }
    }

    fn id(&mut self) -> SequenceId {
        self.next += 1;
        SequenceId(self.next)
    }

    fn add(&mut self, request: usize, arrival: &Arrival) {
        let state = State { request, tokens: arrival.tokens };
        let (id, blocks) = (self.id(), self.scheduler.blocks());
        let prompt = arrival.prompt.clone();
        let mut sequence = Sequence::new(id, prompt, arrival.max_tokens, None, blocks, state);
        sequence.priority = arrival.priority;
        sequence.forks = arrival.forks;
        sequence.rows_from = arrival.rows.then_some(0);
        self.scheduler.add(sequence);
        self.arrived.insert(request, self.scheduler.step);
    }

    fn cancel(&mut self, request: usize) {
        let all = self.scheduler.running().iter().chain(self.scheduler.waiting());
        let of: Vec<SequenceId> =
            all.filter(|s| s.state.request == request).map(|s| s.id).collect();
        for id in of {
            assert!(self.scheduler.remove(id).is_some());
            self.finished += 1;
        }
    }

    /// One step; returns whether there was any work.
    fn step(&mut self) -> bool {
        let plan = self.scheduler.schedule();
        self.preemptions += plan.preempted;
        self.check(&plan);
        for part in &plan.parts {
            self.scheduler.commit(part);
            let sequence = self.scheduler.get_mut(part.id).unwrap();
            if let Some(from) = sequence.rows_from {
                let end = sequence.computed.min(sequence.prompt_len);
                sequence.rows_from = (end < sequence.prompt_len).then_some(from.max(end));
            }
            if sequence.pending() > 0 {
                continue;
            }
            assert_eq!(part.rows.end, part.count, "the next token needs a row");
            let (forks, state) = (sequence.forks, sequence.state.clone());
            let mut next = vec![part.id];
            for _ in 0..forks {
                let id = self.id();
                self.scheduler.fork(part.id, id, state.clone()).unwrap();
                next.push(id);
            }
            for id in next {
                let sequence = self.scheduler.get_mut(id).unwrap();
                sequence.tokens.push(7 + u32::try_from(id.0 % 3).unwrap());
                if sequence.output().len() == sequence.state.tokens {
                    self.scheduler.finish(id).unwrap();
                    self.finished += 1;
                }
            }
        }
        !plan.parts.is_empty()
    }

    fn check(&self, plan: &Plan) {
        let Scheduler { running, waiting, blocks, .. } = &self.scheduler;
        blocks.check(running.iter().chain(waiting).map(|s| &s.table));
        let tokens: usize = plan.parts.iter().map(|p| p.count).sum();
        let rows: usize = plan.parts.iter().map(|p| p.rows.len()).sum();
        assert!(tokens <= self.budget.max_batch_tokens && rows <= self.budget.max_rows);
        assert!(plan.parts.len() <= self.budget.max_sequences);
        let is_idle = running.is_empty() && waiting.is_empty();
        assert_eq!(plan.parts.is_empty(), is_idle, "every step gets on");
        let mut prompt_tokens = 0;
        for (index, part) in plan.parts.iter().enumerate() {
            assert!(plan.parts[..index].iter().all(|p| p.id != part.id));
            let sequence = running.iter().find(|s| s.id == part.id).unwrap();
            assert!((1..=sequence.pending()).contains(&part.count));
            assert!(sequence.table.capacity() >= sequence.computed + part.count);
            // One that comes back may have all but its last token in the cache.
            let is_new = plan.admitted.iter().any(|(id, _)| *id == part.id);
            prompt_tokens += if sequence.is_decoding() && !is_new { 0 } else { part.count };
            let block = |position| sequence.table.slot(position) / blocks.block_size();
            for position in sequence.computed..sequence.computed + part.count {
                let block = u32::try_from(block(position)).unwrap();
                assert_eq!(blocks.uses(block), 1, "what is written is not shared");
            }
            let seen = self.window.map_or(0, |w| (sequence.computed + 1).saturating_sub(w));
            let distinct: HashSet<usize> =
                (seen..sequence.computed + part.count).map(block).collect();
            assert!(distinct.len() <= sequence.table.blocks().len());
            let end = sequence.computed + part.count;
            assert!(sequence.table.blocks().len() <= blocks.paging().at_once(end, part.count));
        }
        let decodes = prompt_tokens < tokens;
        assert!(!decodes || prompt_tokens <= self.budget.prefill_chunk);
        assert!(waiting.iter().all(|s| s.overtaken <= MAX_OVERTAKEN));
        assert!(waiting.iter().all(|s| s.computed == 0 && s.table.blocks().is_empty()));
    }
}

/// Whatever comes in whatever order, every step keeps to its budget and gets on, nothing written is
/// shared, memory is never lost, and all requests end, with a window and without.
#[test]
fn every_request_ends() {
    let budget = (1..24usize, 1..9usize, 1..6usize, 1..6usize, 1..8usize).prop_map(
        |(max_batch_tokens, prefill_chunk, max_sequences, max_rows, max_running)| Budget {
            max_batch_tokens,
            prefill_chunk,
            max_sequences,
            max_rows,
            max_running,
        },
    );
    let arrivals = proptest::collection::vec(arrival(), 1..25);
    let runs = (1..5usize, proptest::option::of(1..12usize), 0..20usize, budget, arrivals);
    let config = ProptestConfig { max_shrink_iters: 4096, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&runs, |(block_size, window, extra, budget, arrivals)| {
            // The longest fits alone, and not much more.
            let most = Paging::new(block_size, window).at_once(50, 1) + extra / block_size;
            let blocks = u32::try_from(most).unwrap();
            let mut simulation = Simulation::with_window(blocks, block_size, window, budget);
            let sequences: usize = arrivals.iter().map(|a| 1 + a.forks).sum();
            let mut leaving: Vec<(usize, usize)> = Vec::new();
            let mut steps = 0;
            for (request, arrival) in arrivals.iter().enumerate() {
                for _ in 0..arrival.delay {
                    simulation.step();
                    steps += 1;
                }
                simulation.add(request, arrival);
                leaving.extend(arrival.patience.map(|p| (steps + p, request)));
                for (at, request) in &leaving {
                    if *at == steps {
                        simulation.cancel(*request);
                    }
                }
            }
            while simulation.step() {
                steps += 1;
                for (at, request) in &leaving {
                    if *at == steps {
                        simulation.cancel(*request);
                    }
                }
                assert!(steps < 40_000, "it goes on for ever");
            }
            assert!(simulation.finished <= sequences);
            assert_eq!(simulation.scheduler.blocks().available(), most);
            Ok(())
        })
        .unwrap();
}

fn budget(max_batch_tokens: usize, max_sequences: usize) -> Budget {
    Budget {
        max_batch_tokens,
        prefill_chunk: 4,
        max_sequences,
        max_rows: max_sequences,
        max_running: max_sequences,
    }
}

fn plain(prompt: usize, max_tokens: usize) -> Arrival {
    Arrival {
        prompt: (0..u32::try_from(prompt).unwrap()).collect(),
        max_tokens,
        tokens: max_tokens,
        priority: 0,
        forks: 0,
        rows: false,
        delay: 0,
        patience: None,
    }
}

fn counts(plan: &Plan) -> Vec<(u64, usize)> {
    plan.parts.iter().map(|p| (p.id.0, p.count)).collect()
}

#[test]
fn prompts_go_on_beside_decoding_in_small_parts() {
    let mut simulation = Simulation::new(64, 4, budget(16, 4));
    simulation.add(0, &plain(10, 20));
    assert_eq!(counts(&simulation.scheduler.schedule()), [(1, 10)]);
    let mut simulation = Simulation::new(64, 4, budget(16, 4));
    simulation.add(0, &plain(10, 20));
    simulation.step();
    let other = Arrival { prompt: vec![50; 30], ..plain(0, 20) };
    simulation.add(1, &other);
    assert_eq!(counts(&simulation.scheduler.schedule()), [(1, 1), (2, 4)]);
}

#[test]
fn a_request_that_does_not_fit_is_passed_but_not_for_ever() {
    let mut simulation = Simulation::new(16, 4, budget(64, 8));
    let unlike = |first: u32, len: usize, max_tokens: usize| Arrival {
        prompt: (0..u32::try_from(len).unwrap()).map(|i| first + i).collect(),
        ..plain(0, max_tokens)
    };
    // A long one runs, and one more of its kind does not fit beside it.
    simulation.add(0, &unlike(100, 20, 20));
    simulation.step();
    simulation.add(1, &unlike(200, 20, 20));
    let mut passed = 0;
    for request in 2..200 {
        simulation.add(request, &unlike(1000 * u32::try_from(request).unwrap(), 2, 1));
        // The long one goes on for ever.
        let running = simulation.scheduler.running.iter_mut().find(|s| s.state.request == 0);
        if let Some(long) = running {
            long.tokens.truncate(25);
            long.computed = long.computed.min(24);
        }
        let before = simulation.finished;
        simulation.step();
        passed += simulation.finished - before;
    }
    assert_eq!(passed, MAX_OVERTAKEN as usize);
    simulation.cancel(0);
    simulation.step();
    let first = simulation.scheduler.running.first().map(|s| s.state.request);
    assert_eq!(first, Some(1), "it is next when there is room");
}

#[test]
fn the_last_gives_way_and_finds_its_blocks_again() {
    let mut simulation = Simulation::new(8, 2, budget(16, 4));
    // Answers were short so far, so too many are admitted.
    (0..100).for_each(|_| simulation.scheduler.expectation.learn(0, 10));
    let prompt = |first: u32| (0..4).map(|i| first + i).collect();
    simulation.add(0, &Arrival { prompt: prompt(10), ..plain(0, 10) });
    simulation.add(1, &Arrival { prompt: prompt(20), ..plain(0, 10) });
    let mut order = Vec::new();
    while simulation.step() {
        let running = simulation.scheduler.running.iter();
        order.push(running.map(|s| s.state.request).collect::<Vec<_>>());
    }
    assert!(simulation.preemptions > 0);
    assert_eq!(simulation.finished, 2);
    let alone = order.iter().position(|r| *r == [0]).unwrap();
    assert!(order[alone..].iter().any(|r| *r == [1]), "{order:?}");
}

#[test]
fn the_more_urgent_goes_first() {
    let mut simulation = Simulation::new(64, 4, Budget { max_running: 1, ..budget(16, 4) });
    simulation.add(0, &plain(3, 2));
    simulation.step();
    simulation.add(1, &Arrival { priority: 1, ..plain(3, 2) });
    simulation.add(2, &Arrival { priority: -1, ..plain(3, 2) });
    let mut order = Vec::new();
    while simulation.step() {
        order.extend(simulation.scheduler.running.iter().map(|s| s.state.request));
    }
    order.dedup();
    assert_eq!(order, [2, 1]);
}

#[test]
fn a_prompt_longer_than_memory_goes_on_in_parts_that_fit_beside_the_window() {
    let mut simulation = Simulation::with_window(5, 4, Some(8), budget(64, 4));
    simulation.add(0, &plain(41, 30));
    let mut parts = Vec::new();
    loop {
        let before = simulation.scheduler.running.first().map_or(0, |s| s.computed);
        if !simulation.step() || simulation.finished > 0 {
            break;
        }
        parts.push(simulation.scheduler.running[0].computed - before);
    }
    assert_eq!((&parts[..3], parts.len()), (&[20, 12, 9][..], 3 + 28));
    assert!(parts[3..].iter().all(|part| *part == 1));
    assert_eq!((simulation.finished, simulation.preemptions), (1, 0));
}

#[test]
fn with_a_window_a_prompt_takes_no_memory_from_others() {
    // Three windows, and no room for eight tokens more beside them.
    let budget = Budget { prefill_chunk: 8, ..budget(64, 4) };
    let mut simulation = Simulation::with_window(9, 4, Some(8), budget);
    // Answers were short so far, so all are admitted at once.
    (0..100).for_each(|_| simulation.scheduler.expectation.learn(0, 10));
    let other = |first: u32, len: u32| (0..len).map(|i| first + i).collect();
    simulation.add(0, &Arrival { prompt: other(100, 3), ..plain(0, 60) });
    simulation.add(1, &Arrival { prompt: other(200, 3), ..plain(0, 60) });
    simulation.step();
    simulation.add(2, &Arrival { prompt: other(300, 90), ..plain(0, 5) });
    simulation.step();
    assert_eq!(simulation.scheduler.running.len(), 3);
    while simulation.step() {}
    assert_eq!((simulation.finished, simulation.preemptions), (3, 0));
}
