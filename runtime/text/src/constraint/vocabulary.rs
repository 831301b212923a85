//! The bytes that each token adds to a text, and the trie over them.

use llguidance::toktrie::{INVALID_TOKEN, TokRxInfo, TokTrie};
use tokenizers::{Decoder, DecoderWrapper};

use crate::{
    error::TextError,
    stream,
    tokenizer::{Tokenizer, guarded},
};

/// The trie of the first `vocab_size` tokens. Special tokens and those that end a text hold no
/// text: grammars reach them by name or id alone.
///
/// # Errors
/// [`TextError::Malformed`] if what a token decodes to depends on more than the token.
pub(super) fn trie(
    tokenizer: &Tokenizer,
    vocab_size: usize,
    eos_ids: &[u32],
) -> Result<TokTrie, TextError> {
    let refuse = |reason: String| TextError::Malformed {
        file: tokenizer.file().to_owned(),
        reason: format!("cannot be used for structured output: {reason}"),
    };
    let steps = tokenizer.decoder().map(stream::flatten).unwrap_or_default();
    let steps = steps.into_iter().map(Step::new).collect::<Option<Vec<_>>>();
    let steps = steps.filter(|steps| !steps.is_empty()).ok_or_else(|| {
        refuse(
            "its decoder joins tokens by rules of words, so that tokens have no bytes".to_owned(),
        )
    })?;
    let size = u32::try_from(vocab_size).map_err(|error| refuse(error.to_string()))?;
    if let Some(id) = eos_ids.iter().find(|&&id| id >= size) {
        return Err(refuse(format!(
            "token {id} ends a text, but the vocabulary has {size} tokens"
        )));
    }
    let special = tokenizer.special_ids();
    let mut words = Vec::with_capacity(vocab_size);
    for id in 0..size {
        let piece = tokenizer.piece(id, false);
        words.push(if special.binary_search(&id).is_ok() || eos_ids.contains(&id) {
            let name = piece.unwrap_or_else(|| format!("<{id}>"));
            [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat()
        } else {
            piece.map_or(Ok(Vec::new()), |piece| bytes(&steps, piece)).map_err(refuse)?
        });
    }
    let info = TokRxInfo::new(size, eos_ids.first().copied().unwrap_or(INVALID_TOKEN));
    let built = guarded(|| Ok(TokTrie::from(&info, &words))).map_err(refuse)?;
    Ok(if eos_ids.is_empty() { built } else { built.with_eos_tokens(eos_ids) })
}

/// A step of a decoder, as far as it concerns a token inside a text.
enum Step<'a> {
    Replace(&'a DecoderWrapper),
    ReplaceChar(char),
    ByteFallback,
    ByteLevel,
    /// Acts on the ends of a text alone.
    Ends,
}

impl<'a> Step<'a> {
    fn new(step: &'a DecoderWrapper) -> Option<Self> {
        match step {
            DecoderWrapper::Replace(_) => Some(Self::Replace(step)),
            DecoderWrapper::Metaspace(step) => Some(Self::ReplaceChar(step.get_replacement())),
            DecoderWrapper::ByteFallback(_) => Some(Self::ByteFallback),
            DecoderWrapper::ByteLevel(_) => Some(Self::ByteLevel),
            DecoderWrapper::Fuse(_) | DecoderWrapper::Strip(_) => Some(Self::Ends),
            _ => None,
        }
    }
}

fn bytes(steps: &[Step<'_>], mut piece: String) -> Result<Vec<u8>, String> {
    for step in steps {
        match step {
            Step::Replace(replace) => piece = guarded(|| replace.decode(vec![piece]))?,
            Step::ReplaceChar(space) => piece = piece.replace(*space, " "),
            Step::ByteFallback => {
                if let Some(byte) = stream::fallback_byte(&piece) {
                    return Ok(vec![byte]);
                }
            }
            Step::ByteLevel => return Ok(stream::level_bytes(&piece)),
            Step::Ends => {}
        }
    }
    Ok(piece.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny;

    fn words(json: &serde_json::Value, ids: std::ops::Range<u32>) -> Vec<Vec<u8>> {
        let tokenizer = tiny::tokenizer(json);
        let trie = trie(&tokenizer, tokenizer.vocab_size(), &[0]).unwrap();
        ids.map(|id| trie.token(id).to_vec()).collect()
    }

    #[test]
    fn tokens_have_the_bytes_that_they_decode_to() {
        let last = words(&tiny::byte_level(), 256..265);
        let expected: [&[u8]; 9] = [
            b"he",
            b"ll",
            b"hell",
            b" w",
            b"\xf0\x9f",
            b"\xf0\x9f\x98",
            b"\xff<s>",
            b"\xff</s>",
            "née ".as_bytes(),
        ];
        assert_eq!(last, expected);
        let bytes: std::collections::BTreeSet<Vec<u8>> =
            words(&tiny::byte_level(), 1..256).into_iter().collect();
        assert_eq!((bytes.len(), bytes.iter().all(|word| word.len() == 1)), (255, true));

        let fallback = words(&tiny::byte_fallback(), 1..267);
        assert_eq!(fallback[..2], [b"\xff<s>".to_vec(), b"\xff</s>".to_vec()]);
        assert_eq!(fallback[2..258], (0..=255).map(|byte| vec![byte]).collect::<Vec<_>>());
        let texts = [" ", "a", "b", " a", "  ", "é", "\u{fffd}", "ab"];
        assert_eq!(fallback[258..], texts.map(|text| text.as_bytes().to_vec()));

        assert_eq!(words(&tiny::metaspace(), 1..4), [b" ".to_vec(), b" a".to_vec(), b"b".to_vec()]);
    }

    #[test]
    fn decoders_of_words_are_refused() {
        for json in [tiny::word_piece(), tiny::word_end(), tiny::words()] {
            let error = trie(&tiny::tokenizer(&json), 4, &[]).err().unwrap().to_string();
            assert!(error.contains("cannot be used for structured output"), "{error}");
        }
    }

    #[test]
    fn a_token_outside_the_vocabulary_ends_no_text() {
        let error = trie(&tiny::tokenizer(&tiny::byte_level()), 265, &[265]).err().unwrap();
        assert!(
            error.to_string().ends_with("token 265 ends a text, but the vocabulary has 265 tokens")
        );
    }
}
