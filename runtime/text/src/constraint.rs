//! Structured output: which tokens may come next so that the text keeps to a schema or a grammar.
//!
//! A [`Structure`] says what the text must be, a [`GrammarCompiler`] turns it into a [`Constraint`]
//! for one vocabulary, and the constraint gives a mask of allowed tokens before each one is
//! sampled. llguidance does the work: a lexer of regular expression derivatives (Brzozowski 1964)
//! under an Earley parser (Earley 1970), run over a trie of the vocabulary's bytes. The crate adds
//! what a server needs: bytes of every token from the tokenizer's own decoder, limits on what a
//! request may cost, errors in place of panics, and reasoning before the structure begins.

mod before;
mod compiler;
mod limits;
mod vocabulary;

use std::sync::Arc;

use llguidance::{
    Matcher,
    toktrie::{SimpleVob, TokEnv},
};
use serde_json::Value;

use crate::error::TextError;

use before::{BeforeMasks, Lead, Place};

pub use compiler::GrammarCompiler;

pub(crate) use compiler::with_json_options;
pub(crate) use limits::check_schema;

/// What a text must be, as a whole.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Structure {
    /// JSON that a schema accepts (draft 2020-12 and before, `$ref` within the schema only).
    /// Properties come in the schema's order; keywords that cannot be enforced are refused.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// Text that a regular expression matches from end to end, in the `regex` crate's syntax
    /// without look-around; `^` at its start and `$` at its end change nothing.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text that a context-free grammar derives from `start`, in llguidance's variant of Lark's
    /// syntax.
    Grammar(String),
}

/// The state of one text under a [`Structure`].
///
/// Clones go on independently.
#[derive(Clone)]
pub struct Constraint {
    matcher: Matcher,
    eos_ids: Box<[u32]>,
    /// How many tokens a mask covers.
    vocab_size: usize,
    /// The structure's mask of the present state, once it was asked for.
    mask: Option<SimpleVob>,
    /// What may come before the answer; `None` once it has begun.
    before: Option<Before>,
    ended: bool,
}

/// A text whose answer has not begun, as far as is certain.
#[derive(Clone)]
struct Before {
    masks: Arc<BeforeMasks>,
    vocabulary: TokEnv,
    stage: Stage,
    /// The mask of tokens of the answer and of those before it.
    mask: Vec<u32>,
}

#[derive(Clone)]
enum Stage {
    /// Reasoning, or an answer that the structure has accepted so far: how the text may yet turn
    /// out to be reasoning, and the text.
    Undecided(Lead, Vec<u8>),
    /// Reasoning with its tags, at a place of it.
    Reasoning(Place),
    /// The closing tag has come, and so many line breaks after it.
    Closed(usize),
}

impl Constraint {
    /// The tokens that may come next: one bit each from the lowest of the first word on, set where
    /// the token is allowed. The tokens that end a text are allowed exactly when the text so far is
    /// complete.
    ///
    /// # Errors
    /// [`TextError::Constraint`] if no token of the vocabulary leads on, or if computing the mask
    /// exceeds its budget.
    pub fn mask(&mut self) -> Result<&[u32], TextError> {
        let words = self.vocab_size.div_ceil(32);
        let Some(before) = &mut self.before else {
            return answer_mask(&mut self.matcher, &mut self.mask, words);
        };
        let Before { masks, stage, mask, .. } = before;
        let (place, goes_on) = match stage {
            Stage::Reasoning(place) => return Ok(masks.allowed(*place)),
            Stage::Undecided(Lead::Tag(matched), _) => (Place::Opening(*matched), true),
            Stage::Undecided(Lead::Character, _) => (Place::Opening(0), false),
            Stage::Closed(line_breaks) => (Place::Closed, *line_breaks < before::MAX_LINE_BREAKS),
        };
        let answer = answer_mask(&mut self.matcher, &mut self.mask, words)?;
        let taken = masks.taken(place);
        mask.clear();
        mask.extend(answer.iter().zip(taken).map(|(answer, taken)| answer & !taken));
        if goes_on {
            mask.iter_mut().zip(masks.allowed(place)).for_each(|(all, allowed)| *all |= allowed);
        }
        Ok(mask.as_slice())
    }

    /// Takes the token that was sampled.
    ///
    /// # Errors
    /// [`TextError::Constraint`] if the mask did not allow it, which leaves the state as it was.
    pub fn accept(&mut self, token: u32) -> Result<(), TextError> {
        if self.before.is_none() {
            return self.accept_answer(token);
        }
        if !has(self.mask()?, token) {
            return Err(not_allowed(token));
        }
        let Some(Before { masks, vocabulary, stage, .. }) = &mut self.before else { return Ok(()) };
        let text = before::text(vocabulary.tok_trie(), token).unwrap_or_default();
        let place = match stage {
            Stage::Reasoning(place) => *place,
            Stage::Closed(line_breaks) => {
                if let Some(Place::Closed) = Place::Closed.after(text) {
                    *line_breaks += text.len();
                    return Ok(());
                }
                self.before = None;
                return self.accept_answer(token);
            }
            Stage::Undecided(lead, read) => {
                let place = match lead {
                    Lead::Tag(matched) => Place::Opening(*matched),
                    Lead::Character => Place::Opening(0),
                };
                let is_answer = self.mask.as_ref().is_some_and(|mask| has(mask.as_slice(), token));
                if is_answer && !has(masks.taken(place), token) {
                    read.extend_from_slice(text);
                    // A special token is no whitespace.
                    match before::lead(read).filter(|_| !text.is_empty()) {
                        Some(next) => *lead = next,
                        None => self.before = None,
                    }
                    return self.accept_answer(token);
                }
                if !read.is_empty() {
                    // It is reasoning, so what the structure has accepted was no answer.
                    self.matcher.reset().map_err(|error| stuck(&error.to_string()))?;
                    self.mask = None;
                }
                place
            }
        };
        if let Some(next) = place.after(text) {
            *stage = match next {
                Place::Closed => Stage::Closed(0),
                next => Stage::Reasoning(next),
            };
        }
        Ok(())
    }

    /// Whether the text is complete and nothing may follow but its end. A vocabulary without
    /// end-of-sequence tokens has empty masks from here on.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.ended || self.before.is_none() && self.is_complete()
    }

    /// Lets reasoning come first, from a mask of the first token of an answer on.
    ///
    /// # Errors
    /// [`TextError::Structure`] if every text of the structure begins with a line break: those
    /// after reasoning are no part of the answer.
    fn after_reasoning(
        mut self,
        masks: Arc<BeforeMasks>,
        vocabulary: TokEnv,
        begins_within: Option<bool>,
    ) -> Result<Self, TextError> {
        let stage = match begins_within {
            Some(false) => return Ok(self),
            Some(true) => Stage::Reasoning(Place::Reasoning),
            None => Stage::Undecided(Lead::Tag(0), Vec::new()),
        };
        let first = self.mask()?.iter().zip(masks.taken(Place::Closed));
        if first.fold(0, |all, (answer, taken)| all | answer & !taken) == 0 {
            let reason = "its texts begin with line breaks, and an answer after reasoning does not";
            return Err(TextError::Structure { reason: reason.to_owned() });
        }
        self.before = Some(Before { masks, vocabulary, stage, mask: Vec::new() });
        Ok(self)
    }

    fn accept_answer(&mut self, token: u32) -> Result<(), TextError> {
        let is_eos = self.eos_ids.contains(&token);
        if self.ended || self.is_complete() {
            self.ended |= is_eos;
            return if is_eos { Ok(()) } else { Err(not_allowed(token)) };
        }
        let words = self.vocab_size.div_ceil(32);
        if !has(answer_mask(&mut self.matcher, &mut self.mask, words)?, token) {
            return Err(not_allowed(token));
        }
        self.mask = None;
        if is_eos {
            self.ended = true;
        }
        self.matcher.consume_token(token).map_err(|error| stuck(&error.to_string()))
    }

    /// Whether nothing may follow what the structure has accepted.
    fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

/// The mask of the structure alone, computed once for a state.
fn answer_mask<'a>(
    matcher: &mut Matcher,
    mask: &'a mut Option<SimpleVob>,
    words: usize,
) -> Result<&'a [u32], TextError> {
    let computed = match mask.take() {
        Some(mask) => mask,
        None => matcher.compute_mask_or_eos().map_err(|error| stuck(&error.to_string()))?,
    };
    Ok(&mask.insert(computed).as_slice()[..words])
}

fn has(mask: &[u32], token: u32) -> bool {
    let Ok(index) = usize::try_from(token) else { return false };
    mask.get(index / 32).is_some_and(|word| word >> (index % 32) & 1 == 1)
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint")
            .field("vocab_size", &self.vocab_size)
            .field("is_finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}

fn stuck(message: &str) -> TextError {
    let reason = match compiler::first_line(message) {
        "NoExtensionBias" => "no token of the vocabulary leads on".to_owned(),
        reason => reason.to_owned(),
    };
    TextError::Constraint { reason }
}

fn not_allowed(token: u32) -> TextError {
    TextError::Constraint { reason: format!("token {token} is not allowed here") }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use tests::walk;
