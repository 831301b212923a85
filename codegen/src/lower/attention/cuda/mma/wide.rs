//! Many rows on `sm_90a`: attention with `wgmma`, after FlashAttention-3 (Shah et al. 2024,
//! arXiv:2407.08608).
//!
//! The last warpgroup copies chunks to the ring (`produce`), the other two have 64 rows each, a
//! warp sixteen of them, as in a large tile (`consume`). Queries stay in registers, and weights go
//! from the scores' registers to those of a left operand. Behind a chunk's values lie ones, as a
//! column more of which eight are multiplied: the sum of weights.
//!
//! While a warpgroup's weights are multiplied with values, it turns the scores of the next chunk to
//! weights; and the warpgroups issue in turns, so that one multiplies while the other does that.

mod consume;
mod produce;

use ir::{Dim, KernelSpec, Target};

use super::{
    super::{
        CHUNK, Sizes,
        chunk::{Chunks, PIECE, chunk_bytes},
        numbering,
        tile::Tiles,
        walk::Walk,
    },
    aligned_args, codes,
    pass::{Form, Pass},
    shared,
};
use crate::{
    cuda::CudaKernel,
    emit::{Barrier, Cmp},
    kernels::gemm::ring::Ring,
    lower::cx::Cx,
};

/// Warpgroups that multiply.
const CONSUMERS: i64 = 2;
/// Threads of a warpgroup.
const WARPGROUP: i64 = 128;
/// Rows of a tile.
const ROWS: i64 = 64 * CONSUMERS;
/// Registers of a thread of the producer, and of a consumer: three warpgroups begin with 168 each.
const REGISTERS: [i64; 2] = [72, 216];
/// Stages of the ring.
const STAGES: i64 = 4;
/// Bytes of the ones of a stage.
const ONES: i64 = CHUNK * PIECE;

/// Bytes of a stage: keys, values, and ones.
const fn stage_bytes(sizes: Sizes) -> i64 {
    chunk_bytes(sizes) + ONES
}

/// Bytes of a warp's totals; its queries are there before.
const fn warp_bytes(sizes: Sizes) -> i64 {
    16 * 4 * sizes.value
}

/// Whether there is a kernel, for what tensor cores can compute.
pub(super) fn fits(spec: &KernelSpec, sizes: Sizes, target: &Target) -> bool {
    let size = |n: i64| n == 64 || n == 128;
    target.cpu == "sm_90a" && !codes(spec) && size(sizes.key) && size(sizes.value)
}

/// Launches with so few tokens are for tiles of 64 rows: those of 128 would leave half of the
/// multiprocessors without one.
pub(super) fn fewest(sizes: Sizes, multiprocessors: i64) -> i64 {
    (multiprocessors * ROWS / 2 / (sizes.group * sizes.kv_heads)).max(1)
}

/// The kernel.
pub(super) fn kernel(spec: &KernelSpec, sizes: Sizes, target: &Target) -> CudaKernel {
    let threads = u32::try_from(WARPGROUP * (CONSUMERS + 1)).expect("few threads");
    let cx = Cx::cuda(spec, threads);
    let tiles = Tiles { cx: &cx, sizes, numbering: numbering(spec), rows: ROWS };
    let bytes = emit(&tiles);
    assert!(bytes <= shared(target)[1], "{bytes} bytes of shared memory");
    let grid = [tiles.count(), Dim::from(sizes.kv_heads), 1.into()];
    cx.finish_cuda(grid, u32::try_from(bytes).expect("it fits"), &[], aligned_args(spec))
}

/// Emits the kernel and returns how many bytes of shared memory it needs.
fn emit(tiles: &Tiles<'_>) -> i64 {
    let (cx, sizes) = (tiles.cx, tiles.sizes);
    let e = &cx.e;
    let (thread, base) = (e.thread(), e.shared());
    let area = STAGES * stage_bytes(sizes);
    let barriers = area + ROWS / 16 * warp_bytes(sizes);
    let ring = Ring { barriers: e.add_const(base, barriers), stages: STAGES };
    let mut x = e.block('x');
    if cx.spec.attrs.str("mask") == "causal" {
        // Later tiles see more: they begin first.
        x = e.add_const(e.sub(e.special("nctaid.x"), x), -1);
    }
    let tile = tiles.find(x, e.block('y'));
    e.if_then(e.cmp(Cmp::Gt, tile.rows, e.i32(0)), || {
        let seen = tiles.seen(tile);
        let [from, to] = seen.any;
        let lo = e.div_unsigned(from, e.i32(CHUNK));
        let walk = Walk { lo, hi: e.div_ceil_const(to, CHUNK), only: None };
        let both = e.cmp(Cmp::Gt, tile.rows, e.i32(64));
        let chunks = || Chunks::new(cx, tiles, STAGES, base);
        e.if_then(e.cmp(Cmp::Eq, thread, e.i32(0)), || {
            ring.init(e, WARPGROUP / 32, e.select(both, e.i32(4 * CONSUMERS), e.i32(4)));
        });
        e.if_then(e.cmp(Cmp::Lt, thread, e.i32(CHUNK * STAGES)), || {
            let row = e.rem_unsigned(thread, e.i32(CHUNK));
            let stage = e.mul_const(e.div_unsigned(thread, e.i32(CHUNK)), stage_bytes(sizes));
            let unit = e.add(e.shl(row, 3), e.and(row, e.i32(7)));
            let to = e.add(e.add(base, stage), e.shl(unit, 4));
            let to = e.add_const(to, chunk_bytes(sizes));
            let ones = chunks().ones();
            e.ptx("st.shared.v4.b32 [$0], {$1, $1, $1, $1};", &[to, ones]);
        });
        e.ptx("fence.proxy.async.shared::cta;", &[]);
        e.barrier(Barrier::Block);
        // Warpgroups begin at multiples of four warps, so those that multiply come first.
        let first = e.i32(WARPGROUP * CONSUMERS);
        let [few, many] = REGISTERS;
        e.either(
            e.cmp(Cmp::Ge, thread, first),
            || {
                e.ptx(&format!("setmaxnreg.dec.sync.aligned.u32 {few};"), &[]);
                let chunks = chunks().in_pieces(e.sub(thread, first), WARPGROUP);
                produce::run(cx, &chunks, &ring, (tile, to), walk);
            },
            || {
                e.ptx(&format!("setmaxnreg.inc.sync.aligned.u32 {many};"), &[]);
                let group = e.div_unsigned(thread, e.i32(WARPGROUP));
                let rows = e.cmp(Cmp::Lt, e.shl(group, 6), tile.rows);
                e.if_then(rows, || {
                    let chunks = chunks();
                    let form = (Form::Wide, e.add_const(base, area));
                    let pass = Pass::new(cx, tiles, &chunks, (tile, seen), form);
                    pass.consume(&ring, walk, both);
                });
            },
        );
    });
    barriers + Ring::bytes(STAGES)
}
