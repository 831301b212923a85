//! Text to token ids and back, from the bytes of a `tokenizer.json`.
//!
//! A thin layer over the `tokenizers` crate that settles what a runtime must be able to rely on: no
//! fixed padding or truncation from the file, no panic on a malformed one, errors that name the
//! file. Decoding as tokens arrive is [`DecodeStream`]'s business, chat formatting
//! [`ChatTemplate`](crate::ChatTemplate)'s.

use std::{
    any::Any,
    fmt,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tokenizers::{Encoding, Model, PostProcessor, TruncationDirection};

use crate::{error::TextError, stream::DecodeStream};

/// A tokenizer; cloning it is cheap and shares the vocabulary.
///
/// ```
/// # use brolly_text as text;
/// # let json = r#"{"model": {"type": "WordLevel", "unk_token": "?",
/// #   "vocab": {"?": 0, "hello": 1, "world": 2}}, "pre_tokenizer": {"type": "Whitespace"}}"#;
/// let tokenizer = text::Tokenizer::from_bytes("tokenizer.json", json.as_bytes())?;
/// let ids = tokenizer.encode("hello world", true)?;
/// assert_eq!(ids, [1, 2]);
/// assert_eq!(tokenizer.decode(&ids, true)?, "hello world");
/// # Ok::<(), text::TextError>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    file: String,
    inner: tokenizers::Tokenizer,
    frame: Option<Frame>,
    special_ids: Vec<u32>,
}

/// Tokens around every text, in place of what the file's post-processor adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Put before the text.
    pub bos: Option<u32>,
    /// Put after the text.
    pub eos: Option<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; `file` is the name that errors carry.
    ///
    /// Padding and truncation in the file are dropped: they are settings of whoever saved it.
    /// # Errors
    /// [`TextError::Malformed`] if the bytes are not a tokenizer that the `tokenizers` crate reads.
    pub fn from_bytes(file: impl Into<String>, json: &[u8]) -> Result<Self, TextError> {
        let file = file.into();
        let read = guarded(|| {
            // The crate unwraps syntax errors in some places.
            serde_json::from_slice::<serde::de::IgnoredAny>(json)?;
            let mut inner = tokenizers::Tokenizer::from_bytes(json)?;
            inner.with_padding(None).with_truncation(None)?;
            // The post-processor's settings are looked at only here.
            inner.encode_fast("", true)?;
            Ok(inner)
        });
        let inner = read.map_err(|reason| TextError::Malformed {
            file: file.clone(),
            reason: format!("is not a tokenizer that can be read: {reason}"),
        })?;
        let added = inner.get_added_vocabulary().get_added_tokens_decoder();
        let mut special_ids: Vec<u32> =
            added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        special_ids.sort_unstable();
        Ok(Self { shared: Arc::new(Shared { file, inner, frame: None, special_ids }) })
    }

    /// The same tokenizer, adding exactly the tokens of `frame` where special tokens are asked for.
    ///
    /// For `tokenizer_config.json` files that set `add_bos_token` or `add_eos_token`, which take
    /// precedence over the file's post-processor.
    #[must_use]
    pub fn with_frame(self, frame: Frame) -> Self {
        let shared = Arc::try_unwrap(self.shared).unwrap_or_else(|shared| Shared {
            file: shared.file.clone(),
            inner: shared.inner.clone(),
            frame: None,
            special_ids: shared.special_ids.clone(),
        });
        Self { shared: Arc::new(Shared { frame: Some(frame), ..shared }) }
    }

    /// Token ids of `text`. `add_special` adds what the model expects around a text, such as a
    /// beginning-of-sequence token; special tokens spelled out in the text become their ids anyway.
    ///
    /// # Errors
    /// [`TextError::Encode`] if the vocabulary has neither a token nor an unknown token for a part
    /// of the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let framed = add_special && self.shared.frame.is_some();
        let encoding = self.try_encode(|inner| inner.encode_fast(text, add_special && !framed))?;
        Ok(self.framed(encoding.get_ids(), add_special))
    }

    /// Like [`encode`](Self::encode), cutting the text's end so that at most `max_tokens` ids come
    /// back, special tokens included and never cut.
    ///
    /// # Errors
    /// [`TextError::Encode`] as [`encode`](Self::encode), and if the special tokens alone are more
    /// than `max_tokens`.
    pub fn encode_truncated(
        &self,
        text: &str,
        add_special: bool,
        max_tokens: usize,
    ) -> Result<Vec<u32>, TextError> {
        let added = if add_special { self.added_tokens() } else { 0 };
        let Some(room) = max_tokens.checked_sub(added) else {
            let reason = format!("{added} special tokens do not fit into {max_tokens} tokens");
            return Err(TextError::Encode { file: self.shared.file.clone(), reason });
        };
        let add_by_processor = add_special && self.shared.frame.is_none();
        let encoding = self.try_encode(|inner| {
            let mut encoding = inner.encode_fast(text, false)?;
            encoding.truncate(room, 0, TruncationDirection::Right);
            if add_by_processor { inner.post_process(encoding, None, true) } else { Ok(encoding) }
        })?;
        Ok(self.framed(encoding.get_ids(), add_special))
    }

    /// Token ids of `text`, without special tokens around it, each with the bytes of the text that
    /// it stands for. Tokens of one character share its bytes; spaces at an end may be left out.
    ///
    /// # Errors
    /// [`TextError::Encode`] as [`encode`](Self::encode).
    pub fn encode_with_offsets(
        &self,
        text: &str,
    ) -> Result<(Vec<u32>, Vec<Range<usize>>), TextError> {
        let encoding = self.try_encode(|inner| inner.encode(text, false))?;
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok((encoding.get_ids().to_vec(), offsets))
    }

    /// The text of `ids`. Ids outside the vocabulary are left out, and so are special tokens where
    /// `skip_special`. Bytes that are not UTF-8 come out as U+FFFD. Spaces before punctuation are
    /// kept, whatever `clean_up_tokenization_spaces` says.
    ///
    /// # Errors
    /// [`TextError::Decode`] if the file's decoder fails on these tokens.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        // Some decoders cannot take an empty list.
        let kept: Vec<u32> =
            ids.iter().copied().filter(|&id| self.piece(id, skip_special).is_some()).collect();
        if kept.is_empty() {
            return Ok(String::new());
        }
        guarded(|| self.shared.inner.decode(&kept, skip_special))
            .map_err(|reason| TextError::Decode { file: self.shared.file.clone(), reason })
    }

    /// Decodes tokens as they arrive; see [`DecodeStream`].
    #[must_use]
    pub fn stream(&self, skip_special: bool) -> DecodeStream {
        DecodeStream::new(self.clone(), skip_special)
    }

    /// How many tokens the vocabulary holds, added ones included. A model's embedding may have more
    /// rows than that. Counts on each call.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.shared.inner.get_vocab_size(true)
    }

    /// The id of a token, spelled as in the vocabulary.
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.shared.inner.token_to_id(token)
    }

    /// The token of an id, spelled as in the vocabulary (`Ġthe`, not ` the`).
    #[must_use]
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.shared.inner.id_to_token(id)
    }

    /// Ids of the tokens that the file marks as special, ascending.
    #[must_use]
    pub fn special_ids(&self) -> &[u32] {
        &self.shared.special_ids
    }

    /// How many tokens [`encode`](Self::encode) adds to a text where special tokens are asked for.
    #[must_use]
    pub fn added_tokens(&self) -> usize {
        match self.shared.frame {
            Some(Frame { bos, eos }) => usize::from(bos.is_some()) + usize::from(eos.is_some()),
            None => self.shared.inner.get_post_processor().map_or(0, |p| p.added_tokens(false)),
        }
    }

    /// The name that errors carry.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.shared.file
    }

    /// The token as the decoder sees it; `None` if decoding leaves it out.
    pub(crate) fn piece(&self, id: u32, skip_special: bool) -> Option<String> {
        let added = self.shared.inner.get_added_vocabulary();
        let token = added
            .simple_id_to_token(id)
            .or_else(|| self.shared.inner.get_model().id_to_token(id))?;
        (!skip_special || !added.is_special_token(&token)).then_some(token)
    }

    pub(crate) fn decoder(&self) -> Option<&tokenizers::DecoderWrapper> {
        self.shared.inner.get_decoder()
    }

    fn try_encode(
        &self,
        encode: impl FnOnce(&tokenizers::Tokenizer) -> tokenizers::Result<Encoding>,
    ) -> Result<Encoding, TextError> {
        guarded(|| encode(&self.shared.inner))
            .map_err(|reason| TextError::Encode { file: self.shared.file.clone(), reason })
    }

    fn framed(&self, ids: &[u32], add_special: bool) -> Vec<u32> {
        let Frame { bos, eos } = self.shared.frame.filter(|_| add_special).unwrap_or_default();
        bos.into_iter().chain(ids.iter().copied()).chain(eos).collect()
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("file", &self.shared.file)
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

/// Runs a call into `tokenizers`, which indexes and unwraps by what the file says: a panic there is
/// the file's fault, not ours.
pub(crate) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            Err(format!("the tokenizer's settings contradict each other ({})", told(&*panic)))
        }
    }
}

fn told(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::tiny;

    #[test]
    fn padding_and_truncation_of_the_file_are_dropped() {
        let tokenizer = tiny::tokenizer(&tiny::byte_level());
        assert_eq!(tokenizer.encode("0123456789", true).unwrap().len(), 11);
        assert_eq!(tokenizer.encode("", true).unwrap(), [tokenizer.token_to_id("<s>").unwrap()]);
        assert_eq!(tokenizer.encode("", false).unwrap(), [0; 0]);
    }

    #[test]
    fn special_tokens_are_added_read_and_skipped() {
        let tokenizer = tiny::tokenizer(&tiny::byte_level());
        let ids = tokenizer.encode("hello</s>", true).unwrap();
        let tokens: Vec<String> = ids.iter().filter_map(|&id| tokenizer.id_to_token(id)).collect();
        assert_eq!(tokens, ["<s>", "hell", "o", "</s>"]);
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hello");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "<s>hello</s>");
        assert_eq!(tokenizer.special_ids(), [262, 263]);
        assert_eq!((tokenizer.vocab_size(), tokenizer.added_tokens()), (265, 1));
    }

    #[test]
    fn a_frame_replaces_the_post_processor() {
        let tokenizer = tiny::tokenizer(&tiny::byte_level());
        let frame = |bos, eos| tokenizer.clone().with_frame(Frame { bos, eos });
        assert_eq!(frame(None, Some(263)).encode("hell", true).unwrap(), [258, 263]);
        assert_eq!(frame(Some(262), Some(263)).encode("hell", true).unwrap(), [262, 258, 263]);
        assert_eq!(frame(Some(262), Some(263)).encode("hell", false).unwrap(), [258]);
        assert_eq!(frame(None, None).encode("hell", true).unwrap(), [258]);
        let cut = frame(Some(262), Some(263)).encode_truncated("hellhell", true, 3).unwrap();
        assert_eq!(cut, [262, 258, 263]);
    }

    #[test]
    fn cutting_keeps_the_special_tokens() {
        let tokenizer = tiny::tokenizer(&tiny::word_piece());
        let full = tokenizer.encode("a a a", true).unwrap();
        assert_eq!(full, [2, 7, 7, 7, 3]);
        assert_eq!(tokenizer.encode_truncated("a a a", true, 5).unwrap(), full);
        assert_eq!(tokenizer.encode_truncated("a a a", true, 4).unwrap(), [2, 7, 7, 3]);
        assert_eq!(tokenizer.encode_truncated("a a a", true, 2).unwrap(), [2, 3]);
        assert_eq!(tokenizer.encode_truncated("a a a", false, 2).unwrap(), [7, 7]);
        let error = tokenizer.encode_truncated("a", true, 1).unwrap_err().to_string();
        assert!(error.contains("2 special tokens do not fit into 1 tokens"), "{error}");
    }

    #[test]
    fn offsets_are_bytes_of_the_text() {
        let text = "hello é</s>";
        let tokenizer = tiny::tokenizer(&tiny::byte_level());
        let (ids, offsets) = tokenizer.encode_with_offsets(text).unwrap();
        assert_eq!(ids, tokenizer.encode(text, false).unwrap());
        let parts: Vec<&str> = offsets.into_iter().map(|range| &text[range]).collect();
        assert_eq!(parts, ["hell", "o", " ", "é", "é", "</s>"]);
    }

    #[test]
    fn every_decoder_takes_an_empty_list() {
        for json in tiny::all() {
            assert_eq!(tiny::tokenizer(&json).decode(&[], true).unwrap(), "");
            assert_eq!(tiny::tokenizer(&json).decode(&[u32::MAX], true).unwrap(), "");
        }
    }

    #[test]
    fn text_outside_a_closed_vocabulary_is_an_error() {
        let mut json = tiny::words();
        json["model"]["unk_token"] = "absent".into();
        let error = tiny::tokenizer(&json).encode("zzz", true).unwrap_err().to_string();
        assert!(error.starts_with("tokenizer.json: the text cannot be encoded: "), "{error}");
    }

    #[test]
    fn garbage_is_an_error_that_names_the_file() {
        let whole = tiny::byte_fallback().to_string();
        let halves = (1..20).map(|n| whole.as_bytes()[..whole.len() * n / 20].to_vec());
        let others = [
            b"".to_vec(),
            b"null".to_vec(),
            b"{}".to_vec(),
            b"\xff\xfe".to_vec(),
            vec![b'['; 99_999],
        ];
        for bytes in halves.chain(others) {
            let error =
                Tokenizer::from_bytes("dir/tokenizer.json", &bytes).unwrap_err().to_string();
            assert!(error.starts_with("dir/tokenizer.json: is not a tokenizer"), "{error}");
        }
    }

    /// All places in a JSON value, as paths.
    fn places(value: &Value, path: &str, out: &mut Vec<String>) {
        out.push(path.to_owned());
        match value {
            // Vocabularies have many entries that are alike.
            Value::Object(map) => map.iter().take(9).for_each(|(key, value)| {
                places(value, &format!("{path}/{key}"), out);
            }),
            Value::Array(items) => items.iter().enumerate().take(4).for_each(|(i, value)| {
                places(value, &format!("{path}/{i}"), out);
            }),
            _ => {}
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// One value of the file replaced: an error, or a tokenizer that encodes and decodes or
        /// says why not.
        #[test]
        fn altered_files_never_panic(
            kind in 0..7usize,
            place in any::<prop::sample::Index>(),
            with in 0..9usize,
        ) {
            let mut json = tiny::all().swap_remove(kind);
            let mut paths = Vec::new();
            places(&json, "", &mut paths);
            let values = [json!(null), json!(-1), json!(1u64 << 40), json!(""), json!("é"), json!([]),
                json!({}), json!(true), json!(["a", "b"])];
            if let Some(value) = json.pointer_mut(place.get::<String>(&paths)) {
                *value = values[with].clone();
            }
            if let Ok(tokenizer) = Tokenizer::from_bytes("t", json.to_string().as_bytes()) {
                let ids = tokenizer.encode("a hello 😀", true).unwrap_or_default();
                let _ = tokenizer.decode(&ids, false);
                let _ = tokenizer.decode(&[0, 1, 2, 3, 258], false);
                let mut stream = tokenizer.stream(true);
                for id in 0..6 {
                    let _ = stream.push(id);
                }
                let _ = stream.finish();
            }
        }
    }
}
