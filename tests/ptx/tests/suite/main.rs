//! Tests of the emulator as a whole: instructions, kernels, and faults of kernels that are wrong.

mod common;
mod gemm_sm80;
mod instructions;
mod layouts;
mod parse;
mod rmsnorm;
mod strict;
