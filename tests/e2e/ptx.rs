//! GPU kernels where there is no GPU: NVIDIA's assembler takes them without spills and with tensor
//! core instructions, and an emulator of PTX computes with them what the interpreter computes.

mod assemble;
mod attention;
mod behind;
mod buffer;
mod case;
mod device;
mod every;
mod experts;
mod families;
mod fp8;
mod gradients;
mod graphs;
mod map;
mod operands;
mod oracle;
mod products;
mod quantized;
mod record;
mod registers;
mod routing;
mod samples;
mod simt;
mod tiles;
mod timings;
mod training;

pub(crate) use assemble::programs;
