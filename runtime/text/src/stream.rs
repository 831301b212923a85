//! Decoding tokens one by one, as they are generated.
//!
//! A token is not a piece of text: it may hold half a character, or a space that is dropped at the
//! start of a text only. [`DecodeStream`] gives out what is certain and keeps the rest, so that the
//! pieces joined are exactly what [`Tokenizer::decode`] gives for all tokens at once.
//!
//! Two ways lead there. Byte-level tokenizers (GPT-2, Llama 3, Qwen) map each token to bytes
//! whatever its neighbours, so [`bytes`] needs no more than an incremental UTF-8 decoder. All
//! others go through [`window`], which decodes a few recent tokens again with each new one. Both
//! cost O(1) per token.

mod bytes;
mod window;

use tokenizers::DecoderWrapper;

use crate::{error::TextError, tokenizer::Tokenizer};

use bytes::ByteStream;
use window::Window;

pub(crate) use bytes::level_bytes;
pub(crate) use window::fallback_byte;

/// How many of a prompt's last tokens can influence the text after it: a character is at most four
/// tokens, and the rest is room for runs of byte tokens and tokens without text.
const PROMPT_TAIL: usize = 64;

/// Text from tokens, incrementally.
///
/// ```
/// # use brolly_text as text;
/// # let json = r#"{"model": {"type": "BPE", "vocab": {"Hi": 0, "ðŁĺ": 1, "Ģ": 2}, "merges": []},
/// #   "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
/// #   "use_regex": false}}"#;
/// # let tokenizer = text::Tokenizer::from_bytes("tokenizer.json", json.as_bytes())?;
/// // A vocabulary of "Hi", the first three bytes of an emoji, and its last byte.
/// let mut stream = tokenizer.stream(true);
/// assert_eq!(stream.push(0)?.as_deref(), Some("Hi"));
/// assert_eq!(stream.push(1)?, None);
/// assert_eq!(stream.push(2)?.as_deref(), Some("😀"));
/// assert_eq!(stream.finish()?, None);
/// # Ok::<(), text::TextError>(())
/// ```
#[derive(Clone, Debug)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    way: Way,
}

#[derive(Clone, Debug)]
enum Way {
    Bytes(ByteStream),
    Window(Window),
}

impl DecodeStream {
    pub(crate) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        let parts = tokenizer.decoder().map(flatten).unwrap_or_default();
        let way = match parts[..] {
            [DecoderWrapper::ByteLevel(_)]
            | [DecoderWrapper::ByteLevel(_), DecoderWrapper::Fuse(_)] => {
                Way::Bytes(ByteStream::default())
            }
            _ => Way::Window(Window::new(&parts)),
        };
        Self { tokenizer, skip_special, way }
    }

    /// Goes on after `prompt`: the pieces to come are what the new tokens add to the prompt's text.
    ///
    /// Without it the first token decodes as the start of a text, where SentencePiece vocabularies
    /// drop a space.
    ///
    /// # Errors
    /// [`TextError::Decode`], as [`push`](Self::push).
    pub fn after(mut self, prompt: &[u32]) -> Result<Self, TextError> {
        for &id in &prompt[prompt.len().saturating_sub(PROMPT_TAIL)..] {
            self.push(id)?;
        }
        Ok(self)
    }

    /// Takes the next token; gives the text that is now certain, if any.
    ///
    /// A piece is never empty and never ends within a character. Tokens that decoding leaves out
    /// (unknown ids, special tokens where those are skipped) add nothing.
    ///
    /// # Errors
    /// [`TextError::Decode`] if the tokenizer's decoder fails on these tokens.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TextError> {
        let Some(piece) = self.tokenizer.piece(id, self.skip_special) else { return Ok(None) };
        let text = match &mut self.way {
            Way::Bytes(stream) => stream.push(&piece),
            Way::Window(window) => window.push(&self.tokenizer, id, &piece)?,
        };
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// Ends the text; gives what was kept, such as U+FFFD for half a character.
    ///
    /// # Errors
    /// [`TextError::Decode`], as [`push`](Self::push).
    pub fn finish(self) -> Result<Option<String>, TextError> {
        let text = match self.way {
            Way::Bytes(stream) => stream.finish(),
            Way::Window(window) => window.finish(&self.tokenizer)?,
        };
        Ok(Some(text).filter(|text| !text.is_empty()))
    }
}

/// The decoder's steps, sequences opened.
pub(crate) fn flatten(decoder: &DecoderWrapper) -> Vec<&DecoderWrapper> {
    match decoder {
        DecoderWrapper::Sequence(steps) => steps.get_decoders().iter().flat_map(flatten).collect(),
        step => vec![step],
    }
}

#[cfg(test)]
mod tests;
