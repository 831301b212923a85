//! What a launch of a GPU kernel needs to know.
//!
//! A specification gives one kernel or several that differ in the number of rows they are made for;
//! a launch takes the first whose [`CudaKernel::limit`] holds. All of them give the same bits.

use ir::{DType, Dim};

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
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CudaParam {
    /// Address of an operand or result, which must be a multiple of `align` bytes.
    Pointer {
        /// Operands first, then results.
        arg: u32,
        /// In bytes.
        align: u32,
    },
    /// 128 bytes that describe a tensor to the copy engine.
    Map(TensorMap),
    /// A run-time size, as an i64.
    Size(Dim),
}

/// What a `CUtensorMap` is made of. Elements outside of the tensor are read as zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// The operand; its address must be a multiple of 16 bytes.
    pub arg: u32,
    /// Element type.
    pub dtype: DType,
    /// Extents, innermost first.
    pub extents: Vec<Dim>,
    /// Bytes between neighbours along every axis but the innermost, which is dense.
    pub strides: Vec<Dim>,
    /// Elements of a copy along each axis.
    pub boxes: Vec<u32>,
    /// How a copy is laid out in shared memory.
    pub swizzle: Swizzle,
}

/// Permutation of the 16-byte units of shared memory within spans of 256, 512 or 1024 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// Two units, by bit 7 of the address.
    Bytes32,
    /// Four units, by bits 7 and 8.
    Bytes64,
    /// Eight units, by bits 7 to 9.
    Bytes128,
}
