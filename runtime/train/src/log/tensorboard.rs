//! TensorBoard's event files: records of TFRecord with a protocol buffer `Event` each.
//!
//! A record is its length, a masked CRC-32C of that, the bytes, and a masked CRC-32C of them.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::TrainError;

/// A file of events in a folder of TensorBoard.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins a file of its own, beside those of earlier runs.
    pub(super) fn create(dir: &Path) -> Result<EventFile, TrainError> {
        std::fs::create_dir_all(dir).map_err(|e| TrainError::file(dir, e))?;
        let (seconds, process) = (now().as_secs(), std::process::id());
        let path = dir.join(format!("events.out.tfevents.{seconds}.brolly.{process}"));
        let file = File::create(&path).map_err(|e| TrainError::file(&path, e))?;
        let mut events = EventFile { path, file };
        let mut event = time();
        bytes(&mut event, 3, b"brain.Event:2");
        events.record(&event)?;
        Ok(events)
    }

    /// Adds the values of a step.
    pub(super) fn scalars(&mut self, step: u64, all: &[(&str, f32)]) -> Result<(), TrainError> {
        let mut summary = Vec::new();
        for (tag, value) in all {
            let mut scalar = Vec::new();
            bytes(&mut scalar, 1, tag.as_bytes());
            // Field 2, four bytes.
            scalar.push(2 << 3 | 5);
            scalar.extend(value.to_le_bytes());
            bytes(&mut summary, 1, &scalar);
        }
        let mut event = time();
        event.push(2 << 3);
        varint(&mut event, step);
        bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, event: &[u8]) -> Result<(), TrainError> {
        let len = (event.len() as u64).to_le_bytes();
        let mut record = len.to_vec();
        record.extend(masked_crc(&len));
        record.extend(event);
        record.extend(masked_crc(event));
        self.file.write_all(&record).map_err(|e| TrainError::file(&self.path, e))
    }
}

fn now() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Field 1, eight bytes: seconds since 1970.
fn time() -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(now().as_secs_f64().to_le_bytes());
    event
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n.to_le_bytes()[0] | 0x80);
        n >>= 7;
    }
    out.push(n.to_le_bytes()[0]);
}

/// A field of a number of bytes.
fn bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// As TFRecord has it: a checksum of data that holds checksums would be weak.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    let crc = crc32c::crc32c(bytes);
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_as_tensorboard_reads_them() {
        let dir = std::env::temp_dir().join(format!("brolly-events-{}", std::process::id()));
        let mut events = EventFile::create(&dir).unwrap();
        events.scalars(300, &[("train/loss", 1.5)]).unwrap();
        let all = std::fs::read(&events.path).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
        let mut rest = &all[..];
        let mut found = Vec::new();
        while let Some((head, tail)) = rest.split_at_checked(12) {
            let len = usize::try_from(u64::from_le_bytes(head[..8].try_into().unwrap())).unwrap();
            assert_eq!(head[8..], masked_crc(&head[..8]));
            assert_eq!(tail[len..len + 4], masked_crc(&tail[..len]));
            found.push(&tail[..len]);
            rest = &tail[len + 4..];
        }
        assert_eq!(found.len(), 2);
        assert_eq!(found[0][9..], *b"\x1a\x0dbrain.Event:2");
        // Step 300, then a summary of one value: its tag, and 1.5.
        let summary = b"\x2a\x13\x0a\x11\x0a\x0atrain/loss\x15\0\0\xc0\x3f";
        assert_eq!(found[1][9..], [&b"\x10\xac\x02"[..], summary].concat());
        // The checksum of RFC 3720, B.4.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
