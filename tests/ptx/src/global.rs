//! Global memory: allocations with red zones, and which of their bytes were written.

use crate::fault::FaultKind;

/// The first address; those below are never valid.
const FIRST: u64 = 0x10_0000_0000;
const ALIGN: u64 = 256;
const RED_ZONE: u64 = 4096;

#[derive(Debug)]
struct Allocation {
    base: u64,
    bytes: Vec<u8>,
    /// One bit a byte.
    written: Vec<u64>,
    /// Whether a kernel has written to it.
    stored: bool,
}

/// All of global memory.
#[derive(Debug)]
pub(crate) struct Global {
    allocations: Vec<Allocation>,
    next: u64,
    last: usize,
}

impl Global {
    pub(crate) fn new() -> Global {
        Global { allocations: Vec::new(), next: FIRST, last: 0 }
    }

    pub(crate) fn alloc(&mut self, bytes: u64, align: u64) -> u64 {
        let base = self.next.next_multiple_of(align.max(ALIGN));
        self.next = base + bytes + RED_ZONE;
        let size = bytes as usize;
        self.allocations.push(Allocation {
            base,
            bytes: vec![0; size],
            written: vec![0; size.div_ceil(64)],
            stored: false,
        });
        base
    }

    /// Takes back the allocation that begins at an address, if there is one.
    pub(crate) fn free(&mut self, address: u64) -> bool {
        let count = self.allocations.len();
        self.allocations.retain(|allocation| allocation.base != address);
        self.last = 0;
        self.allocations.len() < count
    }

    /// Takes back the allocations after the first `count`.
    pub(crate) fn truncate(&mut self, count: usize) {
        self.allocations.truncate(count);
        self.last = 0;
    }

    pub(crate) fn count(&self) -> usize {
        self.allocations.len()
    }

    fn find(&mut self, address: u64, bytes: usize) -> Result<(&mut Allocation, usize), FaultKind> {
        let holds = |allocation: &Allocation| {
            let offset = address.wrapping_sub(allocation.base);
            let size = allocation.bytes.len() as u64;
            offset <= size && bytes as u64 <= size - offset
        };
        if !self.allocations.get(self.last).is_some_and(holds) {
            let after = self.allocations.partition_point(|it| it.base <= address);
            self.last = after.saturating_sub(1);
        }
        match self.allocations.get_mut(self.last) {
            Some(allocation) if holds(allocation) => {
                let offset = (address - allocation.base) as usize;
                Ok((allocation, offset))
            }
            _ => Err(FaultKind::OutOfBounds { space: "global", address, bytes: bytes as u64 }),
        }
    }

    pub(crate) fn write(&mut self, address: u64, data: &[u8]) -> Result<(), FaultKind> {
        let (allocation, offset) = self.find(address, data.len())?;
        allocation.bytes[offset..offset + data.len()].copy_from_slice(data);
        allocation.mark(offset, data.len());
        Ok(())
    }

    /// As [`Global::write`], by a kernel.
    pub(crate) fn store(&mut self, address: u64, data: &[u8]) -> Result<(), FaultKind> {
        self.find(address, data.len())?.0.stored = true;
        self.write(address, data)
    }

    /// The allocations that no kernel has written to.
    pub(crate) fn constants(&self) -> impl Iterator<Item = u64> {
        self.allocations.iter().filter(|allocation| !allocation.stored).map(|it| it.base)
    }

    /// Where the allocation begins that an address is in.
    pub(crate) fn base_of(&self, address: u64) -> Option<u64> {
        let after = self.allocations.partition_point(|it| it.base <= address);
        let found = &self.allocations[after.checked_sub(1)?];
        (address - found.base < found.bytes.len() as u64).then_some(found.base)
    }

    /// Bytes that were all written before.
    pub(crate) fn read(&mut self, address: u64, bytes: usize) -> Result<&[u8], FaultKind> {
        let (allocation, offset) = self.find(address, bytes)?;
        if let Some(bad) = allocation.unwritten(offset, bytes) {
            let address = address + (bad - offset) as u64;
            return Err(FaultKind::Uninitialised { space: "global", address });
        }
        Ok(&allocation.bytes[offset..offset + bytes])
    }

    /// Bytes, where they were written before.
    pub(crate) fn written(
        &mut self,
        address: u64,
        bytes: usize,
    ) -> Result<Vec<Option<u8>>, FaultKind> {
        let (allocation, offset) = self.find(address, bytes)?;
        let byte = |at: usize| {
            let is_written = allocation.written[at / 64] >> (at % 64) & 1 != 0;
            is_written.then(|| allocation.bytes[at])
        };
        Ok((offset..offset + bytes).map(byte).collect())
    }

    /// Checks that an access lies in one allocation.
    pub(crate) fn check(&mut self, address: u64, bytes: usize) -> Result<(), FaultKind> {
        self.find(address, bytes).map(|_| ())
    }
}

impl Allocation {
    fn mark(&mut self, offset: usize, bytes: usize) {
        for_words(offset, bytes, |word, mask| {
            self.written[word] |= mask;
            true
        });
    }

    fn unwritten(&self, offset: usize, bytes: usize) -> Option<usize> {
        let mut bad = None;
        for_words(offset, bytes, |word, mask| {
            let missing = mask & !self.written[word];
            bad = (missing != 0).then(|| word * 64 + missing.trailing_zeros() as usize);
            bad.is_none()
        });
        bad
    }
}

/// Calls `visit` with each word of a bit set and the bits of a range in it, while it says so.
fn for_words(offset: usize, bytes: usize, mut visit: impl FnMut(usize, u64) -> bool) {
    let end = offset + bytes;
    let mut at = offset;
    while at < end {
        let (word, from) = (at / 64, at % 64);
        let count = (64 - from).min(end - at);
        let mask = (u64::MAX >> (64 - count)) << from;
        if !visit(word, mask) {
            return;
        }
        at += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_written_bytes_within_one_allocation_are_read() {
        let mut global = Global::new();
        let (a, b) = (global.alloc(100, 1), global.alloc(300, 1));
        assert!(a % 256 == 0 && b > a + 100);
        assert_eq!(
            global.read(a + 3, 4),
            Err(FaultKind::Uninitialised { space: "global", address: a + 3 })
        );
        global.write(a, &[7; 100]).unwrap();
        assert_eq!(global.read(a + 60, 40).unwrap(), [7; 40]);
        assert_eq!(global.written(b + 7, 2), Ok(vec![None; 2]));
        global.write(b + 8, &[9]).unwrap();
        assert_eq!(global.written(b + 7, 3), Ok(vec![None, Some(9), None]));
        let bounds = |address, bytes| FaultKind::OutOfBounds { space: "global", address, bytes };
        assert_eq!(global.read(a + 97, 4), Err(bounds(a + 97, 4)));
        assert_eq!(global.write(b + 300, &[1]), Err(bounds(b + 300, 1)));
        assert_eq!(global.read(8, 4), Err(bounds(8, 4)));
        assert!(global.free(a) && !global.free(a) && !global.free(b + 1));
        assert_eq!(global.read(a, 4), Err(bounds(a, 4)));
    }
}
