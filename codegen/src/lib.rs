//! Kernel generators and the compiler below them: typed specifications in, one executable image
//! out.
//!
//! - [`emit`]: typed printer of MLIR.
//! - [`math`]: elementary functions as vector polynomials.
//! - [`kernels`]: one generator per kernel family.
//! - [`lower`]: from `ir`'s kernel specifications to those generators and its own families.
//! - [`schedule`]: how products are tiled and blocked, as data.
//! - [`mlir`]: MLIR text to x86-64 objects, or to PTX.
//! - [`cuda`]: what a launch of a GPU kernel needs.
//! - [`image`]: objects to one position-independent, import-free image.
//! - [`Codegen`]: all of it: specifications in, one image and its kernels out.
//!
//! No operator of `ir` has its arithmetic anywhere else: the runtime only calls what is made here.

mod assemble;
mod compile;
pub mod cuda;
pub mod emit;
pub mod image;
mod isa;
mod kernel;
pub mod kernels;
pub mod library;
pub mod lower;
pub mod math;
pub mod mlir;
mod native;
mod objects;
pub mod schedule;
#[cfg(test)]
mod testing;

pub use assemble::{AssembleError, Assembler};
pub use compile::{Codegen, CodegenError, Compiled};
pub use isa::Isa;
pub use kernel::Kernel;
pub use native::native_target;
pub use objects::{ObjectKey, Objects};
