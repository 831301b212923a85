//! Memory of a device.

use std::{
    ptr,
    sync::{Arc, Weak},
};

use crate::{CudaError, Device, driver::Driver};

/// `CUDA_ERROR_OUT_OF_MEMORY`.
const OUT_OF_MEMORY: u32 = 2;

/// One allocation; its copies are the same one, which is freed with the last, and with the last
/// work that uses it.
#[derive(Clone, Debug)]
pub struct Memory {
    allocation: Arc<Allocation>,
}

#[derive(Debug)]
struct Allocation {
    driver: Arc<dyn Driver>,
    address: u64,
    bytes: u64,
}

impl Memory {
    pub(crate) fn new(device: &Device, bytes: u64) -> Result<Memory, CudaError> {
        let driver = device.driver().clone();
        let (free, total) = driver.memory()?;
        let short = CudaError::Memory { needed: bytes, free, total };
        if bytes > free {
            return Err(short);
        }
        let address = match driver.allocate(bytes.max(1)) {
            Err(error) if error.code == OUT_OF_MEMORY => return Err(short),
            answer => answer?,
        };
        Ok(Memory { allocation: Arc::new(Allocation { driver, address, bytes }) })
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.allocation.bytes
    }

    /// The place `offset` bytes from its beginning.
    #[must_use]
    pub fn at(&self, offset: u64) -> Address {
        Address { memory: self.clone(), offset }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // Fails if the context is lost, and the memory with it.
        let _ = self.driver.free(self.address);
    }
}

/// A place in a device's memory, which stays allocated while this lives.
#[derive(Clone, Debug)]
pub struct Address {
    memory: Memory,
    offset: u64,
}

impl PartialEq for Address {
    fn eq(&self, other: &Address) -> bool {
        Arc::ptr_eq(&self.memory.allocation, &other.memory.allocation)
            && self.offset == other.offset
    }
}

impl Eq for Address {}

impl Address {
    /// The place `bytes` behind this one.
    #[must_use]
    pub fn plus(&self, bytes: u64) -> Address {
        self.memory.at(self.offset + bytes)
    }

    /// The same place, without keeping it allocated.
    #[must_use]
    pub fn downgrade(&self) -> WeakAddress {
        WeakAddress { allocation: Arc::downgrade(&self.memory.allocation), offset: self.offset }
    }

    /// The memory that it is in.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Whether it is a multiple of so many bytes.
    #[must_use]
    pub fn is_aligned(&self, bytes: u64) -> bool {
        self.device().is_multiple_of(bytes)
    }

    /// The address as kernels know it.
    pub(crate) fn device(&self) -> u64 {
        self.memory.allocation.address + self.offset
    }

    /// As [`Address::device`], if so many bytes lie there.
    pub(crate) fn range(&self, bytes: u64) -> Result<u64, CudaError> {
        let size = self.memory.bytes();
        match self.offset.checked_add(bytes) {
            Some(end) if end <= size => Ok(self.device()),
            _ => Err(CudaError::Range { offset: self.offset, bytes, size }),
        }
    }
}

/// A place in a device's memory, which may have been freed. It equals no place of later memory.
#[derive(Clone, Debug)]
pub struct WeakAddress {
    allocation: Weak<Allocation>,
    offset: u64,
}

impl WeakAddress {
    /// Whether the memory is still allocated.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.allocation.strong_count() > 0
    }

    pub(crate) fn is_in(&self, memory: &Memory) -> bool {
        ptr::eq(self.allocation.as_ptr(), Arc::as_ptr(&memory.allocation))
    }
}

impl PartialEq<Address> for WeakAddress {
    fn eq(&self, other: &Address) -> bool {
        self.is_in(&other.memory) && self.offset == other.offset
    }
}
