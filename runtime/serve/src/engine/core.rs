//! The loop: decide on a step, compute it, draw tokens, tell the news.
//!
//! It runs on whatever thread calls [`Core::step`] and knows nothing of threads, clients or HTTP.

mod answers;
mod drawing;

use std::{ops::ControlFlow, panic, thread, time::Instant};

use text::Constraint;

use self::{
    answers::{Answers, end_of},
    drawing::draw_all,
};
use crate::{
    Batch, BlockManager, Logits, ServeError, StepModel,
    engine::{
        Event, PromptDone, Stats,
        prepare::{Generating, Prepared},
    },
    scheduler::{Budget, Part, Plan, Scheduler},
    sequence::{Finish, Sequence, SequenceId},
};

/// Takes an event of a request; to break ends the request.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(u64, Event) -> ControlFlow<()>;

/// A model and all that it is working on.
#[derive(Debug)]
pub(crate) struct Core<M> {
    model: M,
    batch: Batch,
    next: u64,
    answers: Answers,
}

impl<M: StepModel> Core<M> {
    pub(crate) fn new(model: M, budget: Budget, prefix_cache: bool) -> Core<M> {
        let limits = model.limits();
        let blocks = BlockManager::new(limits.blocks, limits.block_size, prefix_cache)
            .with_window(limits.window);
        let answers = Answers::new(Scheduler::new(budget, blocks));
        Core { model, batch: Batch::default(), next: 0, answers }
    }

    pub(crate) fn model(&self) -> &M {
        &self.model
    }

    pub(crate) fn model_mut(&mut self) -> &mut M {
        &mut self.model
    }

    pub(crate) fn scheduler(&self) -> &Scheduler<Generating> {
        &self.answers.scheduler
    }

    pub(crate) fn stats(&self) -> &Stats {
        &self.answers.stats
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.scheduler().running().is_empty() && self.scheduler().waiting().is_empty()
    }

    /// Takes a request. One for which nothing is to be computed is answered at once.
    pub(crate) fn add(&mut self, prepared: Prepared, sink: Sink<'_>) {
        let Prepared { context, max_tokens, priority, cache_salt, mut states } = prepared;
        let forks = states.split_off(1);
        let Some(mut state) = states.pop() else { return };
        self.answers.stats.prompt_tokens += context.len() as u64;
        self.answers.stats.request_prompt_tokens.add(context.len() as f64);
        if context.is_empty() {
            let logprobs = state.prompt.take().map_or_else(Vec::new, |prompt| prompt.done);
            let prompt = PromptDone { cached_tokens: 0, logprobs };
            let mut flow = sink(state.request, Event::Prompt(prompt));
            for state in std::iter::once(state).chain(forks) {
                self.answers.count_end(&state, 0, Finish::Length);
                if flow.is_continue() {
                    flow = sink(state.request, end_of(&state, Finish::Length));
                }
            }
            return;
        }
        let rows_from = state.prompt.as_ref().map(|_| 0);
        let count = forks.len();
        state.forks = forks;
        let (id, salt) = (self.id(), cache_salt.as_deref());
        let blocks = self.answers.scheduler.blocks();
        let mut sequence = Sequence::new(id, context, max_tokens, salt, blocks, state);
        sequence.priority = priority;
        sequence.forks = count;
        sequence.rows_from = rows_from;
        self.answers.scheduler.add(sequence);
        self.answers.update_gauges();
    }

    /// Ends a request, wherever it is; gives the text that its sequences held back.
    pub(crate) fn cancel(&mut self, request: u64) -> String {
        self.answers.cancel(request)
    }

    /// Ends all requests with an error each.
    pub(crate) fn fail_all(&mut self, error: impl FnMut() -> ServeError, sink: Sink<'_>) {
        self.answers.fail_all(error, sink);
    }

    /// Computes one step; returns whether there was anything to do.
    ///
    /// What a step before it has brought may be told only now, while the device computes.
    ///
    /// # Errors
    /// What the model reports. What is wrong with one request alone is told to that request.
    pub(crate) fn step(&mut self, sink: Sink<'_>) -> Result<bool, ServeError> {
        let Core { model, batch, next, answers } = self;
        let Plan { copies, parts, admitted, preempted } = answers.scheduler.schedule();
        answers.stats.preemptions += preempted as u64;
        for (id, cached) in admitted {
            answers.admit(id, cached);
        }
        if parts.is_empty() {
            answers.tell_held(sink);
            answers.update_gauges();
            return Ok(false);
        }
        for copy in copies {
            model.copy_block(copy)?;
        }
        batch.clear();
        for part in &parts {
            if let Some(sequence) = answers.scheduler.get_mut(part.id) {
                let start = sequence.computed;
                let tokens = &sequence.tokens[start..start + part.count];
                batch.push(model.limits(), tokens, start, &sequence.table, part.rows.clone());
            }
        }
        answers.stats.steps += 1;
        answers.stats.iteration_tokens.add(batch.tokens.len() as f64);
        let (start, holds) = (Instant::now(), model.goes_on_alone());
        let logits = step_beside_masks(model, batch, (answers, &parts), sink)?;
        answers.stats.model_time += start.elapsed();
        answers.tell_held(sink);
        for new in draw_all(&mut answers.scheduler, &parts, &logits, next)? {
            if holds { answers.hold(new, sink) } else { answers.tell(new, sink) }
        }
        #[cfg(debug_assertions)]
        self.check();
        self.answers.update_gauges();
        Ok(true)
    }

    /// Checks what must always hold between memory and sequences.
    #[cfg(any(test, debug_assertions))]
    pub(crate) fn check(&self) {
        let all = self.scheduler().running().iter().chain(self.scheduler().waiting());
        self.scheduler().blocks().check(all.map(|sequence| &sequence.table));
    }

    fn id(&mut self) -> SequenceId {
        self.next += 1;
        SequenceId(self.next)
    }
}

/// Computes the step, and on another thread the masks of structured output that its draws need:
/// they follow from the tokens so far. What was held is told as soon as the device computes.
fn step_beside_masks<'a, M: StepModel>(
    model: &'a mut M,
    batch: &Batch,
    (answers, parts): (&mut Answers, &[Part]),
    sink: Sink<'_>,
) -> Result<Logits<'a>, ServeError> {
    let mut constraints: Vec<(SequenceId, Constraint)> = Vec::new();
    for part in parts.iter().filter(|part| part.rows.end == part.count) {
        let sequence = answers.scheduler.get_mut(part.id);
        let constraint = sequence.and_then(|sequence| sequence.state.constraint.take());
        constraints.extend(constraint.map(|constraint| (part.id, constraint)));
    }
    let mut tell = || answers.tell_held(sink);
    if constraints.is_empty() {
        return model.step(batch, &mut tell);
    }
    let (logits, constraints) = thread::scope(|scope| {
        let masks = scope.spawn(move || {
            for (_, constraint) in &mut constraints {
                // It keeps the mask, or fails again when the mask is asked for.
                let _ = constraint.mask();
            }
            constraints
        });
        let logits = model.step(batch, &mut tell);
        (logits, masks.join().unwrap_or_else(|payload| panic::resume_unwind(payload)))
    });
    for (id, constraint) in constraints {
        if let Some(sequence) = answers.scheduler.get_mut(id) {
            sequence.state.constraint = Some(constraint);
        }
    }
    logits
}

#[cfg(test)]
mod tests;
