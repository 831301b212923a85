//! NCCL itself: `libnccl.so.2`, opened when ranks on GPUs first meet.
//!
//! The functions are declared here, for cudarc's bindings look for the library under names that a
//! system without its headers does not have.
#![allow(unsafe_code, reason = "the C interface of NCCL")]

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    ptr::{null, null_mut},
    sync::{Arc, OnceLock},
};

use ir::DType;
use libloading::Library;

use super::{CommHandle, ID_BYTES, Nccl, NcclAnswer, NcclError, OLDEST, Sum, UniqueId};
use crate::{CudaError, driver::StreamHandle, library};

/// Where the library is looked for, unless `BROLLY_NCCL` names it.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
/// `ncclSum`.
const SUM: c_int = 0;
/// `ncclUint8`.
const BYTE: c_int = 1;
/// `NCCL_CONFIG_UNDEF_INT`.
const UNDEFINED: c_int = c_int::MIN;

type Comm = *mut c_void;
type Stream = *mut c_void;
type Result = c_int;

#[derive(Clone, Copy)]
#[repr(C)]
struct Id([u8; ID_BYTES]);

/// `ncclConfig_t` of NCCL 2.18, which later ones take as well.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

type Moves = unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Comm, Stream) -> Result;
type Receives = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Comm, Stream) -> Result;
type Gathers =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Comm, Stream) -> Result;
type Reduces =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> Result;
type OfComm = unsafe extern "C" fn(Comm) -> Result;

/// The library's functions.
struct LibNccl {
    version: unsafe extern "C" fn(*mut c_int) -> Result,
    error_string: unsafe extern "C" fn(Result) -> *const c_char,
    last_error: unsafe extern "C" fn(Comm) -> *const c_char,
    unique_id: unsafe extern "C" fn(*mut Id) -> Result,
    init_rank: unsafe extern "C" fn(*mut Comm, c_int, Id, c_int, *mut Config) -> Result,
    async_error: unsafe extern "C" fn(Comm, *mut Result) -> Result,
    group_start: unsafe extern "C" fn() -> Result,
    group_end: unsafe extern "C" fn() -> Result,
    send: Moves,
    recv: Receives,
    all_gather: Gathers,
    all_reduce: Reduces,
    reduce_scatter: Reduces,
    finalize: OfComm,
    destroy: OfComm,
    abort: OfComm,
    /// Last, for the functions are of it.
    _library: Library,
}

/// Opens the library, once.
///
/// # Errors
/// [`CudaError::NoNccl`], [`CudaError::OldNccl`].
pub(crate) fn open() -> std::result::Result<Arc<dyn Nccl>, CudaError> {
    static OPENED: OnceLock<std::result::Result<Arc<LibNccl>, CudaError>> = OnceLock::new();
    let opened = OPENED.get_or_init(|| LibNccl::open().map(Arc::new));
    opened.clone().map(|library| library as Arc<dyn Nccl>)
}

impl LibNccl {
    fn open() -> std::result::Result<LibNccl, CudaError> {
        let missing = |reason: String| CudaError::NoNccl { reason };
        let library = library::open("BROLLY_NCCL", &NAMES).map_err(missing)?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field's type is that of the function in `nccl.h`.
                *unsafe { library.get($name) }.map_err(|e| missing(e.to_string()))?
            };
        }
        let nccl = LibNccl {
            version: function!(b"ncclGetVersion\0"),
            error_string: function!(b"ncclGetErrorString\0"),
            last_error: function!(b"ncclGetLastError\0"),
            unique_id: function!(b"ncclGetUniqueId\0"),
            init_rank: function!(b"ncclCommInitRankConfig\0"),
            async_error: function!(b"ncclCommGetAsyncError\0"),
            group_start: function!(b"ncclGroupStart\0"),
            group_end: function!(b"ncclGroupEnd\0"),
            send: function!(b"ncclSend\0"),
            recv: function!(b"ncclRecv\0"),
            all_gather: function!(b"ncclAllGather\0"),
            all_reduce: function!(b"ncclAllReduce\0"),
            reduce_scatter: function!(b"ncclReduceScatter\0"),
            finalize: function!(b"ncclCommFinalize\0"),
            destroy: function!(b"ncclCommDestroy\0"),
            abort: function!(b"ncclCommAbort\0"),
            _library: library,
        };
        let mut version = 0;
        // SAFETY: writes an int.
        let got = unsafe { (nccl.version)(&raw mut version) };
        nccl.told("ncclGetVersion", null_mut(), got).map_err(|e| missing(e.to_string()))?;
        let found = version.cast_unsigned();
        if found < OLDEST {
            return Err(CudaError::OldNccl { found, needed: OLDEST });
        }
        Ok(nccl)
    }

    /// What a call answered; one under way is well.
    fn told(&self, call: &'static str, comm: Comm, result: Result) -> NcclAnswer {
        if [SUCCESS, IN_PROGRESS].contains(&result) {
            return Ok(());
        }
        let read = |text: *const c_char| {
            // SAFETY: a text of the library that ends with zero, or null.
            let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) });
            text.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
        };
        // SAFETY: takes any number.
        let what = read(unsafe { (self.error_string)(result) });
        // SAFETY: the communicator has not been freed, or is null, which the library takes.
        let last = read(unsafe { (self.last_error)(comm) });
        let text = if last.is_empty() { what } else { format!("{what} ({last})") };
        Err(NcclError { call, text })
    }
}

/// Calls the library.
macro_rules! call {
    ($self:ident, $name:expr, $comm:expr, $function:ident($($arg:expr),* $(,)?)) => {{
        // SAFETY: pointers among the arguments are to values of the types that the call reads or
        // writes and that live as long as it; addresses are of memory that the caller's stream
        // keeps; communicators have not been freed, as the trait asks.
        let told = unsafe { ($self.$function)($($arg),*) };
        $self.told($name, $comm, told)
    }};
}

fn comm(handle: CommHandle) -> Comm {
    handle.0 as Comm
}

fn rank(rank: usize) -> c_int {
    c_int::try_from(rank).unwrap_or(c_int::MAX)
}

/// `ncclDataType_t`.
fn code(dtype: DType) -> NcclAnswer<c_int> {
    Ok(match dtype {
        DType::I32 => 2,
        DType::I64 => 4,
        DType::F16 => 6,
        DType::F32 => 7,
        DType::F64 => 8,
        DType::Bf16 => 9,
        _ => {
            return Err(NcclError { call: "ncclAllReduce", text: format!("no sums of {dtype}") });
        }
    })
}

impl Nccl for LibNccl {
    fn unique_id(&self) -> NcclAnswer<UniqueId> {
        let mut id = Id([0; ID_BYTES]);
        call!(self, "ncclGetUniqueId", null_mut(), unique_id(&raw mut id))?;
        Ok(id.0)
    }

    fn init_rank(&self, ranks: usize, id: &UniqueId, place: usize) -> NcclAnswer<CommHandle> {
        let mut config = Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: OLDEST,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: null(),
            split_share: UNDEFINED,
        };
        let mut made: Comm = null_mut();
        let (ranks, place, id) = (rank(ranks), rank(place), Id(*id));
        let (to, how) = (&raw mut made, &raw mut config);
        call!(self, "ncclCommInitRankConfig", null_mut(), init_rank(to, ranks, id, place, how))?;
        Ok(CommHandle(made as usize))
    }

    fn is_ready(&self, handle: CommHandle) -> NcclAnswer<bool> {
        let (comm, mut state) = (comm(handle), SUCCESS);
        call!(self, "ncclCommGetAsyncError", comm, async_error(comm, &raw mut state))?;
        self.told("ncclCommGetAsyncError", comm, state)?;
        Ok(state == SUCCESS)
    }

    fn group_start(&self) -> NcclAnswer {
        call!(self, "ncclGroupStart", null_mut(), group_start())
    }

    fn group_end(&self) -> NcclAnswer {
        call!(self, "ncclGroupEnd", null_mut(), group_end())
    }

    fn send(
        &self,
        handle: CommHandle,
        from: u64,
        bytes: usize,
        peer: usize,
        stream: StreamHandle,
    ) -> NcclAnswer {
        let (comm, peer) = (comm(handle), rank(peer));
        let (from, stream) = (from as *const c_void, stream.0 as Stream);
        call!(self, "ncclSend", comm, send(from, bytes, BYTE, peer, comm, stream))
    }

    fn recv(
        &self,
        handle: CommHandle,
        to: u64,
        bytes: usize,
        peer: usize,
        stream: StreamHandle,
    ) -> NcclAnswer {
        let (comm, peer) = (comm(handle), rank(peer));
        let (to, stream) = (to as *mut c_void, stream.0 as Stream);
        call!(self, "ncclRecv", comm, recv(to, bytes, BYTE, peer, comm, stream))
    }

    fn all_gather(
        &self,
        handle: CommHandle,
        from: u64,
        to: u64,
        bytes: usize,
        stream: StreamHandle,
    ) -> NcclAnswer {
        let (comm, stream) = (comm(handle), stream.0 as Stream);
        let (from, to) = (from as *const c_void, to as *mut c_void);
        call!(self, "ncclAllGather", comm, all_gather(from, to, bytes, BYTE, comm, stream))
    }

    fn all_reduce(
        &self,
        handle: CommHandle,
        from: u64,
        to: u64,
        sum: Sum,
        stream: StreamHandle,
    ) -> NcclAnswer {
        let (comm, stream, dtype) = (comm(handle), stream.0 as Stream, code(sum.dtype)?);
        let (from, to, n) = (from as *const c_void, to as *mut c_void, sum.elements);
        call!(self, "ncclAllReduce", comm, all_reduce(from, to, n, dtype, SUM, comm, stream))
    }

    fn reduce_scatter(
        &self,
        handle: CommHandle,
        from: u64,
        to: u64,
        sum: Sum,
        stream: StreamHandle,
    ) -> NcclAnswer {
        let (comm, stream, dtype) = (comm(handle), stream.0 as Stream, code(sum.dtype)?);
        let (from, to, n) = (from as *const c_void, to as *mut c_void, sum.elements);
        let name = "ncclReduceScatter";
        call!(self, name, comm, reduce_scatter(from, to, n, dtype, SUM, comm, stream))
    }

    fn finalize(&self, handle: CommHandle) -> NcclAnswer {
        let comm = comm(handle);
        call!(self, "ncclCommFinalize", comm, finalize(comm))
    }

    fn destroy(&self, handle: CommHandle) -> NcclAnswer {
        call!(self, "ncclCommDestroy", null_mut(), destroy(comm(handle)))
    }

    fn abort(&self, handle: CommHandle) -> NcclAnswer {
        call!(self, "ncclCommAbort", null_mut(), abort(comm(handle)))
    }
}

impl std::fmt::Debug for LibNccl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LibNccl")
    }
}
