//! One generator per kernel family.

pub mod gemm;
pub mod matmul;
