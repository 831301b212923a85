//! Text of new tokens as it becomes certain, and what in it ends a sequence.

use text::{DecodeStream, FirstCall, StopMatcher, Tokenizer};

use crate::{GenerateParams, ServeError};

/// Turns the new tokens of one sequence into text.
#[derive(Debug)]
pub(crate) struct Detokenizer {
    /// `None` for models without a tokenizer, and at the end.
    stream: Option<DecodeStream>,
    matcher: StopMatcher,
    /// Stop strings, if the one found is part of the text.
    included: Vec<String>,
    /// Tokens to come in which no stop string counts, and no call.
    min_tokens: usize,
    /// What finds the call that ends the text, and the number that stands for it.
    first_call: Option<(FirstCall, usize)>,
    /// Whether there are stop strings.
    has_stops: bool,
}

impl Detokenizer {
    pub(crate) fn new(
        tokenizer: Option<&Tokenizer>,
        prompt: &[u32],
        params: &GenerateParams,
    ) -> Result<Detokenizer, ServeError> {
        let GenerateParams { stop, min_tokens, include_stop, skip_special_tokens, .. } = params;
        if tokenizer.is_none() && !stop.is_empty() {
            let reason = "needs text, and the model has no tokenizer";
            return Err(ServeError::request("stop", reason));
        }
        let stream = |t: &Tokenizer| t.stream(*skip_special_tokens).after(prompt);
        Ok(Detokenizer {
            stream: tokenizer.map(stream).transpose()?,
            matcher: StopMatcher::new(stop)?,
            included: if *include_stop { stop.clone() } else { Vec::new() },
            min_tokens: *min_tokens,
            first_call: None,
            has_stops: !stop.is_empty(),
        })
    }

    /// Whether the text may end before its sequence does.
    pub(crate) fn may_stop(&self) -> bool {
        self.has_stops || self.first_call.is_some()
    }

    /// Ends the text with its first call, as with a stop string behind the last one.
    pub(crate) fn until(mut self, first_call: Option<FirstCall>, stops: usize) -> Detokenizer {
        self.first_call = first_call.map(|call| (call, stops));
        self
    }

    /// Takes a token, or the end of the sequence; gives the new text and the stop string that ends
    /// it.
    pub(crate) fn push(
        &mut self,
        token: Option<u32>,
    ) -> Result<(String, Option<usize>), ServeError> {
        let mut new = String::new();
        let is_early = token.is_some() && self.min_tokens > 0;
        match (token, &mut self.stream) {
            (_, None) => {}
            (Some(token), Some(stream)) => {
                let piece = stream.push(token)?.unwrap_or_default();
                if is_early {
                    self.min_tokens -= 1;
                    new = piece;
                } else {
                    new = self.matcher.push(&piece).0;
                }
            }
            (None, Some(_)) => {
                let rest = self.stream.take().map(DecodeStream::finish).transpose()?.flatten();
                new = self.matcher.push(&rest.unwrap_or_default()).0;
                if self.matcher.found().is_none() {
                    new += &self.matcher.clone().finish();
                }
            }
        }
        if let Some((call, number)) = &mut self.first_call
            && let Some(end) = call.push(&new)
            && !is_early
        {
            new.truncate(end);
            return Ok((new, Some(*number)));
        }
        let found = self.matcher.found();
        if let Some(stop) = found.and_then(|index| self.included.get_mut(index)) {
            new += &std::mem::take(stop);
        }
        Ok((new, found))
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
        let params = GenerateParams { stop, min_tokens, ..GenerateParams::default() };
        let mut text = Detokenizer::new(Some(&tokenizer()), &[0], &params).unwrap();
        let mut out = Vec::new();
        let mut found = None;
        for token in ids.iter().copied().map(Some).chain([None]) {
            let (piece, stop) = text.push(token).unwrap();
            out.push(piece);
            found = found.or(stop);
        }
        let all = out.concat();
        (out, found, all)
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
        let mut params = GenerateParams::default();
        let mut none = Detokenizer::new(None, &[0], &params).unwrap();
        assert_eq!(none.push(Some(5)).unwrap(), (String::new(), None));
        params.stop = vec!["x".to_owned()];
        let error = Detokenizer::new(None, &[0], &params).unwrap_err().to_string();
        assert_eq!(error, "stop: needs text, and the model has no tokenizer");
    }
}
