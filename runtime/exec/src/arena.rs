//! Memory of a fixed size, zero until it is written, and counted by what is really used.

use std::io;

use memmap2::{Advice, MmapMut, MmapOptions};

use crate::resident::resident_bytes;

/// From this size on an arena asks for huge pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// One anonymous mapping.
#[derive(Debug)]
pub struct Arena {
    map: MmapMut,
    bytes: usize,
}

impl Arena {
    /// Reserves `bytes`, aligned to a page; pages become memory when they are first written.
    ///
    /// # Errors
    /// What the operating system says if the address space or its accounting has no room.
    pub fn new(bytes: u64) -> io::Result<Arena> {
        let bytes =
            usize::try_from(bytes).map_err(|e| io::Error::new(io::ErrorKind::OutOfMemory, e))?;
        let map = MmapOptions::new().len(bytes.max(1)).map_anon()?;
        if bytes >= HUGE_PAGE_BYTES {
            // A hint: kernels without huge pages refuse it.
            let _ = map.advise(Advice::HugePage);
        }
        Ok(Arena { map, bytes })
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Its contents.
    pub fn as_slice(&self) -> &[u8] {
        &self.map[..self.bytes]
    }

    /// Its contents, to write.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.map[..self.bytes]
    }

    /// Its address, for kernels.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// How much of it is memory now.
    pub fn resident_bytes(&self) -> u64 {
        resident_bytes(&self.map).min(self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_count_once_they_are_written() {
        let mut arena = Arena::new(1 << 20).unwrap();
        assert_eq!(arena.resident_bytes(), 0);
        arena.as_mut_slice()[70_000] = 1;
        assert_eq!(arena.resident_bytes(), 4096);
        assert_eq!(arena.as_slice().iter().map(|b| u64::from(*b)).sum::<u64>(), 1);
        arena.as_mut_slice().fill(2);
        assert_eq!(arena.resident_bytes(), 1 << 20);
    }

    #[test]
    fn odd_sizes_and_none_at_all() {
        let mut arena = Arena::new(10).unwrap();
        arena.as_mut_slice().fill(1);
        assert_eq!((arena.bytes(), arena.resident_bytes()), (10, 10));
        assert_eq!(Arena::new(0).unwrap().as_slice(), [0u8; 0]);
        assert!(Arena::new(u64::MAX).is_err());
    }
}
