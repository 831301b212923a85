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
            let (address, handle) = (to.device(), stream.handle());
            half.busy = true;
            let upload = || half.driver.upload(address, half.pinned, 0, part.len(), handle);
            stream.give_with(&[&to], upload)?;
            half.copied.record(stream)?;
            to = to.plus(part.len() as u64);
        }
        Ok(())
    }

    /// Copies several pieces to the device, in one turn where a half holds them all.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    pub fn upload_all<'a>(
        &mut self,
        stream: &Stream,
        pieces: impl IntoIterator<Item = (Address, &'a [u8])> + Clone,
    ) -> Result<(), CudaError> {
        let all: usize = pieces.clone().into_iter().map(|(_, data)| data.len()).sum();
        if all > self.bytes {
            return pieces.into_iter().try_for_each(|(to, data)| self.upload(stream, &to, data));
        }
        let half = self.turn()?;
        let mut at = 0;
        for (to, data) in pieces {
            if data.is_empty() {
                continue;
            }
            let address = to.range(data.len() as u64)?;
            half.driver.write_pinned(half.pinned, at, data);
            half.busy = true;
            let handle = stream.handle();
            let upload = || half.driver.upload(address, half.pinned, at, data.len(), handle);
            stream.give_with(&[&to], upload)?;
            at += data.len();
        }
        half.copied.record(stream)
    }

    /// Copies several pieces from the device, after the stream's work so far; one wait for as many
    /// as a half holds.
    ///
    /// # Errors
    /// As [`download`](Self::download).
    pub fn download_all(
        &mut self,
        stream: &Stream,
        mut pieces: &mut [(Address, &mut [u8])],
    ) -> Result<(), CudaError> {
        while !pieces.is_empty() {
            let mut all = 0;
            let fits = |(_, data): &&(Address, &mut [u8])| {
                all += data.len();
                all <= self.bytes
            };
            let count = pieces.iter().take_while(fits).count();
            let (now, later) = pieces.split_at_mut(count.max(1));
            match now {
                [(from, data)] => self.download(stream, from, data)?,
                several => self.download_several(stream, several)?,
            }
            pieces = later;
        }
        Ok(())
    }

    /// Copies pieces that a half holds.
    fn download_several(
        &mut self,
        stream: &Stream,
        pieces: &mut [(Address, &mut [u8])],
    ) -> Result<(), CudaError> {
        let half = self.turn()?;
        let mut at = 0;
        for (from, data) in pieces.iter().filter(|(_, data)| !data.is_empty()) {
            let address = from.range(data.len() as u64)?;
            let handle = stream.handle();
            let download = || half.driver.download(half.pinned, at, address, data.len(), handle);
            stream.give_with(&[from], download)?;
            at += data.len();
        }
        stream.synchronize()?;
        let mut at = 0;
        for (_, data) in pieces {
            half.driver.read_pinned(half.pinned, at, data);
            at += data.len();
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
            let (address, handle) = (from.device(), stream.handle());
            let download = || half.driver.download(half.pinned, 0, address, part.len(), handle);
            stream.give_with(&[&from], download)?;
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
