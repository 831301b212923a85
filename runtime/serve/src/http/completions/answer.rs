//! A completion as JSON, whole or in chunks.

use serde_json::{Value, json};
use text::DecodeStream;

use super::{Call, Prompt};
use crate::{
    engine::{Event, NewToken, PromptDone},
    http::{
        App,
        envelope::Envelope,
        error::ApiError,
        generation::{Output, Outputs, reasons},
        logprobs::{CompletionLogprobs, Names, of_prompt},
        sse::Chunks,
    },
};

const OBJECT: &str = "text_completion";

/// What an answer is made with.
pub(super) struct Answer {
    call: Call,
    envelope: Envelope,
    names: Names,
    /// By prompt, then by sequence.
    offsets: Vec<Vec<Offsets>>,
}

/// Where tokens begin in the text of a choice, in characters.
#[derive(Clone, Debug)]
struct Offsets {
    stream: Option<DecodeStream>,
    chars: usize,
}

impl Offsets {
    /// The place of the next token.
    fn next(&mut self, token: u32) -> usize {
        let place = self.chars;
        let text = self.stream.as_mut().and_then(|stream| stream.push(token).ok().flatten());
        self.chars += text.map_or(0, |text| text.chars().count());
        place
    }
}

impl Answer {
    pub(super) fn new(app: &App, call: Call, prompt_tokens: usize) -> Result<Answer, ApiError> {
        let skip_special = call.params.request.params.skip_special_tokens;
        let n = call.params.request.n;
        let offsets = |prompt: &Prompt| -> Result<Vec<Offsets>, ApiError> {
            let tokenizer = app.engine().tokenizer().filter(|_| call.logprobs.is_some());
            let stream = tokenizer.map(|t| {
                let stream = t.stream(skip_special);
                if call.is_echo { Ok(stream) } else { stream.after(&prompt.ids) }
            });
            Ok(vec![Offsets { stream: stream.transpose()?, chars: 0 }; n])
        };
        Ok(Answer {
            envelope: Envelope::new(app, "cmpl", &call.model, call.params.usage, prompt_tokens),
            names: Names::new(app.token_bytes(), call.params.tokens_as_ids),
            offsets: call.prompts.iter().map(offsets).collect::<Result<_, _>>()?,
            call,
        })
    }

    /// The whole answer.
    pub(super) fn whole(mut self, outputs: &Outputs) -> Value {
        let mut choices = Vec::new();
        for (index, sequences) in outputs.sequences.iter().enumerate() {
            for (sequence, output) in sequences.iter().enumerate() {
                choices.push(self.choice(index, sequence, output, &outputs.prompts[index]));
            }
        }
        self.envelope.whole(OBJECT, &choices, outputs)
    }

    fn choice(
        &mut self,
        index: usize,
        sequence: usize,
        output: &Output,
        prompt: &PromptDone,
    ) -> Value {
        let mut logprobs = CompletionLogprobs::default();
        let mut text = String::new();
        if self.call.is_echo {
            text.push_str(&self.call.prompts[index].text);
            self.echo_logprobs(index, sequence, prompt, &mut logprobs);
        }
        text += &output.text;
        for token in &output.tokens {
            self.logprob(index, sequence, token, &mut logprobs);
        }
        let mut choice = self.piece(index, sequence, &text, &mut logprobs);
        if let Some(finish) = output.finish {
            self.finish(&mut choice, finish);
        }
        if let Some(most) = self.call.params.request.prompt_logprobs {
            choice["prompt_logprobs"] = of_prompt(&self.names, &prompt.logprobs, most);
        }
        if self.call.params.return_token_ids {
            choice["prompt_token_ids"] = self.call.prompts[index].ids.clone().into();
            choice["token_ids"] = output.tokens.iter().map(|token| token.token).collect();
        }
        choice
    }

    fn echo_logprobs(
        &mut self,
        index: usize,
        sequence: usize,
        prompt: &PromptDone,
        logprobs: &mut CompletionLogprobs,
    ) {
        let Some(most) = self.call.logprobs else { return };
        let offsets = &mut self.offsets[index][sequence];
        for (token, logprob) in self.call.prompts[index].ids.iter().zip(&prompt.logprobs) {
            let offset = offsets.next(*token);
            logprobs.push(&self.names, (*token, logprob.as_ref()), most, offset);
        }
    }

    fn logprob(
        &mut self,
        index: usize,
        sequence: usize,
        token: &crate::engine::TokenLogprob,
        logprobs: &mut CompletionLogprobs,
    ) {
        let Some(most) = self.call.logprobs else { return };
        let offset = self.offsets[index][sequence].next(token.token);
        logprobs.push(&self.names, (token.token, Some(token)), most, offset);
    }

    /// A choice, or a part of one, that has not ended.
    fn piece(
        &self,
        index: usize,
        sequence: usize,
        text: &str,
        logprobs: &mut CompletionLogprobs,
    ) -> Value {
        json!({
            "index": index * self.call.params.request.n + sequence,
            "text": text,
            "logprobs": self.call.logprobs.map(|_| logprobs.take()),
            "finish_reason": null,
            "stop_reason": null,
        })
    }

    fn finish(&self, choice: &mut Value, finish: crate::Finish) {
        let (finish, stop) = reasons(finish, &self.call.params.request.params.stop);
        choice["finish_reason"] = finish.into();
        choice["stop_reason"] = stop;
    }

    fn new_token(&mut self, index: usize, new: &NewToken) -> Option<Value> {
        let mut logprobs = CompletionLogprobs::default();
        self.envelope.tally.completion_tokens += usize::from(new.token.is_some());
        if let Some(token) = &new.token {
            self.logprob(index, new.sequence, token, &mut logprobs);
        }
        let tells_ids = self.call.params.return_token_ids && new.token.is_some();
        if new.text.is_empty() && logprobs.is_empty() && new.finish.is_none() && !tells_ids {
            return None;
        }
        let mut choice = self.piece(index, new.sequence, &new.text, &mut logprobs);
        if let Some(finish) = new.finish {
            self.finish(&mut choice, finish);
        }
        if self.call.params.return_token_ids {
            choice["token_ids"] = new.token.iter().map(|token| token.token).collect();
        }
        Some(self.envelope.chunk(OBJECT, choice))
    }
}

impl Chunks for Answer {
    fn begin(&mut self, _: &mut Vec<Value>) {}

    fn event(&mut self, index: usize, event: Event, out: &mut Vec<Value>) -> Result<(), ApiError> {
        match event {
            Event::Prompt(done) => {
                self.envelope.tally.cached_tokens += done.cached_tokens;
                let tells_ids = self.call.params.return_token_ids;
                if !self.call.is_echo && !tells_ids {
                    return Ok(());
                }
                let Prompt { ids, text } = self.call.prompts[index].clone();
                for sequence in 0..self.call.params.request.n {
                    let mut logprobs = CompletionLogprobs::default();
                    let text = if self.call.is_echo { text.as_str() } else { "" };
                    if self.call.is_echo {
                        self.echo_logprobs(index, sequence, &done, &mut logprobs);
                    }
                    let mut choice = self.piece(index, sequence, text, &mut logprobs);
                    if tells_ids {
                        choice["prompt_token_ids"] = ids.clone().into();
                        choice["token_ids"] = json!([]);
                    }
                    out.push(self.envelope.chunk(OBJECT, choice));
                }
            }
            Event::Token(new) => out.extend(self.new_token(index, &new)),
            Event::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<Value>) {
        out.extend(self.envelope.last(OBJECT));
    }
}
