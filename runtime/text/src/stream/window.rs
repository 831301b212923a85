//! Any decoder: decode the recent tokens again with each new one, and give out what was added.
//!
//! Decoders treat a text's first token, spaces at its start and its last token specially, so a
//! token is decoded behind *context*: tokens whose text was given out already and which keep it
//! from being the first. The context is kept as short as it can be while it still decodes to some
//! text: then whatever a decoder strips from the start of the text, it strips from the context.
//!
//! Two things are held back. A run of byte tokens (`<0xE2>`), since a decoder with byte fallback
//! turns the *whole* run into U+FFFD if it is not UTF-8 to its end: such text comes late, but never
//! wrong. And, where raw bytes are decoded, a final U+FFFD, which may be a character's beginning.

use tokenizers::DecoderWrapper;

use crate::{error::TextError, tokenizer::Tokenizer};

/// From this many undecided tokens on, try again only when their number has doubled, so that the
/// total time stays linear.
const EAGER: usize = 16;

#[derive(Clone, Debug)]
pub(super) struct Window {
    byte_fallback: bool,
    raw_bytes: bool,
    /// Context, then tokens that gave no text yet.
    ids: Vec<u32>,
    /// The text of the context, decoded on its own.
    shown: String,
    /// How many of `ids` are context.
    context: usize,
    /// Where the context may start next time.
    next_start: usize,
    /// How many undecided tokens to wait for before decoding again.
    patience: usize,
}

impl Window {
    pub(super) fn new(steps: &[&DecoderWrapper]) -> Self {
        Self {
            byte_fallback: steps.iter().any(|s| matches!(s, DecoderWrapper::ByteFallback(_))),
            raw_bytes: steps.iter().any(|s| matches!(s, DecoderWrapper::ByteLevel(_))),
            ids: Vec::new(),
            shown: String::new(),
            context: 0,
            next_start: 0,
            patience: 1,
        }
    }

    pub(super) fn push(
        &mut self,
        tokenizer: &Tokenizer,
        id: u32,
        piece: &str,
    ) -> Result<String, TextError> {
        self.ids.push(id);
        let run_is_open = self.byte_fallback && fallback_byte(piece).is_some();
        if run_is_open || self.ids.len() - self.context < self.patience {
            return Ok(String::new());
        }
        let text = tokenizer.decode(&self.ids, false)?;
        let added = text.strip_prefix(self.shown.as_str()).unwrap_or_default();
        let undecided = self.raw_bytes && text.ends_with(char::REPLACEMENT_CHARACTER);
        if added.is_empty() || undecided {
            let waiting = self.ids.len() - self.context;
            self.patience = if waiting < EAGER { 1 } else { 2 * waiting };
            return Ok(String::new());
        }
        let added = added.to_owned();
        self.slide(tokenizer, text)?;
        Ok(added)
    }

    /// Makes all tokens context, and forgets those that are not needed as such.
    fn slide(&mut self, tokenizer: &Tokenizer, text: String) -> Result<(), TextError> {
        let shorter = tokenizer.decode(&self.ids[self.next_start..], false)?;
        if shorter.is_empty() {
            self.shown = text;
        } else {
            self.ids.drain(..self.next_start);
            self.next_start = self.ids.len();
            self.shown = shorter;
        }
        self.context = self.ids.len();
        self.patience = 1;
        Ok(())
    }

    /// What the tokens not given out yet add as the last ones of the text.
    pub(super) fn finish(self, tokenizer: &Tokenizer) -> Result<String, TextError> {
        let mut text = tokenizer.decode(&self.ids, false)?;
        let common = self.shown.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
        Ok(text.split_off(text.floor_char_boundary(common)))
    }
}

/// The byte of a token that byte fallback turns into one: `<0x0A>`.
pub(crate) fn fallback_byte(piece: &str) -> Option<u8> {
    let hex = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 2)
}
