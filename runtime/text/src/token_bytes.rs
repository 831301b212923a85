//! The bytes that each token stands for within a text, as log-probabilities tell them.

use tokenizers::DecoderWrapper;

use crate::{
    stream::{fallback_byte, flatten, level_bytes},
    tokenizer::Tokenizer,
};

/// How many tokens are tried as an anchor.
const ANCHORS: u32 = 4096;

/// The bytes of tokens, one by one. Those of the tokens of a text, joined, are the text, but for
/// what decoders do at its ends.
///
/// ```
/// # use brolly_text as text;
/// # let json = r#"{"model": {"type": "BPE", "vocab": {"Hi": 0, "ðŁĺ": 1, "Ģ": 2}, "merges": []},
/// #   "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
/// #   "use_regex": false}}"#;
/// # let tokenizer = text::Tokenizer::from_bytes("tokenizer.json", json.as_bytes())?;
/// // A vocabulary of "Hi", the first three bytes of an emoji, and its last byte.
/// let bytes = text::TokenBytes::new(&tokenizer);
/// assert_eq!(bytes.of(0), b"Hi");
/// assert_eq!([bytes.of(1), bytes.of(2)].concat(), "😀".as_bytes());
/// # Ok::<(), text::TextError>(())
/// ```
#[derive(Clone, Debug)]
pub struct TokenBytes {
    tokenizer: Tokenizer,
    is_byte_level: bool,
    has_byte_fallback: bool,
    /// A token whose text is certain, and that text: what is decoded behind it is within a text.
    anchor: Option<(u32, String)>,
}

impl TokenBytes {
    /// For the tokens of this vocabulary.
    #[must_use]
    pub fn new(tokenizer: &Tokenizer) -> TokenBytes {
        let steps = tokenizer.decoder().map(flatten).unwrap_or_default();
        let is_byte_level = matches!(
            steps[..],
            [DecoderWrapper::ByteLevel(_)]
                | [DecoderWrapper::ByteLevel(_), DecoderWrapper::Fuse(_)]
        );
        let has_byte_fallback = steps.iter().any(|s| matches!(s, DecoderWrapper::ByteFallback(_)));
        let anchor = (0..ANCHORS).filter(|_| !is_byte_level).find_map(|id| {
            let is_plain = !tokenizer.special_ids().contains(&id)
                && fallback_byte(&tokenizer.piece(id, false)?).is_none();
            let text = tokenizer.decode(&[id], false).ok().filter(|_| is_plain)?;
            text.ends_with(|c: char| c.is_ascii_alphanumeric()).then_some((id, text))
        });
        TokenBytes { tokenizer: tokenizer.clone(), is_byte_level, has_byte_fallback, anchor }
    }

    /// The bytes of a token, none if decoding leaves it out. Special tokens have those of their
    /// names.
    #[must_use]
    pub fn of(&self, id: u32) -> Vec<u8> {
        let Some(piece) = self.tokenizer.piece(id, false) else { return Vec::new() };
        if self.tokenizer.special_ids().contains(&id) {
            return piece.into_bytes();
        }
        if self.is_byte_level {
            return level_bytes(&piece);
        }
        if let Some(byte) = fallback_byte(&piece).filter(|_| self.has_byte_fallback) {
            return vec![byte];
        }
        let (before, text) = match &self.anchor {
            Some((anchor, text)) => (vec![*anchor, id], text.as_str()),
            None => (vec![id], ""),
        };
        let decoded = self.tokenizer.decode(&before, false).unwrap_or_default();
        decoded.strip_prefix(text).unwrap_or(&piece).as_bytes().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny;

    #[test]
    fn each_kind_of_vocabulary_has_bytes() {
        let of = |json: &serde_json::Value, tokens: &[&str]| -> Vec<String> {
            let tokenizer = tiny::tokenizer(json);
            let bytes = TokenBytes::new(&tokenizer);
            let bytes = tokens.iter().map(|t| bytes.of(tokenizer.token_to_id(t).unwrap()));
            bytes.map(|b| String::from_utf8_lossy(&b).into_owned()).collect()
        };
        let tokens = ["hell", "Ġw", "<s>", "née "];
        assert_eq!(of(&tiny::byte_level(), &tokens), ["hell", " w", "<s>", "née "]);
        let tokens = ["▁a", "ab", "▁▁", "<0x41>", "</s>"];
        assert_eq!(of(&tiny::byte_fallback(), &tokens), [" a", "ab", "  ", "A", "</s>"]);
        assert_eq!(of(&tiny::word_piece(), &["un", "##aff", "[SEP]"]), [" un", "aff", "[SEP]"]);
        assert_eq!(of(&tiny::metaspace(), &["▁a", "b"]), [" a", "b"]);
    }

    #[test]
    fn parts_of_characters_are_bytes() {
        for json in [tiny::byte_level(), tiny::byte_fallback()] {
            let tokenizer = tiny::tokenizer(&json);
            let bytes = TokenBytes::new(&tokenizer);
            let text = "é😀 ab";
            let ids = tokenizer.encode(text, false).unwrap();
            let joined: Vec<u8> = ids.iter().flat_map(|id| bytes.of(*id)).collect();
            assert_eq!(String::from_utf8(joined).unwrap().trim_start(), text);
        }
        let tokenizer = tiny::tokenizer(&tiny::byte_level());
        assert!(TokenBytes::new(&tokenizer).of(u32::MAX).is_empty());
    }
}
