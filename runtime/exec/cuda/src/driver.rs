//! The few calls of the driver that are used, as a trait, so that where there is no device their
//! order can be tested, or a device emulated.

mod libcuda;

use std::fmt::Debug;

use crate::{DriverError, Facts, TensorMap};

pub use crate::launch::Value;
pub(crate) use libcuda::{begin, open};

/// Bytes of a tensor map.
pub const MAP_BYTES: usize = 128;
/// CUDA 12.4, the first that tells how many parameters a kernel has.
pub(crate) const OLDEST: u32 = 12040;

/// What a call answers.
pub type Answer<T = ()> = Result<T, DriverError>;

macro_rules! handles {
    ($($(#[$doc:meta])* $name:ident),*) => {
        $($(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(pub usize);)*
    };
}

handles!(
    /// Pinned memory of the host.
    Pinned,
    /// A module.
    Module,
    /// A kernel of a module.
    Function,
    /// A stream.
    StreamHandle,
    /// An event.
    EventHandle,
    /// A graph that can be launched.
    GraphHandle
);

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Blocks of a cluster, along x.
    pub cluster: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// The kernel may begin before what was launched before it has ended: it waits itself.
    pub dependent: bool,
}

/// A device's driver. All calls but waits return at once where CUDA's do.
///
/// What a handle stands for must not have been destroyed; callers see to it, by [`crate::Stream`]
/// keeping what its work uses.
#[allow(missing_docs, reason = "the calls are those of CUDA's driver")]
pub trait Driver: Debug + Send + Sync {
    fn facts(&self) -> &Facts;
    /// Makes the device the calling thread's, for what is called beside this trait.
    fn enter(&self) -> Answer {
        Ok(())
    }
    /// Bytes that are free, and all.
    fn memory(&self) -> Answer<(u64, u64)>;
    fn allocate(&self, bytes: u64) -> Answer<u64>;
    fn free(&self, address: u64) -> Answer;

    fn pin(&self, bytes: usize) -> Answer<Pinned>;
    fn unpin(&self, pinned: Pinned) -> Answer;
    /// Writes pinned memory from `offset` on; no copy from there may be in flight.
    fn write_pinned(&self, pinned: Pinned, offset: usize, bytes: &[u8]);
    /// Reads pinned memory from `offset` on; no copy to there may be in flight.
    fn read_pinned(&self, pinned: Pinned, offset: usize, bytes: &mut [u8]);

    fn upload(
        &self,
        to: u64,
        from: Pinned,
        offset: usize,
        bytes: usize,
        stream: StreamHandle,
    ) -> Answer;
    fn download(
        &self,
        to: Pinned,
        offset: usize,
        from: u64,
        bytes: usize,
        stream: StreamHandle,
    ) -> Answer;
    fn copy(&self, to: u64, from: u64, bytes: u64, stream: StreamHandle) -> Answer;
    fn fill(&self, to: u64, byte: u8, bytes: u64, stream: StreamHandle) -> Answer;

    /// Loads a cubin, or PTX that ends with a zero byte; what the assembler said goes to the
    /// error's text.
    fn load(&self, image: &[u8]) -> Answer<Module>;
    fn unload(&self, module: Module) -> Answer;
    fn function(&self, module: Module, symbol: &str) -> Answer<Function>;
    /// Bytes of the kernel's parameters, in order.
    fn param_sizes(&self, function: Function) -> Answer<Vec<usize>>;
    /// Allows so much dynamic shared memory.
    fn allow_shared(&self, function: Function, bytes: u32) -> Answer;
    fn encode_map(&self, map: &TensorMap, address: u64) -> Answer<[u8; MAP_BYTES]>;
    fn launch(
        &self,
        function: Function,
        shape: Shape,
        params: &[Value],
        stream: StreamHandle,
    ) -> Answer;

    fn create_stream(&self) -> Answer<StreamHandle>;
    fn destroy_stream(&self, stream: StreamHandle) -> Answer;
    fn synchronize(&self, stream: StreamHandle) -> Answer;
    fn wait(&self, stream: StreamHandle, event: EventHandle) -> Answer;

    fn create_event(&self) -> Answer<EventHandle>;
    fn destroy_event(&self, event: EventHandle) -> Answer;
    fn record(&self, event: EventHandle, stream: StreamHandle) -> Answer;
    fn synchronize_event(&self, event: EventHandle) -> Answer;
    fn elapsed_ms(&self, from: EventHandle, to: EventHandle) -> Answer<f32>;

    fn begin_capture(&self, stream: StreamHandle) -> Answer;
    fn end_capture(&self, stream: StreamHandle) -> Answer<GraphHandle>;
    fn launch_graph(&self, graph: GraphHandle, stream: StreamHandle) -> Answer;
    fn destroy_graph(&self, graph: GraphHandle) -> Answer;
}
