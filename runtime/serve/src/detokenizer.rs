//! Text of new tokens as it becomes certain, and stop strings in it.

use text::{DecodeStream, StopMatcher, Tokenizer};

use crate::ServeError;

/// Turns the new tokens of one sequence into text.
#[derive(Debug)]
pub(crate) struct Detokenizer {
    /// `None` for models without a tokenizer, and at the end.
    stream: Option<DecodeStream>,
    stop: StopMatcher,
    text: String,
}

impl Detokenizer {
    pub(crate) fn new(
        tokenizer: Option<&Tokenizer>,
        prompt: &[u32],
        stop: &[String],
    ) -> Result<Detokenizer, ServeError> {
        if tokenizer.is_none() && !stop.is_empty() {
            let reason = "needs text, and the model has no tokenizer";
            return Err(ServeError::request("stop", reason));
        }
        let stream = tokenizer.map(|t| t.stream(true).after(prompt)).transpose()?;
        Ok(Detokenizer { stream, stop: StopMatcher::new(stop)?, text: String::new() })
    }

    /// Takes a token, or the end of the sequence; gives the new text and the stop string that ends it.
    pub(crate) fn push(
        &mut self,
        token: Option<u32>,
    ) -> Result<(String, Option<usize>), ServeError> {
        let mut new = String::new();
        if let (Some(token), Some(stream)) = (token, &mut self.stream) {
            new += &self.stop.push(&stream.push(token)?.unwrap_or_default()).0;
        } else if let Some(stream) = self.stream.take() {
            new += &self.stop.push(&stream.finish()?.unwrap_or_default()).0;
            if self.stop.found().is_none() {
                new += &self.stop.clone().finish();
            }
        }
        self.text += &new;
        Ok((new, self.stop.found()))
    }

    /// All the text.
    pub(crate) fn into_text(self) -> String {
        self.text
    }
}
