//! What can go wrong: errors of PTX text, and faults of a kernel that runs.

use std::fmt;

/// Something in PTX text that the emulator refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ParseError {
    /// The line of the text, from 1.
    pub line: u32,
    /// What is wrong there.
    pub reason: String,
}

/// Everything that is wrong with a PTX text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ParseErrors(pub Vec<ParseError>);

impl fmt::Display for ParseErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

/// A kernel did what the ISA forbids or leaves undefined.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{kind} (CTA {},{},{}{}, PTX line {line})", cta[0], cta[1], cta[2], thread_text(*.thread))]
pub struct Fault {
    /// What it did.
    pub kind: FaultKind,
    /// The block, as `%ctaid`.
    pub cta: [u32; 3],
    /// The thread, as a linear index in its block, where one is to blame.
    pub thread: Option<u32>,
    /// The line of the instruction in the PTX text; 0 before the first one.
    pub line: u32,
}

fn thread_text(thread: Option<u32>) -> String {
    thread.map(|thread| format!(", thread {thread}")).unwrap_or_default()
}

/// The kinds of faults.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultKind {
    /// The launch does not fit the kernel or the device.
    #[error("bad launch: {0}")]
    Launch(String),
    /// An instruction or module that this device does not have.
    #[error("{what} needs {needs}")]
    Arch {
        /// The instruction or module.
        what: String,
        /// The least device that has it.
        needs: &'static str,
    },
    /// Memory outside of every allocation, or across the end of one.
    #[error("{bytes} bytes at {space} address {address:#x} are out of bounds")]
    OutOfBounds {
        /// The state space.
        space: &'static str,
        /// The address within it.
        address: u64,
        /// The size of the access.
        bytes: u64,
    },
    /// An address that is no multiple of what the access needs.
    #[error("{space} address {address:#x} is no multiple of {align}")]
    Misaligned {
        /// The state space.
        space: &'static str,
        /// The address within it.
        address: u64,
        /// What it should be a multiple of.
        align: u64,
    },
    /// Memory was read that nothing wrote.
    #[error("{space} address {address:#x} is read before anything is written there")]
    Uninitialised {
        /// The state space.
        space: &'static str,
        /// The address within it.
        address: u64,
    },
    /// A register was read that nothing wrote.
    #[error("register {register} is read before it is written")]
    UninitialisedRegister {
        /// Its name.
        register: String,
    },
    /// The destination of an asynchronous copy was touched before the copy was waited for.
    #[error(
        "shared address {address:#x} is {} while the asynchronous copy of line {copy_line} \
         is in flight", if *.write { "written" } else { "read" }
    )]
    InFlight {
        /// The shared address.
        address: u32,
        /// Whether the access is a write.
        write: bool,
        /// The line of the copy.
        copy_line: u32,
    },
    /// Two accesses to shared memory that nothing orders, at least one of them a write.
    #[error(
        "data race at shared address {address:#x}: {} of line {line} and {} of line {other_line}",
        verb(*.write), verb(*.other_write)
    )]
    Race {
        /// The shared address.
        address: u32,
        /// The line of the later access, as run.
        line: u32,
        /// Whether that is a write.
        write: bool,
        /// The line of the earlier access.
        other_line: u32,
        /// Whether that is a write.
        other_write: bool,
    },
    /// The asynchronous proxy touched what a generic write of this line left, without a fence.
    #[error(
        "shared address {address:#x}, written by line {write_line}, is used by the asynchronous \
         proxy without a fence.proxy.async between"
    )]
    MissingProxyFence {
        /// The shared address.
        address: u32,
        /// The line of the write.
        write_line: u32,
    },
    /// Threads of a warp that should execute an instruction together do not.
    #[error("lanes {missing:#010x} do not take part in an instruction that needs them")]
    Divergent {
        /// A mask of the lanes that are missing.
        missing: u32,
    },
    /// A barrier with the wrong participants.
    #[error("barrier {id}: {reason}")]
    Barrier {
        /// The barrier's number.
        id: u32,
        /// What is wrong.
        reason: String,
    },
    /// No thread can go on.
    #[error("deadlock: {0}")]
    Deadlock(String),
    /// More instructions than the launch allows.
    #[error("more than {0} instructions were executed")]
    StepLimit(u64),
    /// An operand with a value that the instruction does not allow.
    #[error("{0}")]
    Operand(String),
    /// A matrix descriptor of `wgmma` that is not valid.
    #[error("bad matrix descriptor {descriptor:#018x}: {reason}")]
    Descriptor {
        /// Its bits.
        descriptor: u64,
        /// What is wrong.
        reason: String,
    },
    /// A tensor map that breaks a rule of CUDA's.
    #[error("bad tensor map: {0}")]
    TensorMap(String),
    /// Something that is no mbarrier is used as one, or one is used as data.
    #[error("shared address {address:#x}: {reason}")]
    Mbarrier {
        /// The shared address.
        address: u32,
        /// What is wrong.
        reason: &'static str,
    },
    /// The transaction count of an mbarrier left its range.
    #[error("mbarrier at {address:#x}: the transaction count {count} is out of range")]
    MbarrierTx {
        /// The shared address.
        address: u32,
        /// The count.
        count: i64,
    },
    /// A register of a `wgmma` was touched before its group was waited for.
    #[error("register {register} belongs to the wgmma of line {wgmma_line}, which is in flight")]
    WgmmaInFlight {
        /// The register's name.
        register: String,
        /// The line of the `wgmma`.
        wgmma_line: u32,
    },
    /// `wgmma` uses registers that were touched after the last `wgmma.fence`.
    #[error("register {register} was accessed after the last wgmma.fence")]
    MissingWgmmaFence {
        /// The register's name.
        register: String,
    },
    /// The warps of a warpgroup do not execute the same `wgmma` or `setmaxnreg`.
    #[error("warpgroup: {0}")]
    Warpgroup(String),
    /// A block ended while asynchronous copies used its shared memory.
    #[error("the block ends while the copy of line {copy_line} is in flight")]
    ExitInFlight {
        /// The line of the copy.
        copy_line: u32,
    },
    /// Global memory was touched, or a thread ended, before `griddepcontrol.wait`, in a launch that
    /// may begin early.
    #[error("{what} before griddepcontrol.wait")]
    BeforeWait {
        /// What happened.
        what: String,
    },
    /// `trap` was executed.
    #[error("trap")]
    Trap,
}

fn verb(write: bool) -> &'static str {
    if write { "write" } else { "read" }
}

/// A fault without its place, which the scheduler adds.
#[derive(Debug)]
pub(crate) struct Trap {
    pub(crate) kind: FaultKind,
    pub(crate) lane: Option<u32>,
    pub(crate) line: Option<u32>,
}

impl From<FaultKind> for Trap {
    fn from(kind: FaultKind) -> Trap {
        Trap { kind, lane: None, line: None }
    }
}

/// Blames a lane.
pub(crate) trait Blame<T> {
    fn lane(self, lane: u32) -> Result<T, Trap>;
}

impl<T, E: Into<Trap>> Blame<T> for Result<T, E> {
    fn lane(self, lane: u32) -> Result<T, Trap> {
        self.map_err(|error| {
            let trap = error.into();
            Trap { lane: trap.lane.or(Some(lane)), ..trap }
        })
    }
}

pub(crate) fn operand<T>(reason: impl Into<String>) -> Result<T, Trap> {
    Err(FaultKind::Operand(reason.into()).into())
}
