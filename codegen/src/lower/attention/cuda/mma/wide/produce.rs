//! Chunks to the ring.

use super::{
    super::super::{Sizes, chunk::Chunks, tile::Tile, walk::Walk},
    stage_bytes,
};
use crate::{
    emit::{Barrier, Cmp, Val},
    kernels::gemm::ring::{Ring, Turn},
    lower::cx::Cx,
};

/// Copies the chunks of a walk of which keys before `keys` are read. A chunk is announced when the
/// next one's copies have begun.
pub(super) fn run(
    cx: &Cx<'_>,
    chunks: &Chunks<'_>,
    ring: &Ring,
    (tile, keys): (Tile, Val),
    walk: Walk,
) {
    let e = &cx.e;
    let sizes: Sizes = chunks.sizes();
    let leads = e.cmp(Cmp::Eq, e.and(e.thread(), e.i32(31)), e.i32(0));
    let announce = |some: Val, turn: Turn| {
        // Each thread's copies come before what tensor cores read; one lane says so.
        e.ptx("fence.proxy.async.shared::cta;", &[]);
        e.barrier(Barrier::Warp);
        e.if_then(e.and(some, leads), || ring.arrive_full_before(e, turn));
    };
    let entries = |chunk: Val| chunks.entries(tile, e.min(chunk, walk.hi), keys);
    let count = walk.count(e);
    let first = walk.first(e);
    let mut init = Turn::start(e).values().to_vec();
    init.push(first);
    init.extend(entries(first));
    let done = e.for_loop(e.i32(0), count, 1, &init, |i, carried| {
        let (turn, chunk, found) = (Turn::of(carried), carried[2], &carried[3..]);
        let stage = e.mul_const(turn.stage, stage_bytes(sizes));
        ring.wait_empty(e, turn);
        e.barrier(Barrier::Warp);
        chunks.fetch_keys(tile, chunk, keys, found, stage);
        chunks.fetch_values(tile, chunk, keys, found, stage);
        e.ptx("cp.async.commit_group;", &[]);
        let next = walk.next(e, chunk);
        let found = entries(next);
        e.ptx("cp.async.wait_group 1;", &[]);
        announce(e.cmp(Cmp::Gt, i, e.i32(0)), turn);
        let [stage, parity] = ring.next(e, turn).values();
        [stage, parity, next].into_iter().chain(found).collect()
    });
    e.ptx("cp.async.wait_group 0;", &[]);
    announce(e.cmp(Cmp::Gt, count, e.i32(0)), Turn::of(&done));
}
