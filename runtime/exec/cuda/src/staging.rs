//! Copies between host and device through pinned memory.

use std::sync::Arc;

use crate::{
    Address, CudaError, Device, Event, Stream,
    driver::{Driver, Pinned},
};

/// Two pinned buffers: one is filled while the other is copied.
#[derive(Debug)]
pub struct Staging {
    halves: [Half; 2],
    /// Bytes of a half.
    bytes: usize,
    next: usize,
}

#[derive(Debug)]
struct Half {
    driver: Arc<dyn Driver>,
    pinned: Pinned,
    /// The end of the copy that last used it.
    copied: Event,
    busy: bool,
}

impl Staging {
    pub(crate) fn new(device: &Device, bytes: usize) -> Result<Staging, CudaError> {
        let bytes = bytes.max(1);
        let half = || -> Result<Half, CudaError> {
            let copied = Event::new(device)?;
            let driver = device.driver().clone();
            let pinned = driver.pin(bytes)?;
            Ok(Half { driver, pinned, copied, busy: false })
        };
        let halves = [half()?, half()?];
        Ok(Staging { halves, bytes, next: 0 })
    }

    /// Bytes of a half: what one copy moves at most.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies bytes to the device. When this returns `data` has been read, and the stream's further
    /// work finds the bytes in place.
    ///
    /// # Errors
    /// [`CudaError::Range`]; what the driver says.
    pub fn upload(&mut self, stream: &Stream, to: &Address, data: &[u8]) -> Result<(), CudaError> {
        let mut to = to.range(data.len() as u64).map(|_| to.clone())?;
        for part in data.chunks(self.bytes) {
            let half = self.turn()?;
            half.driver.write_pinned(half.pinned, 0, part);
            stream.keep_memory(&to);
            let (address, handle) = (to.device(), stream.handle());
            half.busy = true;
            half.driver.upload(address, half.pinned, 0, part.len(), handle)?;
            half.copied.record(stream)?;
            to = to.plus(part.len() as u64);
        }
        Ok(())
    }

    /// Copies bytes from the device, after the stream's work so far.
    ///
    /// # Errors
    /// [`CudaError::Range`]; what the driver says, also of kernels before.
    pub fn download(
        &mut self,
        stream: &Stream,
        from: &Address,
        data: &mut [u8],
    ) -> Result<(), CudaError> {
        let mut from = from.range(data.len() as u64).map(|_| from.clone())?;
        for part in data.chunks_mut(self.bytes) {
            let half = self.turn()?;
            stream.keep_memory(&from);
            let (address, handle) = (from.device(), stream.handle());
            half.driver.download(half.pinned, 0, address, part.len(), handle)?;
            stream.synchronize()?;
            half.driver.read_pinned(half.pinned, 0, part);
            from = from.plus(part.len() as u64);
        }
        Ok(())
    }

    /// The half whose turn it is, when no copy uses it.
    fn turn(&mut self) -> Result<&mut Half, CudaError> {
        let half = &mut self.halves[self.next];
        self.next = 1 - self.next;
        if std::mem::take(&mut half.busy) {
            half.copied.synchronize()?;
        }
        Ok(half)
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        if self.busy {
            let _ = self.copied.synchronize();
        }
        let _ = self.driver.unpin(self.pinned);
    }
}
