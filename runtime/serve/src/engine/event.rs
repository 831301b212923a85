//! What the engine answers, piece by piece.

use crate::{ServeError, sequence::Finish};

/// A token with its probability by the raw model, whatever the sampling.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Its id.
    pub token: u32,
    /// Logarithm of its probability.
    pub logprob: f32,
    /// Its place among all tokens, from 1 on.
    pub rank: usize,
    /// The most likely tokens, as many as were asked for, the likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// News of a request. The last of each sequence has a [`finish`](NewToken::finish); an error is the
/// last of the request.
#[derive(Debug)]
pub enum Event {
    /// The prompt is computed. Comes once, before all tokens.
    Prompt(PromptDone),
    /// A sequence has a new token, or ends without one (`max_tokens: 0`).
    Token(NewToken),
    /// The request cannot be answered.
    Failed(ServeError),
}

/// The prompt has been computed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptDone {
    /// Tokens whose keys and values were found in the prefix cache.
    pub cached_tokens: usize,
    /// One for each token of the prompt, `None` for the first; empty unless asked for.
    pub logprobs: Vec<Option<TokenLogprob>>,
}

/// A new token of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct NewToken {
    /// Number of the sequence within its request, from 0 to `n - 1`.
    pub sequence: usize,
    /// The token; `None` if the sequence ends without one.
    pub token: Option<TokenLogprob>,
    /// Text that has become certain with it: often that of the token before, or none.
    pub text: String,
    /// Why the sequence ends with it.
    pub finish: Option<Finish>,
}
