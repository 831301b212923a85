//! Plain text: one document a file, or documents with a separator between them.
//!
//! A long document comes in pieces of about a megabyte, so that it is encoded in parallel and never
//! in memory as a whole. They part between two lines, where tokenizers that split text into words
//! split it anyway. One that puts a space before every text puts it before every piece.

use std::{fs::File, io::Read as _};

use super::{Reading, Record, Sink};
use crate::data::{error::DataError, files::unreadable};

const PIECE: usize = 1 << 20;

pub(super) fn read(cx: &Reading<'_>, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let fail = |error| unreadable(&cx.file.path, error);
    let mut file = File::open(&cx.file.path).map_err(fail)?;
    let mut pieces = Pieces::new(cx.separator.unwrap_or_default().as_bytes());
    loop {
        let wanted = (2 * PIECE).saturating_sub(pieces.rest().len()) as u64;
        pieces.compact();
        let read = (&mut file).take(wanted).read_to_end(&mut pieces.buffer).map_err(fail)? as u64;
        cx.advance(read);
        let is_end = read < wanted;
        while let Some(record) = pieces.next(is_end) {
            let record = record.map_err(|reason| cx.fail(reason))?;
            if sink(record).is_break() {
                return Ok(());
            }
        }
        if is_end {
            return Ok(());
        }
    }
}

/// Bytes that have been read, and how far they have been cut to pieces.
struct Pieces<'s> {
    buffer: Vec<u8>,
    at: usize,
    separator: &'s [u8],
    /// Bytes and lines before the buffer's place.
    bytes_before: u64,
    line: u64,
    in_document: bool,
    is_done: bool,
}

impl<'s> Pieces<'s> {
    fn new(separator: &'s [u8]) -> Pieces<'s> {
        let (in_document, is_done) = (false, false);
        let buffer = Vec::with_capacity(2 * PIECE);
        Pieces { buffer, at: 0, separator, bytes_before: 0, line: 1, in_document, is_done }
    }

    fn rest(&self) -> &[u8] {
        &self.buffer[self.at..]
    }

    fn compact(&mut self) {
        self.buffer.drain(..self.at);
        self.at = 0;
    }

    /// The next piece, if what is buffered holds one for sure.
    fn next(&mut self, is_end: bool) -> Option<Result<Record, String>> {
        if self.is_done {
            return None;
        }
        if self.bytes_before == 0 && self.rest().starts_with(b"\xef\xbb\xbf") {
            self.skip(3);
        }
        let rest = self.rest();
        let found = (!self.separator.is_empty())
            .then(|| rest.windows(self.separator.len()).position(|w| w == self.separator))
            .flatten();
        // The end of what is buffered may be the beginning of a separator.
        let unsure = if is_end { 0 } else { self.separator.len().saturating_sub(1) };
        let safe = rest.len().saturating_sub(unsure);
        let (len, skipped, is_last) = match found {
            Some(len) if len <= PIECE => (len, self.separator.len(), true),
            _ if is_end && rest.len() <= PIECE => (rest.len(), 0, true),
            _ if safe >= PIECE => (cut(&rest[..PIECE]), 0, false),
            _ => return None,
        };
        let text = match std::str::from_utf8(&rest[..len]) {
            Ok(text) => text.to_owned(),
            Err(error) => {
                let good = error.valid_up_to();
                let line = self.line + newlines(&rest[..good]);
                let at = self.bytes_before + good as u64;
                return Some(Err(format!("is not UTF-8: line {line}, byte {at} of the file")));
            }
        };
        let (number, is_first) = (self.line, !self.in_document);
        self.in_document = !is_last;
        self.is_done = is_last && skipped == 0;
        self.skip(len + skipped);
        Some(Ok(Record::Piece { number, text, is_first, is_last }))
    }

    fn skip(&mut self, bytes: usize) {
        self.line += newlines(&self.rest()[..bytes]);
        self.bytes_before += bytes as u64;
        self.at += bytes;
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// Where to end a piece: between two lines with words at either side, else before a word that
/// begins a line, else before a space, else between two characters.
fn cut(bytes: &[u8]) -> usize {
    let places = || (1..bytes.len()).rev();
    let is_space = |at: usize| bytes[at].is_ascii_whitespace();
    let begins_line = |at: usize| bytes[at - 1] == b'\n' && !is_space(at);
    places()
        .find(|&at| begins_line(at) && at > 1 && !is_space(at - 2))
        .or_else(|| places().find(|&at| begins_line(at)))
        .or_else(|| places().find(|&at| bytes[at] == b' ' && !is_space(at - 1)))
        .or_else(|| places().find(|&at| bytes[at] & 0xc0 != 0x80))
        .unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use std::{ops::ControlFlow, path::PathBuf, sync::atomic::AtomicU64};

    use proptest::prelude::*;

    use super::*;
    use crate::data::{
        files::{Kind, SourceFile},
        testing::Folder,
    };

    /// The documents of a file, joined from their pieces, with their first lines.
    fn documents(path: PathBuf, separator: Option<&str>) -> Result<Vec<(u64, String)>, DataError> {
        let file = SourceFile { path, kind: Kind::Plain };
        let cx = Reading { file: &file, columns: &[], separator, done: &AtomicU64::new(0) };
        let mut out: Vec<(u64, String)> = Vec::new();
        cx.run(&mut |record| {
            let Record::Piece { number, text, is_first, .. } = record else { panic!("{record:?}") };
            assert!(text.len() <= PIECE);
            if is_first {
                out.push((number, String::new()));
            }
            out.last_mut().unwrap().1 += &text;
            ControlFlow::Continue(())
        })?;
        Ok(out)
    }

    #[test]
    fn a_file_is_one_document_or_what_a_separator_makes_of_it() {
        let folder = Folder::new("plain");
        let path = folder.write("a.txt", "\u{feff}one\ntwo\n\nthree\n\n".as_bytes());
        let one = documents(path.clone(), None).unwrap();
        assert_eq!(one, [(1, "one\ntwo\n\nthree\n\n".into())]);
        let parted = documents(path, Some("\n\n")).unwrap();
        assert_eq!(parted, [(1, "one\ntwo".into()), (4, "three".into()), (6, String::new())]);
    }

    #[test]
    fn long_documents_come_in_pieces_with_nothing_lost() {
        let folder = Folder::new("plain-long");
        let lines: String = (0..300_000).map(|i| format!("line {i}é\n")).collect();
        let solid = "é".repeat(PIECE);
        for text in [&lines, &solid] {
            let path = folder.write("a.txt", text.as_bytes());
            assert!(documents(path, None).unwrap() == [(1, text.clone())]);
        }
        let path = folder.write("a.txt", format!("{lines}<|>{solid}<|>x").as_bytes());
        let parted = documents(path, Some("<|>")).unwrap();
        let parted: Vec<&str> = parted.iter().map(|(_, text)| text.as_str()).collect();
        assert!(parted == [&*lines, &*solid, "x"]);
    }

    #[test]
    fn bytes_that_are_no_text_are_found() {
        let folder = Folder::new("plain-bytes");
        let path = folder.write("a.txt", b"one\ntwo \xff\n");
        let error = documents(path, None).unwrap_err().to_string();
        assert!(error.ends_with("a.txt: is not UTF-8: line 2, byte 8 of the file"), "{error}");
    }

    proptest! {
        #[test]
        fn pieces_part_between_characters(text in "[aé \n😀]{1,40}") {
            let at = cut(text.as_bytes());
            prop_assert!(at > 0 && text.is_char_boundary(at));
        }
    }
}
