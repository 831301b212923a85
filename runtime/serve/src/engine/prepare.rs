//! Checking a request, and what a sequence carries while it is answered.

use std::{sync::Arc, time::Instant};

use text::{Constraint, Tokenizer};

use crate::{
    Limits, Sampler, ServeError,
    detokenizer::Detokenizer,
    engine::{Request, TokenLogprob},
};

/// A request that the model can answer.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// What is to be computed: the prompt, without its last token if only that is to be scored.
    pub(crate) context: Vec<u32>,
    pub(crate) max_tokens: usize,
    pub(crate) priority: i32,
    pub(crate) cache_salt: Option<String>,
    /// Its sequences, at least one.
    pub(crate) states: Vec<Generating>,
}

/// What belongs to a sequence besides its tokens and blocks.
#[derive(Debug)]
pub(crate) struct Generating {
    /// Number of its request.
    pub(crate) request: u64,
    /// Its number within the request.
    pub(crate) number: usize,
    pub(crate) sampler: Sampler,
    pub(crate) text: Detokenizer,
    /// What the output must follow.
    pub(crate) constraint: Option<Constraint>,
    pub(crate) stopping: Stopping,
    pub(crate) top_logprobs: usize,
    pub(crate) prompt: Option<PromptLogprobs>,
    /// Those that will go on from the same prompt.
    pub(crate) forks: Vec<Generating>,
    pub(crate) cached_tokens: usize,
    pub(crate) times: Times,
}

/// When a sequence ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stopping {
    /// New tokens at most.
    pub(crate) max_tokens: usize,
    /// New tokens before which it does not end by itself.
    pub(crate) min_tokens: usize,
    /// End-of-sequence tokens, none if they are to be ignored.
    pub(crate) eos_ids: Arc<[u32]>,
    /// Further tokens that end it.
    pub(crate) stop_token_ids: Arc<[u32]>,
}

/// Probabilities of a prompt's tokens, as far as they are known.
#[derive(Clone, Debug, Default)]
pub(crate) struct PromptLogprobs {
    pub(crate) top: usize,
    pub(crate) done: Vec<Option<TokenLogprob>>,
    /// The prompt's last token, where nothing is to be computed after it.
    pub(crate) last: Option<u32>,
}

/// When what happened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) arrival: Instant,
    pub(crate) admitted: Option<Instant>,
    pub(crate) first_token: Option<Instant>,
    pub(crate) last_token: Option<Instant>,
}

impl Stopping {
    /// Every token that it may end at.
    pub(crate) fn end_ids(&self) -> impl Iterator<Item = u32> {
        self.eos_ids.iter().chain(&*self.stop_token_ids).copied()
    }
}

/// Checks a request against a model with key/value memory for `positions` tokens.
///
/// # Errors
/// [`ServeError::Request`], which names the field.
pub(crate) fn prepare(
    request: Request,
    number: u64,
    limits: &Limits,
    tokenizer: Option<&Tokenizer>,
    eos_ids: &[u32],
) -> Result<Prepared, ServeError> {
    let Request { mut prompt, params, n, .. } = request;
    check_tokens(&prompt, limits)?;
    if n == 0 || n > 128 {
        return Err(ServeError::request("n", format!("is {n}, and must be 1 to 128")));
    }
    let len = prompt.len();
    let longest = limits.longest();
    let max_tokens = match params.max_tokens {
        Some(max_tokens) => max_tokens,
        None => longest.saturating_sub(len),
    };
    if len > longest || max_tokens > longest - len {
        return Err(ServeError::request("prompt", too_long(len, max_tokens, limits)));
    }
    let min_tokens = params.min_tokens;
    if min_tokens > max_tokens {
        let reason = format!("is {min_tokens}, above the {max_tokens} tokens to generate");
        return Err(ServeError::request("min_tokens", reason));
    }
    for (field, count) in [
        ("logprobs", request.top_logprobs),
        ("prompt_logprobs", request.prompt_logprobs.unwrap_or(0)),
    ] {
        if count > limits.vocab_size {
            let reason = format!("is {count}, and there are {} tokens", limits.vocab_size);
            return Err(ServeError::request(field, reason));
        }
    }
    let sampler = Sampler::new(params.sampling.clone(), 0)?;
    sampler.params().check_vocabulary(limits.vocab_size)?;
    let stopping = Stopping {
        max_tokens,
        min_tokens,
        eos_ids: if params.ignore_eos { Arc::from([]) } else { eos_ids.into() },
        stop_token_ids: params.stop_token_ids.as_slice().into(),
    };
    let mut logprobs =
        request.prompt_logprobs.map(|top| PromptLogprobs { top, done: vec![None], last: None });
    let now = Instant::now();
    let times = Times { arrival: now, admitted: None, first_token: None, last_token: None };
    let state = |number_in_request: usize| {
        Ok(Generating {
            request: number,
            number: number_in_request,
            sampler: sampler.fork(number_in_request as u64),
            text: Detokenizer::new(tokenizer, &prompt, &params)?
                .until(request.first_call.clone(), params.stop.len()),
            constraint: request.constraint.clone(),
            stopping: stopping.clone(),
            top_logprobs: request.top_logprobs,
            prompt: None,
            forks: Vec::new(),
            cached_tokens: 0,
            times,
        })
    };
    let mut states = (0..n).map(state).collect::<Result<Vec<_>, ServeError>>()?;
    if max_tokens == 0 {
        // Nothing depends on what comes after the last token.
        let last = prompt.pop();
        logprobs = logprobs.map(|logprobs| PromptLogprobs { last, ..logprobs });
        if logprobs.is_none() {
            prompt.clear();
        }
    }
    states[0].prompt = logprobs;
    let Request { priority, cache_salt, .. } = request;
    Ok(Prepared { context: prompt, max_tokens, priority, cache_salt, states })
}

/// Why prompt and new tokens do not fit.
pub(crate) fn too_long(len: usize, max_tokens: usize, limits: &Limits) -> String {
    let (compiled, positions) = (limits.max_seq_len, limits.positions());
    if limits.longest() < compiled {
        return format!(
            "{len} tokens and {max_tokens} new ones are more than the {positions} that the \
             key/value memory holds; give it more"
        );
    }
    format!(
        "{len} tokens and {max_tokens} new ones are more than the {compiled} that the model is \
         compiled or opened for"
    )
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
