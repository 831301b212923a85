//! Products on CUDA GPUs: `y = act(a · w + bias) + residual`.
//!
//! On tensor cores, operands are multiplied as bf16 or f16, the weight's own type, and added in
//! f32; f32 rows of `a` are rounded to that type (to nearest even) on their way into the product.
//! An output is one chain of sixteen-wide steps over k from 0 on, by one instruction, in every
//! variant for an architecture: its bits depend neither on the number of rows nor on the tile,
//! which is why there is no split over k: a chain of K/16 dependent steps takes less time than its
//! weights take to arrive. Two architectures need not agree in the last bits.
//!
//! - [`sm80`]: `cp.async`, `ldmatrix`, `mma.sync`.
//! - [`sm90a`]: copy engine, `mbarrier`, `wgmma`; for few rows the kernels of [`sm80`], since its
//!   `mma.sync.m16n8k16` gives the bits of `wgmma` where both see k in the same [`Order`].
//! - [`fp8`]: both sides in blocks of e4m3, for `sm_90a`.
//! - [`quantized`]: weights of 8 or 4 bits, for both; its sums have an order of their own.
//! - [`simt`]: f32, for both, by fused multiply-adds.
//! - [`tiled`]: operands in any layout, for both, by either kind of instruction.
//!
//! Which of these a product gets for how many rows, and in which tiles, is data: [`tile`].

mod epilogue;
pub mod fp8;
mod map;
pub mod quantized;
pub(crate) mod ring;
pub mod simt;
pub mod sm80;
pub mod sm90a;
pub mod tile;
pub mod tiled;
mod walk;

use ir::Dim;

pub use self::{
    map::{Elementwise, Map},
    tile::{Tile, Variant},
};
use super::matmul::Activation;
use crate::{
    cuda::TensorMap,
    emit::{Elem, Emitter},
};

/// Columns of a panel of a packed weight.
pub const PANEL: i64 = 16;

/// A matrix of dense rows in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Number of the operand.
    pub arg: u32,
    /// Element.
    pub elem: Elem,
    /// Elements between rows.
    pub stride: i64,
}

/// How a weight of `k` rows and `n` columns lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `[ceil(n / 16)][k][16]`.
    Panels,
    /// Columns are dense and so many elements apart.
    Columns(i64),
    /// Rows are dense and so many elements apart.
    Rows(i64),
}

/// Which step over k stands where in the sixteen that an instruction adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// In order.
    Plain,
    /// Place `p` of the eight of number `j` has step `8 j + (p ^ j % 4)`: as `wgmma` finds a packed
    /// weight that was copied in rows of 128 bytes.
    Turned,
}

/// A product.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemm {
    /// Rows of `a` and `y`.
    pub rows: Dim,
    /// Columns of `y`.
    pub n: i64,
    /// Length of the sums.
    pub k: i64,
    /// `[rows, k]`.
    pub a: Matrix,
    /// Number of the weight's operand.
    pub w: u32,
    /// Its element: f32, bf16 or f16; of one of integers, what they become; i8 where it and `a` are
    /// e4m3 as [`fp8`] reads them, `k` whole blocks.
    pub w_elem: Elem,
    /// The weight is in lanes, as [`quantized`] reads it, with integers of so many bits; its form
    /// is panels.
    pub bits: Option<u32>,
    /// Its layout.
    pub form: Form,
    /// Panels of two weights alternate; `y = act(a · first) · (a · second)`.
    pub gated: bool,
    /// Applied to the sum.
    pub activation: Activation,
    /// `[n]`: operand and element.
    pub bias: Option<(u32, Elem)>,
    /// `[rows, n]`.
    pub residual: Option<Matrix>,
    /// `[rows, n]`.
    pub y: Matrix,
    /// What `y` is instead, of all that and of other matrices.
    pub map: Option<Map>,
}

/// A kernel without its name.
pub struct Draft {
    /// Its text so far; the parameter `Size(0)` is the number of rows.
    pub e: Emitter,
    /// Rows and columns of a tile: the grid has one block for each, rows along x, unless
    /// [`Draft::blocks`] says otherwise.
    pub tile: [i64; 2],
    /// Number of blocks that share the tiles.
    pub blocks: Option<i64>,
    /// Dynamic shared memory.
    pub shared_bytes: u32,
    /// Tensor maps by number.
    pub maps: Vec<TensorMap>,
    /// The kernel is for at most so many rows.
    pub max_rows: Option<i64>,
    /// Operands that it reads before it waits for what was launched before.
    pub early: Vec<u32>,
}

impl Gemm {
    /// Columns of the weight as it is stored, where those of a gated one count twice, in whole
    /// panels.
    pub(crate) fn columns(&self) -> i64 {
        match self.form {
            Form::Panels => self.panels() * PANEL,
            Form::Columns(_) | Form::Rows(_) => self.n,
        }
    }

    fn panels(&self) -> i64 {
        (self.n + PANEL - 1) / PANEL * if self.gated { 2 } else { 1 }
    }

    /// Columns of `y` that so many of the weight give.
    fn outputs(&self, columns: i64) -> i64 {
        if self.gated { columns / 2 } else { columns }
    }

    /// The order of k on `sm_90a`.
    fn order(&self) -> Order {
        if self.form == Form::Panels { Order::Turned } else { Order::Plain }
    }

    /// Whether both sides are e4m3.
    pub(crate) fn is_fp8(&self) -> bool {
        self.w_elem == Elem::I8
    }

    /// The weight's element as PTX names it.
    fn type_name(&self) -> &'static str {
        if self.w_elem == Elem::F16 { "f16" } else { "bf16" }
    }

    /// Checks what both architectures need.
    ///
    /// # Errors
    /// What no kernel computes.
    pub fn check(&self) -> Result<(), String> {
        if self.is_fp8() {
            return Ok(());
        }
        if !matches!(self.w_elem, Elem::F32 | Elem::Bf16 | Elem::F16) {
            return Err(format!("multiplies f32, bf16 and f16, not {}", self.w_elem));
        }
        if ![self.a.elem, self.w_elem].contains(&Elem::F32) && self.a.elem != self.w_elem {
            return Err(format!("{} times {}", self.a.elem, self.w_elem));
        }
        if self.k < 1 || self.n < 1 {
            return Err("an empty product".into());
        }
        Ok(())
    }
}
