//! A message as JSON, whole or in chunks.

use serde_json::{Map, Value, json};

use super::{
    Call,
    splitter::{Piece, Splitter},
};
use crate::{
    Finish,
    engine::{Event, NewToken, TokenLogprob},
    http::{
        App,
        envelope::Envelope,
        error::ApiError,
        generation::{Outputs, reasons},
        logprobs::{Names, chat_token, of_prompt},
        sse::Chunks,
    },
};

const CHUNK: &str = "chat.completion.chunk";

/// What an answer is made with.
pub(super) struct Answer {
    call: Call,
    envelope: Envelope,
    names: Names,
    choices: Vec<Choice>,
}

/// A message so far.
struct Choice {
    splitter: Splitter,
    /// Ids of its calls.
    calls: Vec<String>,
    /// Log-probabilities that no chunk has told.
    logprobs: Vec<Value>,
    tokens: Vec<u32>,
}

impl Answer {
    pub(super) fn new(app: &App, call: Call) -> Answer {
        let splitter = call.splitter(app);
        let choice = |_| Choice {
            splitter: splitter.clone(),
            calls: Vec::new(),
            logprobs: Vec::new(),
            tokens: Vec::new(),
        };
        let (usage, prompt_tokens) = (call.params.usage, call.prompt.len());
        Answer {
            envelope: Envelope::new(app, "chatcmpl", &call.model, usage, prompt_tokens),
            names: Names::new(app.token_bytes(), call.params.tokens_as_ids),
            choices: (0..call.params.request.n).map(choice).collect(),
            call,
        }
    }

    /// The whole answer.
    pub(super) fn whole(mut self, outputs: &Outputs) -> Value {
        let mut choices = Vec::new();
        for (index, output) in outputs.sequences.iter().flatten().enumerate() {
            let choice = &mut self.choices[index];
            let mut pieces = choice.splitter.push(&output.text);
            pieces.extend(choice.splitter.finish());
            let message = self.message(index, pieces);
            for token in &output.tokens {
                self.note(index, token);
            }
            let mut value = json!({"index": index, "message": message});
            value["logprobs"] = self.logprobs(index);
            self.finish(&mut value, index, output.finish);
            if self.call.params.return_token_ids {
                value["token_ids"] = std::mem::take(&mut self.choices[index].tokens).into();
            }
            choices.push(value);
        }
        let mut whole = self.envelope.whole("chat.completion", &choices, outputs);
        if let Some(most) = self.call.params.request.prompt_logprobs {
            let logprobs = outputs.prompts.first().map_or(&[][..], |done| &done.logprobs);
            whole["prompt_logprobs"] = of_prompt(&self.names, logprobs, most);
        }
        if self.call.params.return_token_ids {
            whole["prompt_token_ids"] = self.call.prompt.clone().into();
        }
        whole
    }

    fn message(&mut self, index: usize, pieces: Vec<Piece>) -> Value {
        let (mut content, mut reasoning) = (None::<String>, None::<String>);
        let mut calls: Vec<(String, String)> = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Content(text) => *content.get_or_insert_default() += &text,
                Piece::Reasoning(text) => *reasoning.get_or_insert_default() += &text,
                Piece::Call { name, .. } => calls.push((name, String::new())),
                Piece::Arguments { index, text } => {
                    if let Some((_, arguments)) = calls.get_mut(index) {
                        *arguments += &text;
                    }
                }
            }
        }
        let mut message = Map::new();
        message.insert("role".into(), "assistant".into());
        // A message that only calls has no content, and any other has some.
        let content = content.or_else(|| calls.is_empty().then(String::new));
        message.insert("content".into(), content.into());
        message.insert("refusal".into(), Value::Null);
        if let Some(reasoning) = reasoning {
            message.insert("reasoning_content".into(), reasoning.into());
        }
        if !calls.is_empty() {
            let calls = calls.into_iter().map(|(name, arguments)| {
                let id = self.new_call(index);
                let function = json!({"name": name, "arguments": arguments});
                json!({"id": id, "type": "function", "function": function})
            });
            message.insert("tool_calls".into(), calls.collect());
        }
        message.into()
    }

    /// The id of a call that begins.
    fn new_call(&mut self, index: usize) -> String {
        let calls = &mut self.choices[index].calls;
        let unique = self.envelope.id.trim_start_matches("chatcmpl-");
        let id = format!("call_{unique}{index:x}x{:x}", calls.len());
        calls.push(id.clone());
        id
    }

    fn note(&mut self, index: usize, token: &TokenLogprob) {
        let choice = &mut self.choices[index];
        if self.call.logprobs.is_some() {
            choice.logprobs.push(chat_token(&self.names, token));
        }
        if self.call.params.return_token_ids {
            choice.tokens.push(token.token);
        }
    }

    /// Takes the log-probabilities that have not been told.
    fn logprobs(&mut self, index: usize) -> Value {
        let told = std::mem::take(&mut self.choices[index].logprobs);
        match self.call.logprobs {
            Some(_) => json!({"content": told, "refusal": null}),
            None => Value::Null,
        }
    }

    fn finish(&self, choice: &mut Value, index: usize, finish: Option<Finish>) {
        let stop = &self.call.params.request.params.stop;
        let (mut finish, stop) = match finish {
            Some(finish) => reasons(finish, stop),
            None => ("stop", Value::Null),
        };
        if finish == "stop" && !self.choices[index].calls.is_empty() {
            finish = "tool_calls";
        }
        choice["finish_reason"] = finish.into();
        choice["stop_reason"] = stop;
    }

    /// A chunk of a stream.
    fn chunk(&mut self, index: usize, delta: &Value) -> Value {
        let logprobs = match self.choices[index].logprobs.is_empty() {
            true => Value::Null,
            false => self.logprobs(index),
        };
        let mut choice = json!({"index": index, "delta": delta, "logprobs": logprobs});
        choice["finish_reason"] = Value::Null;
        let tokens = std::mem::take(&mut self.choices[index].tokens);
        if self.call.params.return_token_ids {
            choice["token_ids"] = tokens.into();
        }
        self.envelope.chunk(CHUNK, choice)
    }

    fn delta(&mut self, index: usize, piece: Piece) -> Value {
        match piece {
            Piece::Content(text) => json!({"content": text}),
            Piece::Reasoning(text) => json!({"reasoning_content": text}),
            Piece::Call { index: number, name } => {
                let id = self.new_call(index);
                let function = json!({"name": name, "arguments": ""});
                let call =
                    json!({"index": number, "id": id, "type": "function", "function": function});
                json!({"tool_calls": [call]})
            }
            Piece::Arguments { index: number, text } => {
                json!({"tool_calls": [{"index": number, "function": {"arguments": text}}]})
            }
        }
    }

    fn new_token(&mut self, new: &NewToken, out: &mut Vec<Value>) {
        let index = new.sequence;
        self.envelope.tally.completion_tokens += usize::from(new.token.is_some());
        if let Some(token) = &new.token {
            self.note(index, token);
        }
        let splitter = &mut self.choices[index].splitter;
        let mut pieces = splitter.push(&new.text);
        if new.finish.is_some() {
            pieces.extend(splitter.finish());
        }
        for piece in pieces {
            let delta = self.delta(index, piece);
            out.push(self.chunk(index, &delta));
        }
        let choice = &self.choices[index];
        if !choice.logprobs.is_empty() || !choice.tokens.is_empty() {
            out.push(self.chunk(index, &json!({"content": ""})));
        }
        if new.finish.is_some() {
            let mut chunk = self.chunk(index, &json!({}));
            self.finish(&mut chunk["choices"][0], index, new.finish);
            out.push(chunk);
        }
    }
}

impl Chunks for Answer {
    fn begin(&mut self, out: &mut Vec<Value>) {
        for index in 0..self.choices.len() {
            let mut chunk = self.chunk(index, &json!({"role": "assistant", "content": ""}));
            if self.call.params.return_token_ids && index == 0 {
                chunk["prompt_token_ids"] = self.call.prompt.clone().into();
            }
            out.push(chunk);
        }
    }

    fn event(&mut self, _: usize, event: Event, out: &mut Vec<Value>) -> Result<(), ApiError> {
        match event {
            Event::Prompt(done) => self.envelope.tally.cached_tokens += done.cached_tokens,
            Event::Token(new) => self.new_token(&new, out),
            Event::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<Value>) {
        out.extend(self.envelope.last(CHUNK));
    }
}
