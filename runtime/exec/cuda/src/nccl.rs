//! The few calls of NCCL that are used, as a trait, so that where there are no devices ranks can
//! meet in a test.
//!
//! Communicators never block the host: a call that has to wait for other ranks is under way until
//! [`Nccl::is_ready`] says otherwise, and can be ended by [`Nccl::abort`].

mod libnccl;

use std::fmt::Debug;

use ir::DType;

use crate::driver::StreamHandle;

pub(crate) use libnccl::open;

/// Bytes of what ranks find each other by.
pub const ID_BYTES: usize = 128;
/// NCCL 2.18, the first whose communicators can be set up, used and ended without blocking.
pub(crate) const OLDEST: u32 = 21800;

/// What ranks find each other by.
pub type UniqueId = [u8; ID_BYTES];

/// What a call answers.
pub type NcclAnswer<T = ()> = Result<T, NcclError>;

/// What NCCL answered to a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {text}")]
pub struct NcclError {
    /// The call.
    pub call: &'static str,
    /// NCCL's sentence, and what it says of its last error.
    pub text: String,
}

/// A communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommHandle(pub usize);

/// NCCL as a device's ranks use it. Addresses and streams are of that device, whose context is the
/// calling thread's.
#[allow(missing_docs, reason = "the calls are those of NCCL")]
pub trait Nccl: Debug + Send + Sync {
    fn unique_id(&self) -> NcclAnswer<UniqueId>;
    fn init_rank(&self, ranks: usize, id: &UniqueId, rank: usize) -> NcclAnswer<CommHandle>;
    /// Whether nothing that was called is under way any more.
    fn is_ready(&self, comm: CommHandle) -> NcclAnswer<bool>;

    /// Begins calls that are made together; of one thread.
    fn group_start(&self) -> NcclAnswer;
    fn group_end(&self) -> NcclAnswer;
    fn send(
        &self,
        comm: CommHandle,
        from: u64,
        bytes: usize,
        peer: usize,
        stream: StreamHandle,
    ) -> NcclAnswer;
    fn recv(
        &self,
        comm: CommHandle,
        to: u64,
        bytes: usize,
        peer: usize,
        stream: StreamHandle,
    ) -> NcclAnswer;
    /// `bytes` of each rank.
    fn all_gather(
        &self,
        comm: CommHandle,
        from: u64,
        to: u64,
        bytes: usize,
        stream: StreamHandle,
    ) -> NcclAnswer;
    /// The sum, in NCCL's order.
    fn all_reduce(
        &self,
        comm: CommHandle,
        from: u64,
        to: u64,
        sum: Sum,
        stream: StreamHandle,
    ) -> NcclAnswer;
    /// The sum, in NCCL's order, of as many elements a rank.
    fn reduce_scatter(
        &self,
        comm: CommHandle,
        from: u64,
        to: u64,
        sum: Sum,
        stream: StreamHandle,
    ) -> NcclAnswer;

    /// Begins to end a communicator when its work is done.
    fn finalize(&self, comm: CommHandle) -> NcclAnswer;
    /// Frees a communicator that has ended.
    fn destroy(&self, comm: CommHandle) -> NcclAnswer;
    /// Ends all that is under way, on the device too, and frees the communicator.
    fn abort(&self, comm: CommHandle) -> NcclAnswer;
}

/// So many elements of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// How many.
    pub elements: usize,
    /// Of which type.
    pub dtype: DType,
}
