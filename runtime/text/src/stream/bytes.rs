//! Byte-level tokens: each stands for bytes whatever its neighbours (GPT-2's alphabet, Radford et
//! al. 2019), so the text is an incremental lossy UTF-8 decoding of their concatenation.

use std::str;

/// The bytes of a character that is not complete yet: at most three.
#[derive(Clone, Debug, Default)]
pub(super) struct ByteStream {
    pending: Vec<u8>,
}

impl ByteStream {
    /// The characters that `token` completes. Each maximal ill-formed subsequence becomes one
    /// U+FFFD, as in [`String::from_utf8_lossy`].
    pub(super) fn push(&mut self, token: &str) -> String {
        self.pending.extend(level_bytes(token));
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        let incomplete = loop {
            let error = match str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    break &[][..];
                }
                Err(error) => error,
            };
            let (valid, after) = rest.split_at(error.valid_up_to());
            text.push_str(str::from_utf8(valid).unwrap_or_default());
            match error.error_len() {
                Some(len) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[len..];
                }
                None => break after,
            }
        };
        self.pending = incomplete.to_vec();
        text
    }

    /// What remains: nothing, or U+FFFD for an incomplete character.
    pub(super) fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// The bytes of a token; added tokens are plain text.
pub(crate) fn level_bytes(token: &str) -> Vec<u8> {
    let bytes = token.chars().map(byte_of).collect::<Option<Vec<u8>>>();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The inverse of GPT-2's `bytes_to_unicode`: printable Latin-1 stands for itself, the other 68
/// bytes are the characters from U+0100 on, in their order.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_alphabet_is_that_of_the_tokenizers_crate() {
        let alphabet: BTreeSet<char> =
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
        let ours: BTreeSet<char> = ('\0'..='\u{200}').filter(|&c| byte_of(c).is_some()).collect();
        assert_eq!(alphabet, ours);
        let bytes: BTreeSet<u8> = ours.into_iter().filter_map(byte_of).collect();
        assert_eq!(bytes.len(), 256);
        assert_eq!((byte_of('Ġ'), byte_of('Ċ')), (Some(b' '), Some(b'\n')));
    }

    #[test]
    fn ill_formed_bytes_are_given_out_once_they_are_certain() {
        let mut stream = ByteStream::default();
        assert_eq!(stream.push("ð"), "");
        assert_eq!(stream.push("ðŁĺĢ"), "\u{fffd}😀");
        assert_eq!(stream.push("Ģ"), "\u{fffd}");
        assert_eq!(stream.push("ðŁ"), "");
        assert_eq!(stream.finish(), "\u{fffd}");
    }
}
