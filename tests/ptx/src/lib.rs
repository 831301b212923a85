//! An emulator of PTX that judges generated GPU kernels where there is no GPU.
//!
//! It parses the text that LLVM's NVPTX backend prints for sm_80 and sm_90a and runs blocks of a
//! grid, a warp instruction at a time. It is not a simulator: it knows no time. It is strict
//! instead: what the ISA leaves undefined is a [`Fault`], and what is asynchronous happens as late
//! as the ISA allows, so that a kernel which gives right results here has waited for what it uses.
//!
//! - Memory that was not written cannot be read; nor can registers.
//! - Data of `cp.async` is there after `wait_group`, that of bulk copies when the phase of their
//!   mbarrier is complete, accumulators of `wgmma` after their `wait_group`. Touching them earlier
//!   is a fault.
//! - Accesses to shared memory that no barrier orders are a data race, whether or not they meet in
//!   this run; so are generic writes that the asynchronous proxy uses without a fence.
//! - The order in which warps run comes from a seed. Results of kernels without faults do not
//!   depend on it.
//!
//! Not checked: races in global memory, the weak memory model (a load returns what was stored
//! last), and performance, apart from the counts in [`Report`].
//!
//! ```
//! use brolly_ptx::{Arch, Gpu, Launch, Module, Param};
//!
//! let module = Module::parse(
//!     ".version 8.0
//!      .target sm_80
//!      .address_size 64
//!      .visible .entry twice(.param .u64 data) {
//!          .reg .b32 %r<3>;
//!          .reg .b64 %d<3>;
//!          ld.param.b64 %d0, [data];
//!          mov.u32 %r0, %tid.x;
//!          mul.wide.u32 %d1, %r0, 4;
//!          add.s64 %d2, %d0, %d1;
//!          ld.global.f32 %r1, [%d2];
//!          add.rn.f32 %r2, %r1, %r1;
//!          st.global.f32 [%d2], %r2;
//!          ret;
//!      }",
//! )?;
//! let mut gpu = Gpu::new(Arch::Sm80);
//! let data = gpu.alloc(32 * 4);
//! gpu.write_f32s(data, &[1.5; 32]);
//! gpu.launch(&module, "twice", &Launch { params: vec![Param::U64(data)], ..Launch::default() })?;
//! assert_eq!(gpu.read_f32s(data, 32), [3.0; 32]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![allow(
    clippy::cast_possible_truncation,
    reason = "registers and addresses are cut to their widths all over"
)]

mod parse;

mod clock;
mod exec;
mod fault;
mod global;
mod gpu;
mod launch;
mod mods;
mod module;
mod numeric;
mod ops;
mod rng;
mod shadow;
mod shared;
mod tensor_map;
mod ty;

pub use fault::{Fault, FaultKind, ParseError, ParseErrors};
pub use gpu::{Arch, Gpu};
pub use launch::{Launch, Param, Report};
pub use module::Module;
pub use tensor_map::{Elem, Swizzle, TensorMap};
