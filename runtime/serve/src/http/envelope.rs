//! What answers and chunks of generated text have around their choices: whose they are, and what
//! they have used.

use serde_json::{Value, json};

use super::{App, app::unix_seconds, generation::Outputs};

/// Around the choices of one call.
pub(super) struct Envelope {
    pub(super) id: String,
    created: u64,
    model: String,
    usage: Usage,
    pub(super) tally: Tally,
}

/// What a stream tells of its usage.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) at_end: bool,
    pub(super) in_chunks: bool,
}

/// What a call has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) prompt_tokens: usize,
    pub(super) cached_tokens: usize,
    pub(super) completion_tokens: usize,
}

impl Envelope {
    /// For a call whose prompts have so many tokens; its id begins with `prefix`.
    pub(super) fn new(
        app: &App,
        prefix: &str,
        model: &str,
        usage: Usage,
        prompt_tokens: usize,
    ) -> Envelope {
        let tally = Tally { prompt_tokens, ..Tally::default() };
        let (id, created, model) = (app.id(prefix), unix_seconds(), model.to_owned());
        Envelope { id, created, model, usage, tally }
    }

    /// The whole answer.
    pub(super) fn whole(&mut self, object: &str, choices: &[Value], outputs: &Outputs) -> Value {
        self.tally = Tally::of(self.tally.prompt_tokens, outputs);
        let mut whole = self.around(object, choices);
        whole["usage"] = self.tally.json();
        whole
    }

    /// A chunk of a stream.
    pub(super) fn chunk(&self, object: &str, choice: Value) -> Value {
        let mut chunk = self.around(object, &[choice]);
        if self.usage.in_chunks {
            chunk["usage"] = self.tally.json();
        } else if self.usage.at_end {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// The chunk without choices that tells the usage at the end, if it is to be told there.
    pub(super) fn last(&self, object: &str) -> Option<Value> {
        let mut last = self.around(object, &[]);
        last["usage"] = self.tally.json();
        Some(last).filter(|_| self.usage.at_end)
    }

    fn around(&self, object: &str, choices: &[Value]) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }
}

impl Tally {
    fn json(self) -> Value {
        let Tally { prompt_tokens, cached_tokens, completion_tokens } = self;
        json!({
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        })
    }

    /// Of everything that came.
    fn of(prompt_tokens: usize, outputs: &Outputs) -> Tally {
        let tokens = outputs.sequences.iter().flatten().map(|output| output.tokens.len());
        Tally {
            prompt_tokens,
            cached_tokens: outputs.prompts.iter().map(|prompt| prompt.cached_tokens).sum(),
            completion_tokens: tokens.sum(),
        }
    }
}
