//! Structured output: which tokens may come next so that the text keeps to a schema or a grammar.
//!
//! A [`Structure`] says what the text must be, a [`GrammarCompiler`] turns it into a [`Constraint`]
//! for one vocabulary, and the constraint gives a mask of allowed tokens before each one is
//! sampled. llguidance does the work: a lexer of regular expression derivatives (Brzozowski 1964)
//! under an Earley parser (Earley 1970), run over a trie of the vocabulary's bytes. The crate adds
//! what a server needs: bytes of every token from the tokenizer's own decoder, limits on what a
//! request may cost, and errors in place of panics.

mod compiler;
mod limits;
mod vocabulary;

use llguidance::{Matcher, toktrie::SimpleVob};
use serde_json::Value;

use crate::error::TextError;

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
    /// The mask of the present state, once it was asked for.
    mask: Option<SimpleVob>,
    ended: bool,
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
        let mask = match self.mask.take() {
            Some(mask) => mask,
            None => {
                self.matcher.compute_mask_or_eos().map_err(|error| stuck(&error.to_string()))?
            }
        };
        let words = self.vocab_size.div_ceil(32);
        Ok(&self.mask.insert(mask).as_slice()[..words])
    }

    /// Takes the token that was sampled.
    ///
    /// # Errors
    /// [`TextError::Constraint`] if the mask did not allow it, which leaves the state as it was.
    pub fn accept(&mut self, token: u32) -> Result<(), TextError> {
        let is_eos = self.eos_ids.contains(&token);
        if self.is_finished() {
            self.ended |= is_eos;
            return if is_eos { Ok(()) } else { Err(not_allowed(token)) };
        }
        if !self.allows(token)? {
            return Err(not_allowed(token));
        }
        self.mask = None;
        if is_eos {
            self.ended = true;
        }
        self.matcher.consume_token(token).map_err(|error| stuck(&error.to_string()))
    }

    /// Whether the text is complete and nothing may follow but its end. A vocabulary without
    /// end-of-sequence tokens has empty masks from here on.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.ended || (self.matcher.is_stopped() && !self.matcher.is_error())
    }

    fn allows(&mut self, token: u32) -> Result<bool, TextError> {
        let Ok(index) = usize::try_from(token) else { return Ok(false) };
        let word = self.mask()?.get(index / 32).copied().unwrap_or(0);
        Ok(word >> (index % 32) & 1 == 1)
    }
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
