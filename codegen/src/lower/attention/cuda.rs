//! Attention on GPUs, after FlashAttention-2 (Dao 2023, arXiv:2307.08691) and, for few rows,
//! Flash-Decoding (Dao et al. 2023).
//!
//! # The order of sums
//! Keys come in chunks of [`CHUNK`], from the sequence's start on; spans of [`walk::SPAN`] chunks
//! belong to [`STRANDS`] strands in turn. A row has an online softmax over the chunks of each
//! strand by itself, and at the end those of the strands are folded, first to last. What a row does
//! not see (keys, chunks, whole strands) leaves its sums as they are. So its bits depend on what it
//! sees, and on nothing else: neither on the batch, nor on how a prompt is split, nor on who
//! computes a strand. Queries and weights are rounded to the type of keys and values (bf16 where
//! those are of eight bits), scores and sums are f32, and the sum of weights is that of the rounded
//! ones: it is one more column of the values, of ones.
//!
//! # Who computes what
//! Tensor cores ([`mma`]) where keys and values are in bf16, f16, i8 or e4m3 and lie so that
//! sixteen bytes can be copied at once; else ([`simt`]) in f32, with one softmax over all chunks.
//!
//! Of [`mma`], a block has a tile of rows, tokens times query heads of one key/value head. More
//! than sixteen rows are divided among the warps; of up to sixteen all warps have all rows, and
//! divide the keys of a chunk for the scores and the elements of values for the sums. A block walks
//! strand after strand and folds each as it ends. On `sm_90a` launches of few tokens give each
//! strand to a block of a cluster, and fold through the cluster's shared memory; those of many
//! tokens take `wgmma`, in tiles of 128 rows, in the same order of sums.

mod chunk;
pub(super) mod fma;
mod mma;
mod simt;
pub(super) mod softmax;
pub(super) mod tile;
mod walk;

use ir::{KernelSpec, Target};

use super::{Sizes, required};
use crate::{
    cuda::CudaKernel,
    emit::{Elem, Ty},
};
use tile::Numbering;
use walk::STRANDS;

/// Keys of a chunk.
const CHUNK: i64 = 64;
/// Warps that the rows, or the keys of a chunk, are divided among.
const WARPS: i64 = 4;
const WORD: Ty = Ty::Scalar(Elem::I32);

/// How an operator numbers its tokens.
fn numbering(spec: &KernelSpec) -> Numbering {
    let rank = spec.operands[0].as_ref().map_or(0, |q| q.ty.rank());
    match spec.op {
        "paged_attention" => Numbering::Paged,
        _ if rank == 4 => Numbering::Batched,
        _ => Numbering::Packed(3),
    }
}

/// Number of the first result among all arguments.
fn result_of(spec: &KernelSpec) -> u32 {
    u32::try_from(spec.operands.len()).expect("few operands")
}

/// The kernels of `attention`, `attention_lse` and `paged_attention`.
///
/// # Errors
/// What GPU kernels do not support.
pub(super) fn kernels(
    spec: &KernelSpec,
    sizes: Sizes,
    target: &Target,
) -> Result<Vec<CudaKernel>, String> {
    if mma::check(spec, sizes, target).is_ok() {
        return Ok(mma::kernels(spec, sizes, target));
    }
    Ok(vec![simt::kernel(spec, sizes, target)?])
}
