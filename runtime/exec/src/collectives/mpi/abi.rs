//! The C interface between the runtime and its MPI part, which are built apart: `brolly-mpi`
//! includes this file.
//!
//! All functions may be called from any thread. Those that return an `i32` return a negative number
//! if MPI reports an error.

/// Changes with everything below.
pub(crate) const ABI: u32 = 1;

/// The name of the one symbol, an [`Open`].
pub(crate) const SYMBOL: &[u8] = b"brolly_mpi_open_v1";

/// Initialises MPI and fills in the table; returns 0, or else leaves a message of at most `room`
/// bytes, padded with zeros, and returns something else.
pub(crate) type Open =
    unsafe extern "C" fn(abi: u32, api: *mut Api, message: *mut u8, room: usize) -> i32;

/// What MPI is asked for.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Api {
    /// This rank.
    pub(crate) rank: u32,
    /// How many there are.
    pub(crate) ranks: u32,
    /// Begins to send, and names the request; the bytes have to stay until it is complete.
    pub(crate) send:
        unsafe extern "C" fn(to: u32, bytes: *const u8, len: usize, request: *mut u64) -> i32,
    /// 1 if a request is complete, and then forgotten; else 0.
    pub(crate) is_sent: unsafe extern "C" fn(request: u64) -> i32,
    /// 1 if a message has come, with sender and length; it has to be received next.
    pub(crate) probe: unsafe extern "C" fn(from: *mut u32, len: *mut usize) -> i32,
    /// Receives the message that `probe` has found, into so many bytes as it has.
    pub(crate) receive: unsafe extern "C" fn(bytes: *mut u8, len: usize) -> i32,
    /// Ends all ranks.
    pub(crate) abort: unsafe extern "C" fn(code: i32),
    /// Ends the use of MPI, once all ranks call it.
    pub(crate) finalize: unsafe extern "C" fn() -> i32,
}
