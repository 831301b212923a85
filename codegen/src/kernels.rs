//! One generator per kernel family.

pub mod matmul;
