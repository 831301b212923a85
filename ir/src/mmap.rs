//! Read-only memory-mapped files.

#![allow(unsafe_code, reason = "mapping a file is unsafe in Rust's terms")]

use std::{fs::File, io, path::Path};

use memmap2::Mmap;

/// A file mapped read-only into memory.
///
/// Bytes appear as the file holds them at the time of reading: a file that another process
/// truncates while it is mapped makes the process receive SIGBUS, as with any mapped file.
#[derive(Debug)]
pub struct MappedFile(Option<Mmap>);

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}

/// Maps a regular file; an empty one maps to no bytes.
///
/// # Errors
/// Whatever opening, reading the size or mapping reports; something that is not a regular file.
pub fn map_file(path: &Path) -> io::Result<MappedFile> {
    map_open_file(&File::open(path)?)
}

/// As [`map_file`], for a file that is open.
///
/// # Errors
/// As [`map_file`].
pub fn map_open_file(file: &File) -> io::Result<MappedFile> {
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if meta.len() == 0 {
        return Ok(MappedFile(None));
    }
    // SAFETY: the mapping is read-only and private to this process; the one hazard, another
    // process truncating the file, is documented above and shared by every mapped file.
    let map = unsafe { Mmap::map(file)? };
    Ok(MappedFile(Some(map)))
}
