//! Schedules of products with weights, as data: register tiles, blocks and prefetching.
//!
//! A schedule changes time alone. Every output is one chain of sums in one order whatever the
//! tiles and blocks, so every schedule gives the same bits. Where a table says nothing, the choice
//! follows from the target's registers and caches.
//!
//! On GPUs a schedule is a list of tiles, each for a number of rows: [`Variant`]. Where a table
//! says nothing, it follows from the number of multiprocessors.
//!
//! A [`Tuning`] is a table of schedules by target, family and class of shape. Those in this
//! repository are part of the compiler; `brolly tune` finds others.

mod gpu;
mod space;
mod table;

pub use gpu::Place;
pub use space::AXES;
pub use table::{Entry, Timed, Tuning, TuningError, class};

use serde::{Deserialize, Serialize};

pub use crate::kernels::gemm::{Tile, Variant};
use crate::{
    Isa,
    emit::Elem,
    kernels::{gemm::Gemm, matmul::Matmul},
};

/// Products that are scheduled alike: by what their weights are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names are those of the types")]
pub enum Family {
    F32,
    Bf16,
    F16,
    Q8,
    Q4,
    Fp8,
}

impl Family {
    /// Every family of CPUs.
    pub const ALL: [Family; 5] = [Family::F32, Family::Bf16, Family::F16, Family::Q8, Family::Q4];

    /// As tables name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Family::F32 => "f32",
            Family::Bf16 => "bf16",
            Family::F16 => "f16",
            Family::Q8 => "q8",
            Family::Q4 => "q4",
            Family::Fp8 => "fp8",
        }
    }

    /// The family of a product on a GPU.
    #[must_use]
    pub fn of_gemm(product: &Gemm) -> Family {
        match (product.bits, product.w_elem) {
            (Some(4), _) => Family::Q4,
            (Some(_), _) => Family::Q8,
            (None, Elem::I8) => Family::Fp8,
            (None, Elem::Bf16) => Family::Bf16,
            (None, Elem::F16) => Family::F16,
            (None, _) => Family::F32,
        }
    }

    /// The family of a product on a CPU.
    #[must_use]
    pub fn of(product: &Matmul) -> Family {
        match (product.bits, product.weight) {
            (Some(4), _) => Family::Q4,
            (Some(_), _) => Family::Q8,
            (None, Elem::Bf16) => Family::Bf16,
            (None, Elem::F16) => Family::F16,
            (None, _) => Family::F32,
        }
    }

    /// Whether its weights are blocks of integers.
    #[must_use]
    pub const fn is_quantized(self) -> bool {
        matches!(self, Family::Q8 | Family::Q4)
    }
}

/// A choice for each of a schedule's sizes; `None` is what follows from registers and caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Most rows of a register tile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tile_rows: Option<u64>,
    /// Panels of sixteen columns of a register tile of many rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tile_panels: Option<u64>,
    /// Most steps of k in a block, of many rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k_block: Option<u64>,
    /// Most rows of a block of x, of many rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_block: Option<u64>,
    /// Steps of k in an iteration, of many rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unroll: Option<u64>,
    /// Bytes of the weight that are prefetched ahead over all streams, of few rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefetch_bytes: Option<u64>,
}

/// Vector registers that a register tile leaves for the weight and x.
const OTHER_REGISTERS: u64 = 3;

impl Schedule {
    /// Whether kernels of the family can be scheduled so.
    ///
    /// # Errors
    /// A sentence that names the field and says what it may be.
    pub fn check(&self, family: Family, isa: &Isa) -> Result<(), String> {
        if family == Family::Fp8 {
            return Err("CPUs multiply no fp8".into());
        }
        let Schedule { tile_rows, tile_panels, k_block, row_block, unroll, prefetch_bytes } = *self;
        let blocked = [
            ("tile_rows", tile_rows),
            ("tile_panels", tile_panels),
            ("k_block", k_block),
            ("row_block", row_block),
            ("unroll", unroll),
        ];
        let set = |(name, value): &(&'static str, Option<u64>)| value.map(|_| *name);
        if let (true, Some(name)) = (family.is_quantized(), blocked.iter().find_map(set)) {
            return Err(format!(
                "`{name}`: a quantised product is scheduled by `prefetch_bytes` alone"
            ));
        }
        let within = |name: &str, value: Option<u64>, lo: u64, hi: u64, step: u64| match value {
            Some(v) if !(lo..=hi).contains(&v) || !v.is_multiple_of(step) => {
                let of = if step > 1 { format!(", a multiple of {step}") } else { String::new() };
                Err(format!("`{name}` is {v}; it must be {lo} to {hi}{of}"))
            }
            _ => Ok(()),
        };
        within("tile_rows", tile_rows, 1, 12, 1)?;
        within("tile_panels", tile_panels, 1, 2, 1)?;
        within("k_block", k_block, 16, 8192, 16)?;
        within("row_block", row_block, 1, 4096, 1)?;
        within("unroll", unroll, 1, 16, 1)?;
        within("prefetch_bytes", prefetch_bytes, 0, 1 << 20, 1)?;
        if unroll.is_some_and(|u| !u.is_power_of_two()) {
            return Err("`unroll` must be 1, 2, 4, 8 or 16".into());
        }
        let (rows, panels) = isa.register_tile();
        let sums = tile_rows.unwrap_or(rows) * tile_panels.unwrap_or(panels);
        let registers = sums * isa.panel_registers();
        let limit = u64::from(isa.vector_registers) - OTHER_REGISTERS;
        if registers > limit {
            return Err(format!(
                "`tile_rows` times `tile_panels` is {sums}, whose sums take {registers} vector \
                 registers; there are {limit} for them"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
