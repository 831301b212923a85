//! MPI for brolly's ranks, behind the C interface of `brolly-exec`, which opens this library when a
//! job is launched by `mpirun`. So brolly links no MPI, and is built where there is none.
//!
//! It carries messages of bytes, without blocking, and nothing else. The `mpi` crate initialises
//! MPI, finds and receives messages and aborts. Sends go through its bindings, for its requests
//! borrow their buffers from a scope, and here they outlive the call. All calls are made under one
//! lock, so `MPI_THREAD_SERIALIZED` is enough.

#![allow(unsafe_code, reason = "a C interface, and MPI's own for requests")]

#[path = "../../src/collectives/mpi/abi.rs"]
mod abi;

use std::{
    collections::BTreeMap,
    ffi::c_int,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr, slice,
    sync::{Mutex, PoisonError},
};

use mpi::{
    Threading,
    environment::Universe,
    ffi,
    point_to_point::Message,
    topology::SimpleCommunicator,
    traits::{AsRaw, Communicator, Equivalence, Source},
};

use abi::{ABI, Api};

const _: (abi::Open, &[u8]) = (brolly_mpi_open_v1, abi::SYMBOL);

/// What a call says if MPI or a bug of this library stands in its way.
const FAILED: i32 = -1;

/// MPI after it was initialised.
struct State {
    universe: Universe,
    world: SimpleCommunicator,
    next: u64,
    requests: BTreeMap<u64, ffi::MPI_Request>,
    /// Found and not yet received.
    found: Option<Message>,
}

// SAFETY: MPI is initialised so that any thread may call it, one at a time, and the state is used
// under a lock alone.
unsafe impl Send for State {}

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// Initialises MPI; see `abi::Open`.
///
/// # Safety
/// `api` points to room for the table, `message` to `room` bytes of zeros.
#[unsafe(no_mangle)]
unsafe extern "C" fn brolly_mpi_open_v1(
    version: u32,
    api: *mut Api,
    message: *mut u8,
    room: usize,
) -> i32 {
    let opened = match version {
        ABI => catch_unwind(open).unwrap_or_else(|_| Err("MPI_Init has panicked".into())),
        _ => Err(format!("it has interface {ABI}, and the runtime wants {version}")),
    };
    match opened {
        Ok(opened) => {
            // SAFETY: the caller's promise.
            unsafe { api.write(opened) };
            0
        }
        Err(reason) => {
            let text = &reason.as_bytes()[..reason.len().min(room)];
            // SAFETY: the caller's promise; no more than fits.
            unsafe { ptr::copy_nonoverlapping(text.as_ptr(), message, text.len()) };
            FAILED
        }
    }
}

fn open() -> Result<Api, String> {
    let (universe, threading) = mpi::initialize_with_threading(Threading::Serialized)
        .ok_or("MPI has been initialised before in this process")?;
    if threading < Threading::Serialized {
        return Err(format!("this MPI allows threads no more than {threading:?}"));
    }
    let world = universe.world();
    let number = |number: i32| u32::try_from(number).map_err(|_| "MPI counts below 0");
    let (rank, ranks) = (number(world.rank())?, number(world.size())?);
    let state = State { universe, world, next: 0, requests: BTreeMap::new(), found: None };
    *STATE.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    Ok(Api { rank, ranks, send, is_sent, probe, receive, abort, finalize })
}

/// Runs `body` on the state; what goes wrong is a code, for nothing may unwind into C.
fn with_state(body: impl FnOnce(&mut State) -> Option<i32>) -> i32 {
    let run = || {
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        state.as_mut().and_then(body)
    };
    catch_unwind(AssertUnwindSafe(run)).ok().flatten().unwrap_or(FAILED)
}

/// # Safety
/// There are `len` bytes until the request is complete; `request` may be written to.
unsafe extern "C" fn send(to: u32, bytes: *const u8, len: usize, request: *mut u64) -> i32 {
    with_state(|state| {
        let (to, len) = (c_int::try_from(to).ok()?, c_int::try_from(len).ok()?);
        let (kind, world) = (u8::equivalent_datatype(), state.world.as_raw());
        // SAFETY: a null request is what MPI overwrites.
        let mut raw = unsafe { ffi::RSMPI_REQUEST_NULL };
        // SAFETY: the caller's promise; the bytes are only read.
        let code =
            unsafe { ffi::MPI_Isend(bytes.cast(), len, kind.as_raw(), to, 0, world, &raw mut raw) };
        if code != 0 {
            return Some(-code.abs());
        }
        state.next += 1;
        state.requests.insert(state.next, raw);
        // SAFETY: the caller's promise.
        unsafe { request.write(state.next) };
        Some(0)
    })
}

extern "C" fn is_sent(request: u64) -> i32 {
    with_state(|state| {
        let raw = state.requests.get_mut(&request)?;
        let mut flag = 0;
        // SAFETY: a request that was begun and is not complete, and no status is asked for.
        let code = unsafe { ffi::MPI_Test(raw, &raw mut flag, ffi::RSMPI_STATUS_IGNORE) };
        if code != 0 {
            return Some(-code.abs());
        }
        if flag != 0 {
            state.requests.remove(&request);
        }
        Some(i32::from(flag != 0))
    })
}

/// # Safety
/// Both pointers may be written to.
unsafe extern "C" fn probe(from: *mut u32, len: *mut usize) -> i32 {
    with_state(|state| {
        let Some((message, status)) = state.world.any_process().immediate_matched_probe() else {
            return Some(0);
        };
        let rank = u32::try_from(status.source_rank()).ok()?;
        let count = usize::try_from(status.count(u8::equivalent_datatype())).ok()?;
        state.found = Some(message);
        // SAFETY: the caller's promise.
        unsafe {
            from.write(rank);
            len.write(count);
        }
        Some(1)
    })
}

/// # Safety
/// There is room for `len` bytes, which are initialised.
unsafe extern "C" fn receive(bytes: *mut u8, len: usize) -> i32 {
    with_state(|state| {
        let message = state.found.take()?;
        // SAFETY: the caller's promise.
        let room = unsafe { slice::from_raw_parts_mut(bytes, len) };
        message.matched_receive_into(room);
        Some(0)
    })
}

extern "C" fn abort(code: i32) {
    // Without the lock, for whoever has it may never give it back.
    // SAFETY: MPI is initialised, for the table that has this function is filled in after that.
    unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code) };
}

extern "C" fn finalize() -> i32 {
    let run = || {
        let state = STATE.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(state.map(|state| state.universe));
    };
    if catch_unwind(run).is_ok() { 0 } else { FAILED }
}
