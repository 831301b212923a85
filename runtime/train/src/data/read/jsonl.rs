//! Lines of a JSONL file. They are taken apart by whoever encodes them, in parallel.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
};

use super::{Reading, Record, Sink};
use crate::data::{error::DataError, files::unreadable};

/// The longest line: memory for one is all that is taken.
const MAX_LINE: u64 = 256 << 20;

pub(super) fn read(cx: &Reading<'_>, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let path = &cx.file.path;
    let fail = |error| unreadable(path, error);
    let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(fail)?);
    for number in 1u64.. {
        let mut bytes = Vec::new();
        let mut read =
            file.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes).map_err(fail)? as u64;
        if read == 0 {
            break;
        }
        let record = if read == MAX_LINE && bytes.last() != Some(&b'\n') {
            read += skip_line(&mut file).map_err(fail)?;
            Record::Bad { number, reason: format!("is longer than {} MiB", MAX_LINE >> 20) }
        } else {
            if number == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
                bytes.drain(..3);
            }
            Record::Line { number, bytes }
        };
        cx.advance(read);
        let is_blank =
            matches!(&record, Record::Line { bytes, .. } if bytes.trim_ascii().is_empty());
        if !is_blank && sink(record).is_break() {
            break;
        }
    }
    Ok(())
}

fn skip_line(file: &mut BufReader<File>) -> std::io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = file.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let n = end.map_or(buffer.len(), |at| at + 1);
        file.consume(n);
        skipped += n as u64;
        if end.is_some() || n == 0 {
            return Ok(skipped);
        }
    }
}
