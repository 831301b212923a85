//! How much of a range of addresses is physical memory, by `/proc/self/pagemap`.
//!
//! Each page has a word there whose bit 63 says that the page is mapped and bit 62 that it is
//! swapped out. That counts exactly what `Rss` counts, for anonymous memory and files alike.

use std::{fs::File, os::unix::fs::FileExt};

const PAGE: usize = 4096;

/// Bytes of the pages of `memory` that are mapped or swapped out; all of them where the system does
/// not tell.
pub(crate) fn resident_bytes(memory: &[u8]) -> u64 {
    counted(memory).unwrap_or(memory.len() as u64)
}

fn counted(memory: &[u8]) -> Option<u64> {
    if memory.is_empty() {
        return Some(0);
    }
    let pagemap = File::open("/proc/self/pagemap").ok()?;
    let start = memory.as_ptr().addr();
    let mut page = start / PAGE;
    let end = (start + memory.len()).div_ceil(PAGE);
    let mut buffer = vec![0u8; 1 << 16];
    let mut count = 0;
    while page < end {
        let wanted = ((end - page) * 8).min(buffer.len());
        let read = pagemap.read_at(&mut buffer[..wanted], (page * 8) as u64).ok()? / 8;
        if read == 0 {
            return None;
        }
        // The word is in native byte order; the two flags are in its topmost byte.
        let words = buffer[..read * 8].chunks_exact(8);
        count += words.filter(|w| flags(w) & 0b1100_0000 != 0).count();
        page += read;
    }
    Some((count * PAGE) as u64)
}

fn flags(word: &[u8]) -> u8 {
    if cfg!(target_endian = "little") { word[7] } else { word[0] }
}
