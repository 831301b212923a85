//! The loop: decide on a step, compute it, draw tokens, tell the news.
//!
//! It runs on whatever thread calls [`Core::step`] and knows nothing of threads, clients or HTTP.

use std::{ops::ControlFlow, panic, thread, time::Instant};

use text::Constraint;

use crate::{
    Batch, BlockManager, Logits, ServeError, StepModel,
    engine::{
        Event, NewToken, PromptDone, Stats, TokenLogprob,
        prepare::{Generating, Prepared},
    },
    sampler::Draw,
    scheduler::{Budget, Part, Plan, Scheduler},
    sequence::{Finish, Sequence, SequenceId},
};

/// Takes an event of a request; to break ends the request.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(u64, Event) -> ControlFlow<()>;

/// A model and all that it is working on.
#[derive(Debug)]
pub(crate) struct Core<M> {
    model: M,
    scheduler: Scheduler<Generating>,
    batch: Batch,
    next: u64,
    stats: Stats,
}

impl<M: StepModel> Core<M> {
    pub(crate) fn new(model: M, budget: Budget, prefix_cache: bool) -> Core<M> {
        let limits = model.limits();
        let blocks = BlockManager::new(limits.blocks, limits.block_size, prefix_cache)
            .with_window(limits.window);
        let stats = Stats { blocks: blocks.blocks(), ..Stats::default() };
        let scheduler = Scheduler::new(budget, blocks);
        Core { model, scheduler, batch: Batch::default(), next: 0, stats }
    }

    pub(crate) fn model(&self) -> &M {
        &self.model
    }

    pub(crate) fn model_mut(&mut self) -> &mut M {
        &mut self.model
    }

    pub(crate) fn scheduler(&self) -> &Scheduler<Generating> {
        &self.scheduler
    }

    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.scheduler.running().is_empty() && self.scheduler.waiting().is_empty()
    }

    /// Takes a request. One for which nothing is to be computed is answered at once.
    pub(crate) fn add(&mut self, prepared: Prepared, sink: Sink<'_>) {
        let Prepared { context, max_tokens, priority, cache_salt, mut states } = prepared;
        let forks = states.split_off(1);
        let Some(mut state) = states.pop() else { return };
        self.stats.prompt_tokens += context.len() as u64;
        self.stats.request_prompt_tokens.add(context.len() as f64);
        if context.is_empty() {
            let logprobs = state.prompt.take().map_or_else(Vec::new, |prompt| prompt.done);
            let prompt = PromptDone { cached_tokens: 0, logprobs };
            let mut flow = sink(state.request, Event::Prompt(prompt));
            for state in std::iter::once(state).chain(forks) {
                self.count_end(&state, 0, Finish::Length);
                if flow.is_continue() {
                    flow = sink(state.request, end(&state, Finish::Length));
                }
            }
            return;
        }
        let rows_from = state.prompt.as_ref().map(|_| 0);
        let count = forks.len();
        state.forks = forks;
        let (id, salt) = (self.id(), cache_salt.as_deref());
        let blocks = self.scheduler.blocks();
        let mut sequence = Sequence::new(id, context, max_tokens, salt, blocks, state);
        sequence.priority = priority;
        sequence.forks = count;
        sequence.rows_from = rows_from;
        self.scheduler.add(sequence);
        self.update_gauges();
    }

    /// Ends a request, wherever it is; gives the text that its sequences held back.
    pub(crate) fn cancel(&mut self, request: u64) -> String {
        let mut rest = String::new();
        for id in self.of_request(request) {
            if let Some(sequence) = self.scheduler.get_mut(id)
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
    pub(crate) fn fail_all(&mut self, mut error: impl FnMut() -> ServeError, sink: Sink<'_>) {
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

    /// Computes one step; returns whether there was anything to do.
    ///
    /// # Errors
    /// What the model reports. What is wrong with one request alone is told to that request.
    pub(crate) fn step(&mut self, sink: Sink<'_>) -> Result<bool, ServeError> {
        let Plan { copies, parts, admitted, preempted } = self.scheduler.schedule();
        self.stats.preemptions += preempted as u64;
        for (id, cached) in admitted {
            self.admit(id, cached);
        }
        if parts.is_empty() {
            self.update_gauges();
            return Ok(false);
        }
        let Core { model, scheduler, batch, stats, .. } = self;
        for copy in copies {
            model.copy_block(copy)?;
        }
        batch.clear();
        for part in &parts {
            if let Some(sequence) = scheduler.get_mut(part.id) {
                let start = sequence.computed;
                let tokens = &sequence.tokens[start..start + part.count];
                batch.push(model.limits(), tokens, start, &sequence.table, part.rows.clone());
            }
        }
        stats.steps += 1;
        stats.iteration_tokens.add(batch.tokens.len() as f64);
        let start = Instant::now();
        let logits = step_beside_masks(model, batch, scheduler, &parts)?;
        stats.model_time += start.elapsed();
        let mut row = 0;
        let mut news = Vec::with_capacity(parts.len());
        for part in &parts {
            let rows = row..row + part.rows.len();
            row = rows.end;
            scheduler.commit(part);
            let next = &mut self.next;
            compute_part(scheduler, part, &logits, rows, next, &mut news);
        }
        for new in news {
            self.tell(new, sink);
        }
        #[cfg(debug_assertions)]
        self.check();
        self.update_gauges();
        Ok(true)
    }

    /// Checks what must always hold between memory and sequences.
    #[cfg(any(test, debug_assertions))]
    pub(crate) fn check(&self) {
        let all = self.scheduler.running().iter().chain(self.scheduler.waiting());
        self.scheduler.blocks().check(all.map(|sequence| &sequence.table));
    }

    fn id(&mut self) -> SequenceId {
        self.next += 1;
        SequenceId(self.next)
    }

    fn admit(&mut self, id: SequenceId, cached: usize) {
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

    /// Tells the news of a sequence, and ends it if that is part of them.
    fn tell(&mut self, new: News, sink: Sink<'_>) {
        let Core { scheduler, stats, .. } = self;
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
                let Some(sequence) = scheduler.get_mut(id) else { return };
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

    fn end(&mut self, id: SequenceId, finish: Finish) {
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

    fn count_end(&mut self, state: &Generating, tokens: usize, finish: Finish) {
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

    fn update_gauges(&mut self) {
        let blocks = self.scheduler.blocks();
        self.stats.running = self.scheduler.running().len();
        self.stats.waiting = self.scheduler.waiting().len();
        self.stats.used_blocks = blocks.blocks() - blocks.available();
        self.stats.cached_blocks = blocks.cached();
    }
}

/// Computes the step, and on another thread the masks of structured output that its draws need:
/// they follow from the tokens so far.
fn step_beside_masks<'a, M: StepModel>(
    model: &'a mut M,
    batch: &Batch,
    scheduler: &mut Scheduler<Generating>,
    parts: &[Part],
) -> Result<Logits<'a>, ServeError> {
    let mut constraints: Vec<(SequenceId, Constraint)> = Vec::new();
    for part in parts.iter().filter(|part| part.rows.end == part.count) {
        let sequence = scheduler.get_mut(part.id);
        let constraint = sequence.and_then(|sequence| sequence.state.constraint.take());
        constraints.extend(constraint.map(|constraint| (part.id, constraint)));
    }
    if constraints.is_empty() {
        return model.step(batch);
    }
    let (logits, constraints) = thread::scope(|scope| {
        let masks = scope.spawn(move || {
            for (_, constraint) in &mut constraints {
                // It keeps the mask, or fails again when the mask is asked for.
                let _ = constraint.mask();
            }
            constraints
        });
        let logits = model.step(batch);
        (logits, masks.join().unwrap_or_else(|payload| panic::resume_unwind(payload)))
    });
    for (id, constraint) in constraints {
        if let Some(sequence) = scheduler.get_mut(id) {
            sequence.state.constraint = Some(constraint);
        }
    }
    logits
}

/// What a step has brought.
enum News {
    Prompt { request: u64, prompt: PromptDone },
    Token { id: SequenceId, token: Option<TokenLogprob> },
    Broken { request: u64, error: ServeError },
}

/// Reads what a step has computed of a sequence: probabilities of its prompt's tokens, and the next
/// token of it and its forks.
fn compute_part(
    scheduler: &mut Scheduler<Generating>,
    part: &Part,
    logits: &Logits<'_>,
    rows: std::ops::Range<usize>,
    next: &mut u64,
    news: &mut Vec<News>,
) {
    let Some(sequence) = scheduler.get_mut(part.id) else { return };
    let request = sequence.state.request;
    if let Err(error) = read_prompt(sequence, part, logits, rows.start) {
        news.push(News::Broken { request, error });
        return;
    }
    if sequence.pending() > 0 {
        return;
    }
    if sequence.output().is_empty() {
        let state = &mut sequence.state;
        let done = state.prompt.as_ref().map_or_else(Vec::new, |prompt| prompt.done.clone());
        let prompt = PromptDone { cached_tokens: state.cached_tokens, logprobs: done };
        news.push(News::Prompt { request, prompt });
    }
    let forks = std::mem::take(&mut sequence.state.forks);
    let mut ids = vec![part.id];
    for state in forks {
        *next += 1;
        let id = SequenceId(*next);
        if scheduler.fork(part.id, id, state).is_some() {
            ids.push(id);
        }
    }
    for id in ids {
        let Some(sequence) = scheduler.get_mut(id) else { continue };
        if sequence.state.stopping.max_tokens == 0 {
            news.push(News::Token { id, token: None });
            continue;
        }
        match draw(sequence, logits, rows.end - 1) {
            Ok(token) => {
                sequence.tokens.push(token.token);
                news.push(News::Token { id, token: Some(token) });
            }
            Err(error) => news.push(News::Broken { request, error }),
        }
    }
}

/// Collects the probabilities of prompt tokens that the part's rows tell.
fn read_prompt(
    sequence: &mut Sequence<Generating>,
    part: &Part,
    logits: &Logits<'_>,
    first_row: usize,
) -> Result<(), ServeError> {
    let Sequence { tokens, prompt_len, computed, state, rows_from, .. } = sequence;
    let Some(prompt) = &mut state.prompt else { return Ok(()) };
    let start = *computed - part.count;
    for (row, index) in (first_row..).zip(part.rows.clone()) {
        // The row after this position tells about the next token.
        let position = start + index + 1;
        let next = match tokens[..*prompt_len].get(position) {
            Some(token) => Some(*token),
            None => prompt.last.filter(|_| position == *prompt_len),
        };
        let Some(token) = next.filter(|_| position == prompt.done.len()) else { continue };
        prompt.done.push(Some(token_logprob(logits, row, token, prompt.top, position)?));
    }
    let rows = prompt.done.len() - 1;
    let wanted = *prompt_len - usize::from(prompt.last.is_none());
    *rows_from = (rows < wanted).then_some(rows);
    Ok(())
}

/// Draws the next token of a sequence.
fn draw(
    sequence: &mut Sequence<Generating>,
    logits: &Logits<'_>,
    row: usize,
) -> Result<TokenLogprob, ServeError> {
    let position = sequence.tokens.len();
    let (prompt, output) = sequence.tokens.split_at(sequence.prompt_len);
    let Generating { sampler, stopping, top_logprobs, constraint, .. } = &mut sequence.state;
    let is_early = output.len() < stopping.min_tokens;
    let banned: Vec<u32> = if is_early { stopping.end_ids().collect() } else { vec![] };
    let mask = constraint.as_mut().map(|constraint| constraint.mask()).transpose()?;
    let draw = Draw { logits: &[], prompt, output, banned: &banned, mask };
    let token = match logits.head(row).and_then(|head| sampler.sample_from_head(head, draw)) {
        Some(token) => token,
        None => {
            let logits = logits.row(row)?;
            let token = sampler.sample(Draw { logits, ..draw });
            token.ok_or_else(|| no_token(logits, position - 1))?
        }
    };
    if let Some(constraint) = constraint {
        constraint.accept(token)?;
    }
    token_logprob(logits, row, token, *top_logprobs, position)
}

/// Why no token can be drawn after a position: the logits or the request.
fn no_token(logits: &[f32], position: usize) -> ServeError {
    let is_broken = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
    if logits.iter().any(is_broken) || logits.iter().all(|l| *l == f32::NEG_INFINITY) {
        return ServeError::logits(position);
    }
    let reason = format!(
        "leave no token to go on with after position {position}; allow more tokens or forbid fewer"
    );
    ServeError::request("sampling parameters", reason)
}

fn token_logprob(
    logits: &Logits<'_>,
    row: usize,
    token: u32,
    top: usize,
    position: usize,
) -> Result<TokenLogprob, ServeError> {
    let logit = logits.logit(row, token)?;
    let logprob = logit - logits.logsumexp(row);
    if !logprob.is_finite() {
        if logit != f32::NEG_INFINITY {
            return Err(ServeError::logits(position - 1));
        }
        let what = format!("token {token} at position {position} is impossible");
        return Err(ServeError::NotFinite { what });
    }
    let (rank, top) = match top {
        0 => (0, Vec::new()),
        top => (logits.rank(row, token)?, logits.top_logprobs(row, top)?),
    };
    Ok(TokenLogprob { token, logprob, rank, top })
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

fn end(state: &Generating, finish: Finish) -> Event {
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

#[cfg(test)]
mod tests;
