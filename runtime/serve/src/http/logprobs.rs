//! How log-probabilities are told: by completions, by chat, and vLLM's of prompts.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use text::TokenBytes;

use super::app::finite;
use crate::engine::TokenLogprob;

/// Names of tokens.
#[derive(Clone, Debug)]
pub(super) struct Names {
    bytes: Option<Arc<TokenBytes>>,
    as_ids: bool,
}

impl Names {
    /// By their text, or `as_ids`; without a tokenizer always so.
    pub(super) fn new(bytes: Option<Arc<TokenBytes>>, as_ids: bool) -> Names {
        Names { bytes, as_ids }
    }

    /// A token's bytes, if the model has a tokenizer.
    pub(super) fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        Some(self.bytes.as_ref()?.of(id))
    }

    /// A token's text, with U+FFFD for what is not UTF-8.
    pub(super) fn text(&self, id: u32) -> String {
        match self.bytes(id).filter(|_| !self.as_ids) {
            Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            None => format!("token_id:{id}"),
        }
    }

    /// A token's text; parts of characters as bytes, so that they differ.
    fn key(&self, id: u32) -> String {
        match self.bytes(id).filter(|_| !self.as_ids) {
            Some(bytes) => String::from_utf8(bytes).unwrap_or_else(|error| {
                let escaped = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
                format!("bytes:{}", escaped.collect::<String>())
            }),
            None => format!("token_id:{id}"),
        }
    }
}

/// The `logprobs` of a completion, token after token.
#[derive(Debug, Default)]
pub(super) struct CompletionLogprobs {
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<Value>,
}

impl CompletionLogprobs {
    /// Adds a token that begins at this character of the text, with at most so many of the
    /// likeliest; the first of a prompt has no probability.
    pub(super) fn push(
        &mut self,
        names: &Names,
        (token, logprob): (u32, Option<&TokenLogprob>),
        most: usize,
        offset: usize,
    ) {
        let name = names.key(token);
        let top = logprob.map(|logprob| {
            let mut top = Map::new();
            let told = logprob.top.iter().copied().take(most).chain([(token, logprob.logprob)]);
            for (id, logprob) in told {
                top.entry(names.key(id)).or_insert_with(|| finite(logprob));
            }
            Value::Object(top)
        });
        self.tokens.push(name.into());
        self.token_logprobs.push(logprob.map_or(Value::Null, |l| finite(l.logprob)));
        self.top_logprobs.push(top.unwrap_or_default());
        self.text_offset.push(offset.into());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Takes what is there, as JSON.
    pub(super) fn take(&mut self) -> Value {
        let CompletionLogprobs { tokens, token_logprobs, top_logprobs, text_offset } =
            std::mem::take(self);
        json!({
            "tokens": tokens,
            "token_logprobs": token_logprobs,
            "top_logprobs": top_logprobs,
            "text_offset": text_offset,
        })
    }
}

/// A token in the `logprobs` of a chat's answer.
pub(super) fn chat_token(names: &Names, token: &TokenLogprob) -> Value {
    let entry = |id: u32, logprob: f32| {
        let (token, bytes) = (names.text(id), names.bytes(id));
        json!({"token": token, "logprob": finite(logprob), "bytes": bytes})
    };
    let mut value = entry(token.token, token.logprob);
    let top = token.top.iter().map(|(id, logprob)| entry(*id, *logprob));
    value["top_logprobs"] = top.collect();
    value
}

/// vLLM's `prompt_logprobs`: for each token but the first, its probability and those of at most so
/// many of the likeliest, by id.
pub(super) fn of_prompt(names: &Names, logprobs: &[Option<TokenLogprob>], most: usize) -> Value {
    let entry = |id: u32, logprob: f32, rank: usize| {
        let decoded = names.text(id);
        json!({"logprob": finite(logprob), "rank": rank, "decoded_token": decoded})
    };
    let one = |logprob: &Option<TokenLogprob>| {
        let Some(TokenLogprob { token, logprob, rank, top }) = logprob else { return Value::Null };
        let mut by_id = Map::new();
        by_id.insert(token.to_string(), entry(*token, *logprob, *rank));
        for (index, (id, logprob)) in top.iter().take(most).enumerate() {
            by_id.entry(id.to_string()).or_insert_with(|| entry(*id, *logprob, index + 1));
        }
        Value::Object(by_id)
    };
    logprobs.iter().map(one).collect()
}
