//! Products with weights of 8 or 4 bits, dequantised in registers, for `sm_80` and later.
//!
//! As in Marlin (Frantar et al. 2024, arXiv:2408.11743) activations stay bf16 or f16 and weights
//! lie in memory as lanes need them. Here the weight is the left operand of `mma.m16n8k16`, sixteen
//! columns of it at once, and eight rows of activations are the right one, so that few rows waste
//! little. The integers are exact in bf16 and f16; what a block of 32 gives is scaled in f32, which
//! is exact to rounding where a scaled weight would be rounded to eight bits.
//!
//! An output is `fma(block, scale, sum)` over the blocks of a quarter of the groups of k, in order;
//! the quarters are then added in order. A block is two products of sixteen, the first from zero.
//! Every kernel here keeps to that, so that an output's bits depend neither on the number of rows
//! nor on the tile, as those of unquantised weights, on the same architecture.
//!
//! - `decode`: at most eight or sixteen rows; each warp of a block reads a quarter of k.
//! - `tiles`: any number of rows; a ring of `cp.async` stages, as in [`super::sm80`].
//!
//! `sm_90a` uses the same kernels, not `wgmma`.

mod decode;
mod lanes;
mod tiles;

use ir::{CudaTarget, QUANT_GROUP};

use super::{Draft, Gemm, Variant, tile::Tile as Kind};
use decode::Decode;
pub use decode::Stream;
pub use tiles::Tile;

/// k of a group.
const GROUP: i64 = QUANT_GROUP as i64;
/// Parts of k that are summed by themselves.
const PARTS: i64 = 4;

/// The tiles of a product for a GPU with so many multiprocessors, those for fewer rows first.
pub(super) fn defaults(spec: &Gemm, gpu: &CudaTarget) -> Vec<Variant> {
    let streams = [Stream::EIGHT, Stream::SIXTEEN].into_iter().filter(|_| can_load(spec));
    let streams = streams.map(|s| Variant { rows: Some(s.m), tile: Kind::Stream(s) });
    let few = spec.columns() / Tile::MEDIUM.n < i64::from(gpu.multiprocessors);
    let medium = if few && !spec.gated { Tile::NARROW } else { Tile::MEDIUM };
    let tiles = [(medium, Some(medium.m)), (Tile::LARGE, None)];
    let tiles = tiles.into_iter().filter_map(|(tile, rows)| {
        Some(Variant { rows, tile: Kind::Lanes(fitted(spec, tile, gpu.shared_bytes)?) })
    });
    streams.chain(tiles).collect()
}

/// Whether [`Stream`] can read the rows of a product.
pub(super) fn can_load(spec: &Gemm) -> bool {
    Decode::can_load(spec)
}

/// Emits the kernel `symbol` for few rows, which may begin early, on `sm_90a`.
#[must_use]
pub fn emit_stream(symbol: &str, spec: &Gemm, stream: Stream, begins_early: bool) -> Draft {
    decode::emit(symbol, spec, stream, begins_early)
}

/// Emits the kernel `symbol` for any number of rows.
#[must_use]
pub fn emit(symbol: &str, spec: &Gemm, tile: Tile) -> Draft {
    tiles::emit(symbol, spec, tile)
}

/// The tile with fewer stages, where `shared` bytes of shared memory have no room for all.
pub(super) fn fitted(spec: &Gemm, tile: Tile, shared: u32) -> Option<Tile> {
    tiles::fitted(spec, tile, shared)
}

/// What computes any number of rows in so little shared memory.
pub(super) fn smallest(spec: &Gemm, shared: u32) -> Option<Kind> {
    fitted(spec, Tile::MEDIUM, shared).map(Kind::Lanes)
}

/// Groups of a column.
const fn groups(spec: &Gemm) -> i64 {
    (spec.k + GROUP - 1) / GROUP
}

/// Groups of a part but the last, which may have less, as may the parts before it.
const fn part_groups(spec: &Gemm) -> i64 {
    (groups(spec) + PARTS - 1) / PARTS
}
