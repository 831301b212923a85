//! Sequences that grow token by token.
//!
//! A step takes tokens whose keys and values are not computed yet: first those of prompts, cut
//! where the model's limit on tokens says, then one of each sequence. There are no phases: a
//! sequence whose last token is in the step gets a new one. The loop knows nothing of text.

use std::ops::ControlFlow;

use crate::{Batch, BlockPool, BlockTable, Draw, Limits, Sampler, ServeError, StepModel};

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// At this end-of-sequence token, its last.
    EndOfSequence(u32),
    /// It has as many tokens as were asked for.
    Length,
    /// At the stop string of this number.
    Stop(usize),
    /// The caller wanted no more.
    Cancelled,
}

/// A prompt and what has been generated after it.
#[derive(Debug)]
pub struct Sequence {
    /// The prompt, then the new tokens.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Tokens whose keys and values are in the blocks.
    computed: usize,
    table: BlockTable,
    sampler: Sampler,
    max_tokens: usize,
    min_tokens: usize,
    end_ids: Vec<u32>,
    logprobs: Vec<f32>,
    finish: Option<Finish>,
}

/// When a sequence ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stopping {
    /// New tokens at most.
    pub max_tokens: usize,
    /// New tokens before which no end-of-sequence token is drawn.
    pub min_tokens: usize,
    /// End-of-sequence tokens.
    pub end_ids: Vec<u32>,
}

/// A new token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NewToken {
    /// Number of its sequence.
    pub sequence: usize,
    /// Its id.
    pub token: u32,
    /// Logarithm of its probability, whatever the sampling.
    pub logprob: f32,
    /// Why the sequence ends with it.
    pub finish: Option<Finish>,
}

impl Sequence {
    /// A sequence with room in the pool for all its tokens.
    ///
    /// # Errors
    /// [`ServeError::Request`] for an empty prompt, ids out of the vocabulary in prompt or sampling
    /// parameters, more tokens than the model or the pool takes.
    pub fn new(
        prompt: &[u32],
        sampler: Sampler,
        stopping: Stopping,
        limits: &Limits,
        pool: &mut BlockPool,
    ) -> Result<Sequence, ServeError> {
        check_tokens(prompt, limits)?;
        sampler.params().check_vocabulary(limits.vocab_size)?;
        let Stopping { max_tokens, min_tokens, end_ids } = stopping;
        let total = prompt.len().saturating_add(max_tokens);
        if total > limits.max_seq_len {
            let reason = format!(
                "{} tokens and {max_tokens} new ones are more than the {} that the model is \
                 compiled or opened for",
                prompt.len(),
                limits.max_seq_len
            );
            return Err(ServeError::request("prompt", reason));
        }
        if min_tokens > max_tokens {
            let reason = format!("is {min_tokens}, above the {max_tokens} tokens to generate");
            return Err(ServeError::request("min_tokens", reason));
        }
        let mut table = pool.table();
        pool.grow(&mut table, total).map_err(|e| ServeError::request("prompt", e.to_string()))?;
        Ok(Sequence {
            tokens: prompt.to_vec(),
            prompt_len: prompt.len(),
            computed: 0,
            table,
            sampler,
            max_tokens,
            min_tokens,
            end_ids,
            logprobs: Vec::new(),
            finish: (max_tokens == 0).then_some(Finish::Length),
        })
    }

    /// The new tokens.
    pub fn new_tokens(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// The logarithms of the new tokens' probabilities.
    pub fn logprobs(&self) -> &[f32] {
        &self.logprobs
    }

    /// Why it ended, if it has.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    fn pending(&self) -> usize {
        if self.finish.is_some() { 0 } else { self.tokens.len() - self.computed }
    }

    fn is_in_prompt(&self) -> bool {
        self.pending() > 0 && self.computed < self.prompt_len
    }

    fn draw(&mut self, logits: &[f32]) -> Option<u32> {
        let Sequence { sampler, tokens, prompt_len, min_tokens, end_ids, .. } = self;
        let (prompt, output) = tokens.split_at(*prompt_len);
        let banned: &[u32] = if output.len() < *min_tokens { end_ids } else { &[] };
        sampler.sample(Draw { logits, prompt, output, banned, mask: None })
    }

    fn push(&mut self, token: u32, logprob: f32) {
        self.tokens.push(token);
        self.logprobs.push(logprob);
        if self.end_ids.contains(&token) {
            self.finish = Some(Finish::EndOfSequence(token));
        } else if self.logprobs.len() == self.max_tokens {
            self.finish = Some(Finish::Length);
        }
    }
}

/// Computes one step of those sequences that have not ended; returns whether there were any.
///
/// `on_token` sees every new token and may end its sequence for a reason of its own.
///
/// # Errors
/// What the model reports, [`ServeError::NotFinite`], and [`ServeError::Request`] where sampling
/// parameters forbid every token.
pub fn advance<M: StepModel>(
    model: &mut M,
    sequences: &mut [Sequence],
    batch: &mut Batch,
    mut on_token: impl FnMut(NewToken) -> Result<ControlFlow<Finish>, ServeError>,
) -> Result<bool, ServeError> {
    let limits = model.limits();
    // Prompts first, so that the sequences then go on together.
    let prefill = sequences.iter().any(Sequence::is_in_prompt);
    let mut parts: Vec<(usize, usize)> = Vec::new();
    let (mut room, mut rows) = (limits.max_batch_tokens, limits.max_rows);
    batch.clear();
    for (index, sequence) in sequences.iter().enumerate() {
        if prefill && !sequence.is_in_prompt() {
            continue;
        }
        let pending = sequence.pending();
        let count = pending.min(room);
        let is_last = count == pending;
        if count == 0 || parts.len() == limits.max_sequences || (is_last && rows == 0) {
            continue;
        }
        let tokens = &sequence.tokens[sequence.computed..][..count];
        let wanted = if is_last { count - 1..count } else { 0..0 };
        rows -= wanted.len();
        room -= count;
        batch.push(limits, tokens, sequence.computed, &sequence.table, wanted);
        parts.push((index, count));
    }
    if parts.is_empty() {
        return Ok(false);
    }
    let logits = model.step(batch)?;
    let mut row = 0;
    for (index, count) in parts {
        let sequence = &mut sequences[index];
        sequence.computed += count;
        if sequence.pending() > 0 {
            continue;
        }
        let position = sequence.tokens.len();
        let token = sequence.draw(logits.row(row));
        let token = token.ok_or_else(|| no_token(logits.row(row), position - 1))?;
        let logprob = logits.logprob(row, token);
        if !logprob.is_finite() {
            return Err(ServeError::logits(position - 1));
        }
        row += 1;
        sequence.push(token, logprob);
        let finish = sequence.finish;
        if let ControlFlow::Break(finish) =
            on_token(NewToken { sequence: index, token, logprob, finish })?
        {
            sequence.finish = Some(finish);
        }
    }
    Ok(true)
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

/// Checks that there are tokens and that all of them are in the vocabulary.
pub(crate) fn check_tokens(tokens: &[u32], limits: &Limits) -> Result<(), ServeError> {
    let size = limits.vocab_size;
    if tokens.is_empty() {
        let reason = "is empty; the model needs at least one token to go on from";
        return Err(ServeError::request("prompt", reason));
    }
    let is_unknown = |token: &u32| *token as usize >= size;
    if let Some(index) = tokens.iter().position(is_unknown) {
        let token = tokens[index];
        let reason = format!("token {index} is {token}, and the vocabulary has ids below {size}");
        return Err(ServeError::request("prompt", reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
