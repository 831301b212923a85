//! What a launch of a GPU kernel needs to know.
//!
//! A specification gives one kernel or several that differ in the number of rows they are made for;
//! a launch takes the first whose [`CudaKernel::limit`] holds. All of them give the same bits.

pub use ir::{CudaParam, Swizzle, TensorMap};
use ir::{CudaVariant, Dim};

/// A kernel for a GPU as text, and how it is launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaKernel {
    /// Name of its entry, unique to the text: `k_<op>_<hash>`.
    pub symbol: String,
    /// The MLIR module; [`crate::mlir::ptx`] makes PTX of it.
    pub mlir: String,
    /// Its parameters, in order.
    pub params: Vec<CudaParam>,
    /// Blocks along x, y and z.
    pub grid: [Dim; 3],
    /// Threads of a block.
    pub block: u32,
    /// Blocks of a cluster, along x.
    pub cluster: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// The kernel is made for launches in which this size is at most that; `None`: for any.
    pub limit: Option<(Dim, i64)>,
    /// Operands that it reads before it waits for what was launched before.
    pub early: Vec<u32>,
}

impl CudaKernel {
    /// As an artifact holds it, with its code in that module.
    #[must_use]
    pub fn variant(&self, module: u32) -> CudaVariant {
        CudaVariant {
            symbol: self.symbol.clone(),
            module,
            params: self.params.clone(),
            grid: self.grid.clone(),
            block: self.block,
            cluster: self.cluster,
            shared_bytes: self.shared_bytes,
            limit: self.limit.clone(),
            early: self.early.clone(),
        }
    }
}
