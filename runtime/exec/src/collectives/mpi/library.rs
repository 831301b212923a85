//! The MPI part, opened when it is asked for.

#![allow(unsafe_code, reason = "opens a library and calls its C interface")]

use std::{
    mem::{self, MaybeUninit},
    path::Path,
};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::abi::{ABI, Api, Open, SYMBOL};

/// MPI, initialised.
#[derive(Debug)]
pub(super) struct Mpi(Api);

/// Bytes that are being sent.
#[derive(Debug)]
pub(super) struct Sending {
    request: u64,
    /// `None` once they are.
    bytes: Option<Vec<u8>>,
}

impl Mpi {
    /// Opens the library and initialises MPI, which a process can do once.
    pub(super) fn open(path: &Path) -> Result<Mpi, String> {
        // Open MPI opens parts of its own, which look for its symbols among the global ones.
        // SAFETY: initialisers of the library and of MPI run, as they would at the start.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
        let library = library.map_err(|error| error.to_string())?;
        // SAFETY: the symbol's name holds the version of the type that it has.
        let open = unsafe { library.get::<Open>(SYMBOL) };
        let open = *open.map_err(|_| format!("it is not `brolly-mpi` of interface {ABI}"))?;
        let (mut api, mut message) = (MaybeUninit::uninit(), [0; 512]);
        // SAFETY: both pointers are valid for what the interface writes to them.
        let code = unsafe { open(ABI, api.as_mut_ptr(), message.as_mut_ptr(), message.len()) };
        // MPI leaves threads and handlers behind, so the library stays for good.
        mem::forget(library);
        if code != 0 {
            let text = message.split(|&byte| byte == 0).next().unwrap_or_default();
            return Err(String::from_utf8_lossy(text).into_owned());
        }
        // SAFETY: `open` has filled it in.
        Ok(Mpi(unsafe { api.assume_init() }))
    }

    pub(super) fn rank(&self) -> usize {
        self.0.rank as usize
    }

    pub(super) fn ranks(&self) -> usize {
        self.0.ranks as usize
    }

    /// Begins to send.
    pub(super) fn send(&self, to: usize, bytes: Vec<u8>) -> Result<Sending, i32> {
        let (to, mut request) = (u32::try_from(to).unwrap_or(u32::MAX), 0);
        // SAFETY: the bytes stay until the request is complete, or for ever.
        let code = unsafe { (self.0.send)(to, bytes.as_ptr(), bytes.len(), &raw mut request) };
        let sending = Sending { request, bytes: Some(bytes) };
        if code < 0 { Err(code) } else { Ok(sending) }
    }

    /// Whether all of it has been sent, or never will be.
    pub(super) fn is_sent(&self, sending: &mut Sending) -> Result<bool, i32> {
        if sending.bytes.is_none() {
            return Ok(true);
        }
        // SAFETY: the request is one of `send` that was not complete before.
        match unsafe { (self.0.is_sent)(sending.request) } {
            0 => Ok(false),
            1 => {
                sending.bytes = None;
                Ok(true)
            }
            code => Err(code),
        }
    }

    /// The next message and its sender, if one has come; for one caller at a time.
    pub(super) fn receive(&self) -> Result<Option<(usize, Vec<u8>)>, i32> {
        let (mut from, mut len) = (0, 0);
        // SAFETY: both pointers are valid.
        match unsafe { (self.0.probe)(&raw mut from, &raw mut len) } {
            0 => return Ok(None),
            1 => {}
            code => return Err(code),
        }
        let mut bytes = vec![0; len];
        // SAFETY: there is room for as many bytes as the message has.
        let code = unsafe { (self.0.receive)(bytes.as_mut_ptr(), len) };
        if code < 0 { Err(code) } else { Ok(Some((from as usize, bytes))) }
    }

    /// Ends all ranks.
    pub(super) fn abort(&self) {
        // SAFETY: it has no arguments that could be wrong.
        unsafe { (self.0.abort)(1) };
    }

    /// Ends the use of MPI.
    pub(super) fn finalize(&self) {
        // SAFETY: as above.
        unsafe { (self.0.finalize)() };
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        // MPI may still read them.
        mem::forget(self.bytes.take());
    }
}
