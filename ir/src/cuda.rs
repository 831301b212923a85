//! Kernels for NVIDIA GPUs as an artifact holds them: modules of code, and what launches need.

use serde::{Deserialize, Serialize};

use crate::{CudaArch, DType, Dim};

/// Code of one kernel for one architecture, in the code section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CudaModule {
    /// What it is for.
    pub arch: CudaArch,
    /// PTX, which a driver assembles for this architecture or, of `sm_80`, for any later one.
    pub ptx: Span,
    /// The same, assembled: an ELF image that devices of this architecture load as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cubin: Option<Span>,
}

/// A part of the code section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// First byte, from the beginning of the section.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A kernel for one architecture: of the variants that a device has the shared memory for, a launch
/// takes the first whose limit holds, and all of them give the same bits; or NVIDIA's library
/// computes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CudaCode {
    /// What it is for.
    pub arch: CudaArch,
    /// The variants in the order in which they are tried; none of what a library computes.
    pub variants: Vec<CudaVariant>,
    /// What cuBLASLt computes in their place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub library: Option<CudaMatmul>,
}

/// A product `y = x · w + bias + residual` that cuBLASLt computes: matrices are in row-major
/// order, sums are f32, and rounded once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CudaMatmul {
    /// Rows of `x` and `y`; nothing is launched where there are none.
    pub m: Dim,
    /// Columns of `y`.
    pub n: Dim,
    /// Columns of `x`.
    pub k: Dim,
    /// Type of `x` and `w`: bf16 or f16.
    pub factors: DType,
    /// Type of `bias`, `residual` and `y`: f32, or that of the factors.
    pub results: DType,
    /// Whether `w` lies in memory by its columns: `[n, k]`, not `[k, n]`.
    pub transposed: bool,
    /// `[m, k]`.
    pub x: CudaMatrix,
    /// The other factor.
    pub w: CudaMatrix,
    /// The argument that is added to every row, `[n]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias: Option<u32>,
    /// What is added, `[m, n]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<CudaMatrix>,
    /// `[m, n]`.
    pub y: CudaMatrix,
    /// The argument that is memory for the library to use.
    pub workspace: u32,
    /// How much that is.
    pub workspace_bytes: u64,
}

/// A matrix whose rows, as they lie in memory, are dense.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CudaMatrix {
    /// Operands first, then results, then the workspace.
    pub arg: u32,
    /// Elements from a row to the next.
    pub stride: Dim,
}

/// One of a kernel's variants, and how it is launched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CudaVariant {
    /// Name of its entry in the module.
    pub symbol: String,
    /// Number of the module in [`Manifest::modules`](crate::artifact::Manifest::modules).
    pub module: u32,
    /// Its parameters, in order.
    pub params: Vec<CudaParam>,
    /// Blocks along x, y and z; nothing is launched where one is zero.
    pub grid: [Dim; 3],
    /// Threads of a block.
    pub block: u32,
    /// Blocks of a cluster, along x.
    pub cluster: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// The variant is made for launches in which this size is at most that; `None`: for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<(Dim, i64)>,
    /// Operands that it reads before it waits for what was launched before: it may begin early
    /// where nothing writes to them during a run. Besides those it touches no memory before it has
    /// waited.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub early: Vec<u32>,
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Swizzle {
    /// Two units, by bit 7 of the address.
    Bytes32,
    /// Four units, by bits 7 and 8.
    Bytes64,
    /// Eight units, by bits 7 to 9.
    Bytes128,
}
