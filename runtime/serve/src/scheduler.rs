//! Which sequences take part in the next step, and with how many tokens.
//!
//! There are no phases: a sequence has tokens, of which some are computed, and a step computes more
//! of them, under a budget of tokens (Yu et al. 2022, "Orca"; Agrawal et al. 2024,
//! arXiv:2403.02310). First come those that have one token pending, then parts of prompts in the
//! room that is left, which is small while others decode, so that no prompt holds them up for long.
//!
//! A request is admitted when memory is expected to last for it and for all that run, by what
//! requests have used of what they asked for so far. One that does not fit may be passed by later
//! ones that do, but [`MAX_OVERTAKEN`] times at most; from then on it is next. When memory runs out
//! all the same, the last of the running gives its blocks back and is computed again later; what it
//! had computed mostly survives in the prefix cache. The first of the running is never the one to
//! give way and fits alone, so there is always progress. Where queries see a window, one that is
//! longer than all memory fits as well, in parts that there is room for beside the window.
//!
//! The scheduler knows nothing of models, sampling or text.

use std::ops::Range;

use crate::{
    BlockManager, Limits,
    block_manager::BlockCopy,
    sequence::{Sequence, SequenceId},
};

mod expectation;
mod room;

use expectation::Expectation;
use room::Room;

/// Times that a waiting request may be passed by later ones.
pub const MAX_OVERTAKEN: u32 = 64;

/// What a step may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Tokens.
    pub max_batch_tokens: usize,
    /// Tokens of prompts, while other sequences decode.
    pub prefill_chunk: usize,
    /// Sequences.
    pub max_sequences: usize,
    /// Rows of logits.
    pub max_rows: usize,
    /// Sequences that run at once.
    pub max_running: usize,
}

impl Budget {
    /// All that a model takes.
    pub fn of(limits: &Limits) -> Budget {
        Budget {
            max_batch_tokens: limits.max_batch_tokens,
            prefill_chunk: limits.max_batch_tokens,
            max_sequences: limits.max_sequences,
            max_rows: limits.max_rows,
            max_running: limits.max_sequences,
        }
    }
}

/// What one sequence computes in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The sequence.
    pub id: SequenceId,
    /// Tokens, from its first uncomputed one on.
    pub count: usize,
    /// Which of them rows of logits are wanted after.
    pub rows: Range<usize>,
}

/// A step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Blocks to copy first, in this order.
    pub copies: Vec<BlockCopy>,
    /// What to compute.
    pub parts: Vec<Part>,
    /// Sequences that have left the queue, with the tokens that the prefix cache had of them.
    pub admitted: Vec<(SequenceId, usize)>,
    /// Sequences that had to give way.
    pub preempted: usize,
}

/// All sequences of an engine, and its memory.
#[derive(Debug)]
pub struct Scheduler<T> {
    budget: Budget,
    blocks: BlockManager,
    /// In the order in which they go on.
    running: Vec<Sequence<T>>,
    /// Not in order.
    waiting: Vec<Sequence<T>>,
    expectation: Expectation,
    step: u64,
}

impl<T> Scheduler<T> {
    /// A scheduler without sequences.
    pub fn new(budget: Budget, blocks: BlockManager) -> Scheduler<T> {
        let expectation = Expectation::default();
        Scheduler { budget, blocks, running: vec![], waiting: vec![], expectation, step: 0 }
    }

    /// The memory.
    pub fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// Sequences that take part in steps.
    pub fn running(&self) -> &[Sequence<T>] {
        &self.running
    }

    /// Sequences that wait for room.
    pub fn waiting(&self) -> &[Sequence<T>] {
        &self.waiting
    }

    /// A running sequence.
    pub fn get_mut(&mut self, id: SequenceId) -> Option<&mut Sequence<T>> {
        self.running.iter_mut().find(|s| s.id == id)
    }

    /// A sequence, running or waiting.
    pub fn find_mut(&mut self, id: SequenceId) -> Option<&mut Sequence<T>> {
        self.running.iter_mut().chain(&mut self.waiting).find(|s| s.id == id)
    }

    /// Adds a sequence that has a token to compute and fits into memory when alone.
    pub fn add(&mut self, sequence: Sequence<T>) {
        debug_assert!(self.blocks.fits(sequence.max_len));
        self.waiting.push(sequence);
    }

    /// Takes out a sequence that has ended by itself, and learns from it how long answers are.
    pub fn finish(&mut self, id: SequenceId) -> Option<Sequence<T>> {
        let sequence = self.remove(id)?;
        self.expectation.learn(sequence.output().len(), sequence.max_len - sequence.prompt_len);
        Some(sequence)
    }

    /// Takes a sequence out, wherever it is.
    pub fn remove(&mut self, id: SequenceId) -> Option<Sequence<T>> {
        let from = |list: &mut Vec<Sequence<T>>| {
            let index = list.iter().position(|s| s.id == id)?;
            Some(list.remove(index))
        };
        let mut sequence = from(&mut self.running).or_else(|| from(&mut self.waiting))?;
        sequence.close(&mut self.blocks);
        Some(sequence)
    }

    /// Adds a running sequence that shares all that `of` has computed.
    pub fn fork(&mut self, of: SequenceId, id: SequenceId, state: T) -> Option<()> {
        let Scheduler { running, blocks, .. } = self;
        let index = running.iter().position(|s| s.id == of)?;
        let parent = &mut running[index];
        parent.forks = parent.forks.saturating_sub(1);
        let fork = parent.fork(id, blocks, state);
        running.push(fork);
        self.sort_running();
        Some(())
    }

    /// Notes that a part has been computed.
    pub fn commit(&mut self, part: &Part) {
        let Some(sequence) = self.running.iter_mut().find(|s| s.id == part.id) else { return };
        sequence.computed += part.count;
        let computed = &sequence.tokens[..sequence.computed];
        self.blocks.commit(&mut sequence.table, computed);
    }

    /// Decides on the next step. It has no parts only if nothing is running or waiting.
    pub fn schedule(&mut self) -> Plan {
        self.step += 1;
        let mut plan = Plan::default();
        let Budget { max_batch_tokens, max_sequences, max_rows, .. } = self.budget;
        let mut room = Room { tokens: max_batch_tokens, sequences: max_sequences, rows: max_rows };
        // Those that did not fit into the last step first.
        let mut decoding: Vec<(u64, SequenceId)> =
            self.running.iter().filter(|s| s.is_decoding()).map(|s| (s.last_step, s.id)).collect();
        if decoding.len() > max_sequences.min(max_batch_tokens).min(max_rows) {
            decoding.sort_unstable();
        }
        for (_, id) in decoding {
            self.place(id, &mut room, &mut plan);
        }
        if !plan.parts.is_empty() {
            room.tokens = room.tokens.min(self.budget.prefill_chunk);
        }
        let prompts: Vec<SequenceId> =
            self.running.iter().filter(|s| !s.is_decoding()).map(|s| s.id).collect();
        for id in prompts {
            self.place(id, &mut room, &mut plan);
        }
        if plan.preempted == 0 {
            self.admit(&mut room, &mut plan);
        }
        for part in &plan.parts {
            if let Some(s) = self.running.iter_mut().find(|s| s.id == part.id) {
                s.last_step = self.step;
            }
        }
        plan
    }

    /// Gives a running sequence a part of the step, taking memory from later ones if need be.
    fn place(&mut self, id: SequenceId, room: &mut Room, plan: &mut Plan) {
        loop {
            let Some(index) = self.running.iter().position(|s| s.id == id) else { return };
            let sequence = &mut self.running[index];
            let most = self.blocks.most_tokens(&sequence.table, sequence.computed);
            let Some(part) = room.part(sequence, most) else { return };
            let (start, end) = (sequence.computed, sequence.computed + part.count);
            match self.blocks.grow(&mut sequence.table, start, end) {
                Ok(copy) => {
                    plan.copies.extend(copy);
                    room.take(&part);
                    plan.parts.push(part);
                    return;
                }
                Err(_) => self.preempt(room, plan),
            }
        }
    }

    /// Takes the memory of the last running sequence.
    fn preempt(&mut self, room: &mut Room, plan: &mut Plan) {
        let Some(mut victim) = self.running.pop() else { return };
        victim.close(&mut self.blocks);
        plan.preempted += 1;
        if let Some(index) = plan.parts.iter().position(|p| p.id == victim.id) {
            // Its tokens stay spent: they may have been of another kind than what comes now.
            let part = plan.parts.remove(index);
            room.sequences += 1;
            room.rows += part.rows.len();
        }
        self.waiting.push(victim);
    }

    /// Admits waiting sequences as long as there is room.
    fn admit(&mut self, room: &mut Room, plan: &mut Plan) {
        self.waiting.sort_by_key(|s| (s.overtaken < MAX_OVERTAKEN, s.priority, s.id));
        let mut index = 0;
        while index < self.waiting.len() && room.tokens > 0 && room.sequences > 0 {
            if !self.fits(&self.waiting[index]) {
                if self.waiting[index].overtaken >= MAX_OVERTAKEN {
                    return;
                }
                index += 1;
                continue;
            }
            let mut sequence = self.waiting.remove(index);
            for earlier in self.waiting.iter_mut().filter(|s| s.id < sequence.id) {
                earlier.overtaken += 1;
            }
            plan.copies.extend(sequence.open(&mut self.blocks));
            let (id, cached) = (sequence.id, sequence.computed);
            plan.admitted.push((id, cached));
            self.running.push(sequence);
            self.sort_running();
            let before = plan.preempted;
            self.place(id, room, plan);
            if plan.preempted > before || self.waiting.iter().any(is_starving) {
                return;
            }
        }
    }

    /// Whether memory is expected to last for a waiting sequence beside those that run.
    fn fits(&self, sequence: &Sequence<T>) -> bool {
        let seats: usize = self.running.iter().map(|s| 1 + s.forks).sum();
        if self.running.is_empty() {
            return true;
        }
        if seats + 1 + sequence.forks > self.budget.max_running {
            return false;
        }
        let found = self.blocks.find(sequence.salt(), sequence.cacheable());
        let unseen = self.blocks.paging().unseen(self.expected_len(sequence));
        let shared = found.used.min(found.blocks.saturating_sub(unseen));
        let needed = self.expected_blocks(sequence) - shared;
        let reserved: usize = self
            .running
            .iter()
            .map(|s| self.expected_blocks(s).saturating_sub(s.table.blocks().len()))
            .sum();
        needed + reserved <= self.blocks.available()
    }

    /// Tokens that a sequence is expected to have in the end.
    fn expected_len(&self, sequence: &Sequence<T>) -> usize {
        let Sequence { prompt_len, max_len, .. } = *sequence;
        let done = sequence.output().len();
        let rest = self.expectation.rest(done, max_len - prompt_len);
        prompt_len + done + rest.max(1).min(max_len - prompt_len - done)
    }

    /// Blocks that a sequence and its forks are expected to have at once.
    fn expected_blocks(&self, sequence: &Sequence<T>) -> usize {
        let (len, paging) = (self.expected_len(sequence), self.blocks.paging());
        let step = self.budget.max_batch_tokens.min(self.budget.prefill_chunk);
        let blocks = paging.at_once(len, sequence.pending().min(step));
        let common = (sequence.prompt_len / paging.block_size()).max(paging.unseen(len));
        blocks + sequence.forks * paging.blocks_for(len).saturating_sub(common)
    }

    fn sort_running(&mut self) {
        self.running.sort_by_key(|s| (s.priority, s.id));
    }
}

fn is_starving<T>(sequence: &Sequence<T>) -> bool {
    sequence.overtaken >= MAX_OVERTAKEN
}

#[cfg(test)]
mod tests;
