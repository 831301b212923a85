//! PTX text to tokens.

use crate::fault::ParseError;

/// A token. Words keep their dots and double colons: `ld.global.L1::no_allocate` is one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Tok<'a> {
    /// A name, directive or instruction.
    Word(&'a str),
    /// An integer, or the bits of a `0f` or `0d` literal.
    Int(u64),
    /// A decimal fraction.
    Decimal(f64),
    /// A string, without quotes.
    Str,
    /// Anything else.
    Punct(char),
}

/// A token and its line, from 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    pub(crate) tok: Tok<'a>,
    pub(crate) line: u32,
}

/// All tokens of a text.
pub(crate) fn lex<'a>(text: &'a str, errors: &mut Vec<ParseError>) -> Vec<Token<'a>> {
    let mut lexer = Lexer { rest: text, line: 1 };
    let mut tokens = Vec::new();
    loop {
        match lexer.next() {
            Ok(Some(token)) => tokens.push(token),
            Ok(None) => return tokens,
            Err(error) => errors.push(error),
        }
    }
}

struct Lexer<'a> {
    rest: &'a str,
    line: u32,
}

impl<'a> Lexer<'a> {
    fn next(&mut self) -> Result<Option<Token<'a>>, ParseError> {
        self.skip_blank();
        let line = self.line;
        let Some(first) = self.rest.chars().next() else { return Ok(None) };
        let tok = if first.is_ascii_digit() {
            self.number().ok_or(ParseError { line, reason: "bad number".to_owned() })?
        } else if is_word_start(first) {
            Tok::Word(self.word())
        } else if first == '"' {
            let end = self.rest[1..].find('"').map_or(self.rest.len(), |end| end + 2);
            self.take(end);
            Tok::Str
        } else if first.is_ascii_punctuation() {
            self.take(1);
            Tok::Punct(first)
        } else {
            self.take(first.len_utf8());
            return Err(ParseError { line, reason: format!("stray character {first:?}") });
        };
        Ok(Some(Token { tok, line }))
    }

    fn skip_blank(&mut self) {
        loop {
            let blank = self.rest.len() - self.rest.trim_start().len();
            self.take(blank);
            if self.rest.starts_with("//") {
                let end = self.rest.find('\n').unwrap_or(self.rest.len());
                self.take(end);
            } else if self.rest.starts_with("/*") {
                let end = self.rest.find("*/").map_or(self.rest.len(), |end| end + 2);
                self.take(end);
            } else {
                return;
            }
        }
    }

    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.line += taken.bytes().filter(|byte| *byte == b'\n').count() as u32;
        self.rest = rest;
        taken
    }

    fn word(&mut self) -> &'a str {
        let bytes = self.rest.as_bytes();
        let mut end = 1;
        while let Some(byte) = bytes.get(end) {
            let scoped = *byte == b':' && bytes.get(end + 1) == Some(&b':');
            let after = bytes.get(end + 2).copied().unwrap_or_default();
            if scoped && (after.is_ascii_alphanumeric() || after == b'_') {
                end += 2;
            } else if is_word_start(char::from(*byte)) || byte.is_ascii_digit() {
                end += 1;
            } else {
                break;
            }
        }
        self.take(end)
    }

    fn number(&mut self) -> Option<Tok<'a>> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '.';
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let text = self.take(end);
        let prefix = text.get(..2).unwrap_or_default();
        let digits = text.get(2..).unwrap_or_default().trim_end_matches(['U', 'u']);
        match prefix {
            "0x" | "0X" => u64::from_str_radix(digits, 16).ok().map(Tok::Int),
            "0b" | "0B" => u64::from_str_radix(digits, 2).ok().map(Tok::Int),
            "0f" | "0F" if digits.len() == 8 => {
                u32::from_str_radix(digits, 16).ok().map(|bits| Tok::Int(bits.into()))
            }
            "0d" | "0D" if digits.len() == 16 => u64::from_str_radix(digits, 16).ok().map(Tok::Int),
            _ if text.contains('.') => text.parse().ok().map(Tok::Decimal),
            _ => text.trim_end_matches(['U', 'u']).parse().ok().map(Tok::Int),
        }
    }
}

fn is_word_start(c: char) -> bool {
    c.is_ascii_alphabetic() || matches!(c, '_' | '$' | '%' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toks(text: &str) -> Vec<Tok<'_>> {
        let mut errors = Vec::new();
        let tokens = lex(text, &mut errors);
        assert!(errors.is_empty(), "{errors:?}");
        tokens.into_iter().map(|token| token.tok).collect()
    }

    #[test]
    fn words_keep_dots_and_scopes_but_not_the_colon_of_a_label() {
        assert_eq!(
            toks("ld.shared::cta.b32 L1: %tid.x"),
            [
                Tok::Word("ld.shared::cta.b32"),
                Tok::Word("L1"),
                Tok::Punct(':'),
                Tok::Word("%tid.x")
            ]
        );
    }

    #[test]
    fn numbers_are_read_in_all_their_spellings() {
        assert_eq!(
            toks("0f3F800000 0x10 12 0d3FF0000000000000 7U 1.5"),
            [
                Tok::Int(0x3f80_0000),
                Tok::Int(16),
                Tok::Int(12),
                Tok::Int(0x3ff0_0000_0000_0000),
                Tok::Int(7),
                Tok::Decimal(1.5)
            ]
        );
    }

    #[test]
    fn comments_count_lines() {
        let mut errors = Vec::new();
        let tokens = lex("// one\n/* two\n three */ ret", &mut errors);
        assert_eq!(tokens[0].line, 3);
    }
}
