//! Tests of the emulator as a whole: instructions, kernels, and faults of kernels that are wrong.

#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "helpers of tests, with numbers that are known to fit"
)]

mod common;
mod gemm_sm80;
mod gemm_sm90a;
mod hopper;
mod instructions;
mod layouts;
mod parse;
mod pipeline;
mod rmsnorm;
mod strict;
mod wgmma;
