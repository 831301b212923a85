//! Executable code, mapped straight from the artifact.

#![allow(unsafe_code, reason = "turns bytes of a mapped file into functions")]

use std::{fs::File, io, ops::Range};

use memmap2::{Mmap, MmapOptions};

/// A kernel's code, see [`ir::Kernel`] for its arguments.
pub(crate) type KernelFn =
    unsafe extern "C" fn(*const *mut u8, *const i64, *mut u8, tile_begin: i64, tile_end: i64);

/// The code image of an artifact: readable and executable, never writable.
#[derive(Debug)]
pub(crate) struct Code(Option<Mmap>);

impl Code {
    /// Maps a range of a file.
    ///
    /// # Errors
    /// What the operating system says, which is `PermissionDenied` on a file system that is mounted
    /// `noexec`.
    pub(crate) fn map(file: &File, range: Range<u64>) -> io::Result<Code> {
        let invalid = |e| io::Error::new(io::ErrorKind::InvalidInput, e);
        let length = usize::try_from(range.end - range.start).map_err(invalid)?;
        if length == 0 {
            return Ok(Code(None));
        }
        let mut options = MmapOptions::new();
        let options = options.offset(range.start).len(length);
        // SAFETY: the mapping cannot be written through; as for every mapped file, nobody may
        // truncate it meanwhile.
        Ok(Code(Some(unsafe { options.map_exec(file)? })))
    }

    /// The kernel at an offset, if that is within the image.
    pub(crate) fn kernel(&self, offset: u64) -> Option<KernelFn> {
        let bytes = self.0.as_deref().unwrap_or_default();
        let code = bytes.get(usize::try_from(offset).ok()?..)?.first()?;
        let code: *const u8 = code;
        // SAFETY: function pointers are data pointers on every platform that the crate supports,
        // and this one is not null. Whether code of the right signature is there is the caller's
        // promise when it calls the `unsafe` function.
        Some(unsafe { std::mem::transmute::<*const u8, KernelFn>(code) })
    }
}
