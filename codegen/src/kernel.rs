//! What a kernel generator returns.
//!
//! Calling convention of every kernel:
//!
//! ```c
//! void symbol(void *const *args, const int64_t *dims, void *scratch, int64_t begin, int64_t end);
//! ```
//!
//! `args` are data pointers and `dims` run-time sizes, both in the order of [`Kernel::args`] and
//! [`Kernel::dims`]; `scratch` is the calling thread's own, 64-byte aligned, at least
//! [`Kernel::scratch_bytes`] long and undefined on entry. The tiles `begin..end` are computed; a
//! caller splits `0..tiles` among threads in contiguous ranges, and no split changes a result's
//! bits.

/// One generated kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Name of the function.
    pub symbol: String,
    /// The MLIR module that defines it.
    pub mlir: String,
    /// Scratch needed per thread, in bytes.
    pub scratch_bytes: u64,
    /// Names of the data pointers, in order.
    pub args: Vec<&'static str>,
    /// Names of the run-time sizes, in order.
    pub dims: Vec<&'static str>,
}
