//! What a step's logits tell: probabilities of prompts' tokens, and the next token of sequences.
//!
//! Most tokens follow from the heads of rows. The rows of those that do not are asked for together.

use std::ops::Range;

use super::answers::News;
use crate::{
    Logits, ServeError,
    engine::{
        PromptDone, TokenLogprob,
        prepare::{Generating, Stopping},
    },
    sampler::Draw,
    scheduler::{Part, Scheduler},
    sequence::{Sequence, SequenceId},
};

/// What is known of a sequence's next token.
struct Next {
    id: SequenceId,
    row: usize,
    /// The token, if the head of the row tells it.
    token: Option<u32>,
}

enum Found {
    News(News),
    Next(Next),
}

/// Reads what a step has computed of its parts; `next` is the last number of a sequence.
///
/// # Errors
/// What the device reports that holds the rows.
pub(super) fn draw_all(
    scheduler: &mut Scheduler<Generating>,
    parts: &[Part],
    logits: &Logits<'_>,
    next: &mut u64,
) -> Result<Vec<News>, ServeError> {
    let ends = parts.iter().scan(0, |end, part| {
        *end += part.rows.len();
        Some(*end)
    });
    let rows: Vec<Range<usize>> =
        ends.zip(parts).map(|(end, part)| end - part.rows.len()..end).collect();
    let mut whole = Vec::new();
    for (part, rows) in parts.iter().zip(&rows) {
        scheduler.commit(part);
        if let Some(sequence) = scheduler.get_mut(part.id) {
            whole.extend(rows_of_prompt(sequence, part, logits, rows.start));
        }
    }
    logits.fetch(&whole)?;
    let mut found = Vec::with_capacity(parts.len());
    for (part, rows) in parts.iter().zip(&rows) {
        begin(scheduler, part, logits, rows, next, &mut found);
    }
    let undecided = |found: &Found| match found {
        Found::Next(Next { row, token: None, .. }) => Some(*row),
        _ => None,
    };
    logits.fetch(&found.iter().filter_map(undecided).collect::<Vec<_>>())?;
    let tell = |found| match found {
        Found::News(news) => Some(news),
        Found::Next(next) => finish(scheduler, next, logits),
    };
    Ok(found.into_iter().filter_map(tell).collect())
}

/// Reads a part, and draws what the head of its last row tells: for its sequence, and its forks.
fn begin(
    scheduler: &mut Scheduler<Generating>,
    part: &Part,
    logits: &Logits<'_>,
    rows: &Range<usize>,
    next: &mut u64,
    found: &mut Vec<Found>,
) {
    let Some(sequence) = scheduler.get_mut(part.id) else { return };
    let request = sequence.state.request;
    if let Err(error) = read_prompt(sequence, part, logits, rows.start) {
        found.push(Found::News(News::Broken { request, error }));
        return;
    }
    if sequence.pending() > 0 {
        return;
    }
    if sequence.output().is_empty() {
        let state = &mut sequence.state;
        let done = state.prompt.as_ref().map_or_else(Vec::new, |prompt| prompt.done.clone());
        let prompt = PromptDone { cached_tokens: state.cached_tokens, logprobs: done };
        found.push(Found::News(News::Prompt { request, prompt }));
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
        found.push(match sequence.state.stopping.max_tokens {
            0 => Found::News(News::Token { id, token: None }),
            _ => {
                let row = rows.end - 1;
                Found::Next(Next { id, row, token: draw_from_head(sequence, logits, row) })
            }
        });
    }
}

/// Draws the next token of a sequence, of whose row all is there that it takes.
fn finish(
    scheduler: &mut Scheduler<Generating>,
    Next { id, row, token }: Next,
    logits: &Logits<'_>,
) -> Option<News> {
    let sequence = scheduler.get_mut(id)?;
    let request = sequence.state.request;
    Some(match draw(sequence, logits, row, token) {
        Ok(token) => {
            sequence.tokens.push(token.token);
            News::Token { id, token: Some(token) }
        }
        Err(error) => News::Broken { request, error },
    })
}

/// Tokens of the prompt that a part's rows tell about: the row, the token and its position.
fn of_prompt(
    sequence: &Sequence<Generating>,
    part: &Part,
    first_row: usize,
) -> Vec<(usize, u32, usize)> {
    let Sequence { tokens, prompt_len, computed, state, .. } = sequence;
    let Some(prompt) = &state.prompt else { return Vec::new() };
    let start = *computed - part.count;
    let mut known = prompt.done.len();
    let mut found = Vec::new();
    for (row, index) in (first_row..).zip(part.rows.clone()) {
        // The row after this position tells about the next token.
        let position = start + index + 1;
        let next = match tokens[..*prompt_len].get(position) {
            Some(token) => Some(*token),
            None => prompt.last.filter(|_| position == *prompt_len),
        };
        let Some(token) = next.filter(|_| position == known) else { continue };
        found.push((row, token, position));
        known += 1;
    }
    found
}

/// Rows that have to be whole for the probabilities of the prompt.
fn rows_of_prompt(
    sequence: &Sequence<Generating>,
    part: &Part,
    logits: &Logits<'_>,
    first_row: usize,
) -> Vec<usize> {
    let top = sequence.state.prompt.as_ref().map_or(0, |prompt| prompt.top);
    let needs = |(row, token, _): &(usize, u32, usize)| logits.needs_row(*row, *token, top);
    let tokens = of_prompt(sequence, part, first_row).into_iter();
    tokens.filter(needs).map(|(row, ..)| row).collect()
}

/// Collects the probabilities of prompt tokens that the part's rows tell.
fn read_prompt(
    sequence: &mut Sequence<Generating>,
    part: &Part,
    logits: &Logits<'_>,
    first_row: usize,
) -> Result<(), ServeError> {
    let told = of_prompt(sequence, part, first_row);
    let Sequence { prompt_len, state, rows_from, .. } = sequence;
    let Some(prompt) = &mut state.prompt else { return Ok(()) };
    for (row, token, position) in told {
        prompt.done.push(Some(token_logprob(logits, row, token, prompt.top, position)?));
    }
    let rows = prompt.done.len() - 1;
    let wanted = *prompt_len - usize::from(prompt.last.is_none());
    *rows_from = (rows < wanted).then_some(rows);
    Ok(())
}

/// Draws from the head of a row, if that tells the token and all that is told with it.
fn draw_from_head(
    sequence: &mut Sequence<Generating>,
    logits: &Logits<'_>,
    row: usize,
) -> Option<u32> {
    let head = logits.head(row)?;
    let (prompt, output) = sequence.tokens.split_at(sequence.prompt_len);
    let Generating { sampler, stopping, top_logprobs, constraint, .. } = &mut sequence.state;
    let banned = banned(stopping, output.len());
    // A mask that fails does so again when the row is drawn from.
    let mask = constraint.as_mut().map(|constraint| constraint.mask()).transpose().ok()?;
    let draw = Draw { logits: &[], prompt, output, banned: &banned, mask };
    let token = sampler.sample_from_head(head, draw)?;
    (!logits.needs_row(row, token, *top_logprobs)).then_some(token)
}

/// Draws the next token of a sequence, unless it is known.
fn draw(
    sequence: &mut Sequence<Generating>,
    logits: &Logits<'_>,
    row: usize,
    known: Option<u32>,
) -> Result<TokenLogprob, ServeError> {
    let position = sequence.tokens.len();
    let (prompt, output) = sequence.tokens.split_at(sequence.prompt_len);
    let Generating { sampler, stopping, top_logprobs, constraint, .. } = &mut sequence.state;
    let token = match known {
        Some(token) => token,
        None => {
            let banned = banned(stopping, output.len());
            let mask = constraint.as_mut().map(|constraint| constraint.mask()).transpose()?;
            let logits = logits.row(row)?;
            let token = sampler.sample(Draw { logits, prompt, output, banned: &banned, mask });
            token.ok_or_else(|| no_token(logits, position - 1))?
        }
    };
    if let Some(constraint) = constraint {
        constraint.accept(token)?;
    }
    token_logprob(logits, row, token, *top_logprobs, position)
}

/// Tokens that must not come after so many new ones.
fn banned(stopping: &Stopping, output: usize) -> Vec<u32> {
    if output < stopping.min_tokens { stopping.end_ids().collect() } else { Vec::new() }
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
