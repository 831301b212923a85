//! What is being answered: sequences, what is to be told of them, and statistics.
//!
//! News may be held while a device computes the step that comes next, and told meanwhile. What ends
//! a sequence is told at once, for the scheduler has to know before the next step.

use std::time::Instant;

use crate::{
    ServeError,
    engine::{Event, NewToken, PromptDone, Stats, TokenLogprob, core::Sink, prepare::Generating},
    scheduler::Scheduler,
    sequence::{Finish, Sequence, SequenceId},
};

/// All that the engine's core has beside the model.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) scheduler: Scheduler<Generating>,
    pub(super) stats: Stats,
    /// What was not told yet.
    held: Vec<News>,
}

/// What a step has brought.
#[derive(Debug)]
pub(super) enum News {
    Prompt { request: u64, prompt: PromptDone },
    Token { id: SequenceId, token: Option<TokenLogprob> },
    Broken { request: u64, error: ServeError },
}

impl Answers {
    pub(super) fn new(scheduler: Scheduler<Generating>) -> Answers {
        let stats = Stats { blocks: scheduler.blocks().blocks(), ..Stats::default() };
        Answers { scheduler, stats, held: Vec::new() }
    }

    /// Ends a request, wherever it is; gives the text that its sequences held back.
    pub(super) fn cancel(&mut self, request: u64) -> String {
        let mut rest = String::new();
        for id in self.of_request(request) {
            if let Some(sequence) = self.scheduler.find_mut(id)
                && let Ok((text, _)) = sequence.state.text.push(None)
            {
                rest += &text;
            }
            self.end(id, Finish::Cancelled);
        }
        self.update_gauges();
        rest
    }

    /// Ends all requests with an error each.
    pub(super) fn fail_all(&mut self, mut error: impl FnMut() -> ServeError, sink: Sink<'_>) {
        self.tell_held(sink);
        let all = self.scheduler.running().iter().chain(self.scheduler.waiting());
        let mut requests: Vec<u64> = all.map(|s| s.state.request).collect();
        requests.sort_unstable();
        requests.dedup();
        for request in requests {
            self.stats.finished_error += 1;
            let _ = sink(request, Event::Failed(error()));
            self.remove_all(request);
        }
    }

    pub(super) fn admit(&mut self, id: SequenceId, cached: usize) {
        let Some(sequence) = self.scheduler.get_mut(id) else { return };
        if sequence.state.times.admitted.is_some() {
            return;
        }
        let now = Instant::now();
        self.stats.prefix_queries += sequence.prompt_len as u64;
        self.stats.prefix_hits += cached as u64;
        self.stats.queue_time.add_time(now - sequence.state.times.arrival);
        sequence.state.cached_tokens = cached;
        sequence.state.times.admitted = Some(now);
        for fork in &mut sequence.state.forks {
            fork.times.admitted = Some(now);
        }
    }

    /// Holds the news of a sequence, unless they may end it.
    pub(super) fn hold(&mut self, new: News, sink: Sink<'_>) {
        let may_wait = match &new {
            News::Token { id, token: Some(token) } => {
                let sequence = self.scheduler.get_mut(*id);
                sequence.is_some_and(|sequence| !may_end(sequence, token.token))
            }
            _ => false,
        };
        if may_wait { self.held.push(new) } else { self.tell(new, sink) }
    }

    /// Tells what was held.
    pub(super) fn tell_held(&mut self, sink: Sink<'_>) {
        for new in std::mem::take(&mut self.held) {
            self.tell(new, sink);
        }
    }

    /// Tells the news of a sequence, and ends it if that is part of them.
    pub(super) fn tell(&mut self, new: News, sink: Sink<'_>) {
        let Answers { scheduler, stats, .. } = self;
        match new {
            News::Prompt { request, prompt } => {
                if sink(request, Event::Prompt(prompt)).is_break() {
                    self.cancel(request);
                }
            }
            News::Broken { request, error } => {
                if self.remove_all(request) {
                    self.stats.finished_error += 1;
                    let _ = sink(request, Event::Failed(error));
                }
            }
            News::Token { id, token } => {
                // The request may have ended by an event of another of its sequences.
                let Some(sequence) = scheduler.find_mut(id) else { return };
                let request = sequence.state.request;
                let event = match take(sequence, token) {
                    Ok(event) => event,
                    Err(error) => {
                        return self.tell(News::Broken { request, error }, sink);
                    }
                };
                if event.token.is_some() {
                    note_time(&mut sequence.state, stats);
                }
                let finish = event.finish;
                let flow = sink(request, Event::Token(event));
                if let Some(finish) = finish {
                    self.end(id, finish);
                }
                if flow.is_break() {
                    self.cancel(request);
                }
            }
        }
    }

    pub(super) fn end(&mut self, id: SequenceId, finish: Finish) {
        let sequence = match finish {
            Finish::Cancelled => self.scheduler.remove(id),
            _ => self.scheduler.finish(id),
        };
        if let Some(sequence) = sequence {
            self.count_end(&sequence.state, sequence.output().len(), finish);
        }
    }

    /// Removes a request; returns whether it was there.
    fn remove_all(&mut self, request: u64) -> bool {
        let ids = self.of_request(request);
        for id in &ids {
            self.scheduler.remove(*id);
        }
        !ids.is_empty()
    }

    fn of_request(&self, request: u64) -> Vec<SequenceId> {
        let all = self.scheduler.running().iter().chain(self.scheduler.waiting());
        all.filter(|s| s.state.request == request).map(|s| s.id).collect()
    }

    pub(super) fn count_end(&mut self, state: &Generating, tokens: usize, finish: Finish) {
        let stats = &mut self.stats;
        let count = match finish {
            Finish::EndOfSequence(_) | Finish::StopToken(_) | Finish::Stop(_) => {
                &mut stats.finished_stop
            }
            Finish::Length => &mut stats.finished_length,
            Finish::Cancelled => &mut stats.finished_abort,
        };
        *count += 1;
        let times = state.times;
        stats.request_generation_tokens.add(tokens as f64);
        stats.e2e_latency.add_time(times.arrival.elapsed());
        if let (Some(first), Some(last)) = (times.first_token, times.last_token) {
            stats.decode_time.add_time(last - first);
        }
    }

    pub(super) fn update_gauges(&mut self) {
        let blocks = self.scheduler.blocks();
        self.stats.running = self.scheduler.running().len();
        self.stats.waiting = self.scheduler.waiting().len();
        self.stats.used_blocks = blocks.blocks() - blocks.available();
        self.stats.cached_blocks = blocks.cached();
    }
}

/// What a new token, or the end without one, means for its sequence.
fn take(
    sequence: &mut Sequence<Generating>,
    token: Option<TokenLogprob>,
) -> Result<NewToken, ServeError> {
    let new = sequence.output().len();
    let Generating { stopping, text, number, .. } = &mut sequence.state;
    let id = token.as_ref().map(|t| t.token);
    // Before `min_tokens` none of them can be drawn.
    let end = id.and_then(|id| match id {
        id if stopping.eos_ids.contains(&id) => Some(Finish::EndOfSequence(id)),
        id if stopping.stop_token_ids.contains(&id) => Some(Finish::StopToken(id)),
        _ => None,
    });
    let mut finish = end.or((new >= stopping.max_tokens).then_some(Finish::Length));
    let mut piece = String::new();
    if let (Some(id), None | Some(Finish::Length)) = (id, finish) {
        let (text, stop) = text.push(Some(id))?;
        piece = text;
        finish = stop.map(Finish::Stop).or(finish);
    }
    if finish.is_some() && !matches!(finish, Some(Finish::Stop(_))) {
        let (rest, stop) = text.push(None)?;
        piece += &rest;
        finish = stop.map(Finish::Stop).or(finish);
    }
    Ok(NewToken { sequence: *number, token, text: piece, finish })
}

pub(super) fn end_of(state: &Generating, finish: Finish) -> Event {
    let (sequence, text) = (state.number, String::new());
    Event::Token(NewToken { sequence, token: None, text, finish: Some(finish) })
}

/// Counts a token and the time it took.
fn note_time(state: &mut Generating, stats: &mut Stats) {
    let now = Instant::now();
    stats.generation_tokens += 1;
    let times = &mut state.times;
    match times.last_token {
        Some(last) => stats.inter_token_latency.add_time(now - last),
        None => {
            times.first_token = Some(now);
            stats.time_to_first_token.add_time(now - times.arrival);
            stats.prefill_time.add_time(now - times.admitted.unwrap_or(times.arrival));
        }
    }
    times.last_token = Some(now);
}

/// Whether a sequence may end with its new token.
fn may_end(sequence: &Sequence<Generating>, token: u32) -> bool {
    let Generating { stopping, text, .. } = &sequence.state;
    stopping.end_ids().any(|id| id == token)
        || sequence.output().len() >= stopping.max_tokens
        || text.may_stop()
}
