//! What may come before a constrained answer: reasoning, which is held to no structure.
//!
//! An automaton over bytes with a mask of the vocabulary for each of its states, made once for a
//! vocabulary. It finds the tags where [`ReasoningParser`](crate::ReasoningParser) finds them, and
//! allows all text between them, under three rules that make certain what the parser will read:
//!
//! - Reasoning is UTF-8. Decoders with byte fallback turn all bytes of a run that is not into
//!   U+FFFD, those of a tag too.
//! - A token that closes the reasoning holds nothing of the answer but line breaks, which the
//!   parser drops.
//! - Special tokens are not reasoning, and tokens that end a text do not end one without an answer.

use std::collections::BTreeMap;

use llguidance::toktrie::TokTrie;

use crate::reasoning::{CLOSE, OPEN};

/// Line breaks between reasoning and answer that are allowed; models that write more often write
/// nothing else.
pub(super) const MAX_LINE_BREAKS: usize = 16;

/// A place in a text that may begin with reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// After so many bytes of the opening tag, perhaps none.
    Opening(usize),
    /// Within reasoning, between characters.
    Reasoning,
    /// Within a character of the reasoning: a row of [`CHARACTER`].
    Character(usize),
    /// After so many bytes of the closing tag.
    Closing(usize),
    /// After the closing tag, perhaps with line breaks.
    Closed,
}

/// Within a character of UTF-8: the least and the greatest byte that may come next, and where that
/// leads (RFC 3629, section 4).
pub(super) const CHARACTER: [(u8, u8, Place); 7] = [
    (0x80, 0xbf, Place::Reasoning),
    (0x80, 0xbf, Place::Character(0)),
    (0x80, 0xbf, Place::Character(1)),
    (0xa0, 0xbf, Place::Character(0)),
    (0x80, 0x9f, Place::Character(0)),
    (0x90, 0xbf, Place::Character(1)),
    (0x80, 0x8f, Place::Character(1)),
];

impl Place {
    fn all() -> impl Iterator<Item = Self> {
        (0..OPEN.len())
            .map(Self::Opening)
            .chain([Self::Reasoning])
            .chain((0..CHARACTER.len()).map(Self::Character))
            .chain((1..CLOSE.len()).map(Self::Closing))
            .chain([Self::Closed])
    }

    fn step(self, byte: u8) -> Option<Self> {
        match self {
            Self::Opening(matched) => {
                let is_next = OPEN.as_bytes()[matched] == byte;
                let is_last = matched + 1 == OPEN.len();
                let next = if is_last { Self::Reasoning } else { Self::Opening(matched + 1) };
                is_next.then_some(next)
            }
            Self::Closing(matched) if CLOSE.as_bytes()[matched] == byte => {
                let is_last = matched + 1 == CLOSE.len();
                Some(if is_last { Self::Closed } else { Self::Closing(matched + 1) })
            }
            // The tag's first byte is nowhere else in it, so none of it can begin another.
            Self::Reasoning | Self::Closing(_) => match byte {
                b'<' => Some(Self::Closing(1)),
                0..=0x7f => Some(Self::Reasoning),
                0xc2..=0xdf => Some(Self::Character(0)),
                0xe0 => Some(Self::Character(3)),
                0xed => Some(Self::Character(4)),
                0xe1..=0xef => Some(Self::Character(1)),
                0xf0 => Some(Self::Character(5)),
                0xf1..=0xf3 => Some(Self::Character(2)),
                0xf4 => Some(Self::Character(6)),
                _ => None,
            },
            Self::Character(row) => {
                let (least, greatest, next) = CHARACTER[row];
                (least..=greatest).contains(&byte).then_some(next)
            }
            Self::Closed => (byte == b'\n').then_some(Self::Closed),
        }
    }

    /// Where the bytes of a token lead, at least one.
    pub(super) fn after(self, bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().try_fold(self, |place, &byte| place.step(byte));
        end.filter(|_| !bytes.is_empty())
    }
}

/// Masks of one vocabulary, a bit for each token.
#[derive(Debug)]
pub(super) struct BeforeMasks {
    /// Tokens that may come at a place and belong to no answer.
    allowed: BTreeMap<Place, Box<[u32]>>,
    /// Tokens that an answer must not begin with there, since the parser would not take them for a
    /// part of it: a whole opening tag, or line breaks after the closing one.
    taken: BTreeMap<Place, Box<[u32]>>,
}

impl BeforeMasks {
    pub(super) fn new(trie: &TokTrie) -> Self {
        let words = trie.vocab_size().div_ceil(32);
        let mask = |has: &dyn Fn(&[u8]) -> bool| {
            let mut mask = vec![0; words].into_boxed_slice();
            for (token, index) in (0..).zip(0..trie.vocab_size()) {
                if text(trie, token).is_some_and(has) {
                    mask[index / 32] |= 1_u32 << (index % 32);
                }
            }
            mask
        };
        let allowed = Place::all()
            .map(|place| (place, mask(&|bytes| place.after(bytes).is_some())))
            .collect();
        let holds_tag =
            |bytes: &[u8]| bytes.windows(OPEN.len()).any(|part| part == OPEN.as_bytes());
        let ends_tag = |matched: usize, bytes: &[u8]| {
            holds_tag(bytes) || matched > 0 && bytes.starts_with(&OPEN.as_bytes()[matched..])
        };
        let taken = (0..OPEN.len())
            .map(|matched| (Place::Opening(matched), mask(&|bytes| ends_tag(matched, bytes))))
            .chain([(Place::Closed, mask(&|bytes| bytes.starts_with(b"\n")))])
            .collect();
        Self { allowed, taken }
    }

    /// Tokens that belong to no answer.
    pub(super) fn allowed(&self, place: Place) -> &[u32] {
        self.allowed.get(&place).map_or(&[], |mask| mask)
    }

    /// Tokens that no answer begins with.
    pub(super) fn taken(&self, place: Place) -> &[u32] {
        self.taken.get(&place).map_or(&[], |mask| mask)
    }
}

/// The text of a token, as the parser reads it: none of a special token, unless it is a tag.
pub(super) fn text(trie: &TokTrie, token: u32) -> Option<&[u8]> {
    match trie.token(token) {
        [] => None,
        [TokTrie::SPECIAL_TOKEN_MARKER, name @ ..] => {
            [OPEN, CLOSE].iter().any(|tag| tag.as_bytes() == name).then_some(name)
        }
        bytes => Some(bytes),
    }
}

/// The end of a text that may yet turn out to begin with reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lead {
    /// Whitespace, then so many bytes of the opening tag.
    Tag(usize),
    /// Whitespace, then a part of a character.
    Character,
}

/// How a text may turn out to begin with reasoning; `None` if it is an answer.
pub(super) fn lead(text: &[u8]) -> Option<Lead> {
    let (whole, is_cut) = match std::str::from_utf8(text) {
        Ok(text) => (text, false),
        Err(error) if error.error_len().is_none() => {
            (std::str::from_utf8(&text[..error.valid_up_to()]).ok()?, true)
        }
        Err(_) => return None,
    };
    match whole.trim_start() {
        "" if is_cut => Some(Lead::Character),
        rest => {
            let is_part = !is_cut && OPEN.starts_with(rest) && rest != OPEN;
            is_part.then_some(Lead::Tag(rest.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ReasoningFormat, ReasoningParser};

    proptest! {
        /// Over whole characters: the parser has closed exactly where the automaton has.
        #[test]
        fn the_automaton_finds_the_tags_that_the_parser_finds(
            pieces in prop::collection::vec(
                prop_oneof!["<think>", "</think>", "\n", "[<>/thinké😀 \u{800}\u{d7ff}\u{10ffff}]{0,6}"],
                0..12),
        ) {
            let text = pieces.concat();
            let mut parser = ReasoningParser::new(ReasoningFormat::DeepSeekR1, "<think>\n");
            let mut place = Place::Reasoning;
            for c in text.chars() {
                let next = place.after(c.encode_utf8(&mut [0; 4]).as_bytes());
                parser.push(c.encode_utf8(&mut [0; 4]));
                prop_assert_eq!(parser.is_reasoning(), next.is_some_and(|p| p != Place::Closed));
                match next {
                    Some(next) => place = next,
                    None => break,
                }
            }
        }

        #[test]
        fn reasoning_is_utf_8(bytes in prop::collection::vec(
            prop_oneof![any::<u8>(), Just(0xe0), Just(0xed), Just(0xf0), Just(0xf4), 0x7e..0xc4_u8],
            1..6))
        {
            let is_valid = match std::str::from_utf8(&bytes) {
                Ok(_) => true,
                Err(error) => error.error_len().is_none(),
            };
            prop_assert_eq!(Place::Reasoning.after(&bytes).is_some(), is_valid);
        }
    }

    #[test]
    fn a_text_is_open_while_it_is_whitespace_and_a_part_of_the_tag() {
        for (text, want) in [
            (&b""[..], Some(Lead::Tag(0))),
            (" \n\u{3000}".as_bytes(), Some(Lead::Tag(0))),
            (b"\n<thi", Some(Lead::Tag(4))),
            (b"<think", Some(Lead::Tag(6))),
            (b"<b", None),
            (b"< ", None),
            (b"x", None),
            (&b" \xe3\x80"[..], Some(Lead::Character)),
            (&b"<\xe3"[..], None),
            (&b"\xff"[..], None),
        ] {
            assert_eq!(lead(text), want, "{text:?}");
        }
    }
}
