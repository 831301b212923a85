//! Text of new tokens as it becomes certain, and stop strings in it.

use text::{DecodeStream, StopMatcher, Tokenizer};

use crate::ServeError;

/// Turns the new tokens of one sequence into text.
#[derive(Debug)]
pub(crate) struct Detokenizer {
    /// `None` for models without a tokenizer, and at the end.
    stream: Option<DecodeStream>,
    stop: StopMatcher,
    /// Tokens to come in which no stop string counts.
    min_tokens: usize,
    text: String,
}

impl Detokenizer {
    pub(crate) fn new(
        tokenizer: Option<&Tokenizer>,
        prompt: &[u32],
        stop: &[String],
        min_tokens: usize,
    ) -> Result<Detokenizer, ServeError> {
        if tokenizer.is_none() && !stop.is_empty() {
            let reason = "needs text, and the model has no tokenizer";
            return Err(ServeError::request("stop", reason));
        }
        let stream = tokenizer.map(|t| t.stream(true).after(prompt)).transpose()?;
        let stop = StopMatcher::new(stop)?;
        Ok(Detokenizer { stream, stop, min_tokens, text: String::new() })
    }

    /// Takes a token, or the end of the sequence; gives the new text and the stop string that ends
    /// it.
    pub(crate) fn push(
        &mut self,
        token: Option<u32>,
    ) -> Result<(String, Option<usize>), ServeError> {
        let mut new = String::new();
        match (token, &mut self.stream) {
            (_, None) => {}
            (Some(token), Some(stream)) => {
                let piece = stream.push(token)?.unwrap_or_default();
                if self.min_tokens > 0 {
                    self.min_tokens -= 1;
                    new = piece;
                } else {
                    new = self.stop.push(&piece).0;
                }
            }
            (None, Some(_)) => {
                let rest = self.stream.take().map(DecodeStream::finish).transpose()?.flatten();
                new = self.stop.push(&rest.unwrap_or_default()).0;
                if self.stop.found().is_none() {
                    new += &self.stop.clone().finish();
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A vocabulary of letters, `!`, and the two halves of `é`.
    fn tokenizer() -> Tokenizer {
        let json = r#"{"model": {"type": "BPE", "merges": [],
            "vocab": {"a": 0, "b": 1, "!": 2, "Ã": 3, "©": 4}},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
            "use_regex": false}}"#;
        Tokenizer::from_bytes("tokenizer.json", json.as_bytes()).unwrap()
    }

    fn pieces(
        stop: &[&str],
        min_tokens: usize,
        ids: &[u32],
    ) -> (Vec<String>, Option<usize>, String) {
        let stop: Vec<String> = stop.iter().map(|s| (*s).to_owned()).collect();
        let mut text = Detokenizer::new(Some(&tokenizer()), &[0], &stop, min_tokens).unwrap();
        let mut out = Vec::new();
        let mut found = None;
        for token in ids.iter().copied().map(Some).chain([None]) {
            let (piece, stop) = text.push(token).unwrap();
            out.push(piece);
            found = found.or(stop);
        }
        (out, found, text.into_text())
    }

    #[test]
    fn characters_stay_whole() {
        let (out, found, text) = pieces(&[], 0, &[0, 3, 4, 1, 3]);
        assert_eq!(out, ["a", "", "é", "b", "", "\u{fffd}"]);
        assert_eq!((found, text.as_str()), (None, "aéb\u{fffd}"));
    }

    #[test]
    fn stop_strings_end_the_text_and_almost_ones_do_not() {
        let (out, found, text) = pieces(&["b!"], 0, &[0, 1, 1, 2, 0]);
        assert_eq!(out, ["a", "", "b", "", "", ""]);
        assert_eq!((found, text.as_str()), (Some(0), "ab"));
        let (out, found, text) = pieces(&["b!"], 0, &[0, 1]);
        assert_eq!(out, ["a", "", "b"]);
        assert_eq!((found, text.as_str()), (None, "ab"));
        let (_, found, text) = pieces(&["b!"], 2, &[1, 2, 1, 2]);
        assert_eq!((found, text.as_str()), (Some(0), "b!"));
    }

    #[test]
    fn without_a_tokenizer_there_is_no_text_to_stop_at() {
        let mut none = Detokenizer::new(None, &[0], &[], 0).unwrap();
        assert_eq!(none.push(Some(5)).unwrap(), (String::new(), None));
        let error = Detokenizer::new(None, &[0], &["x".to_owned()], 0).unwrap_err().to_string();
        assert_eq!(error, "stop: needs text, and the model has no tokenizer");
    }
}
