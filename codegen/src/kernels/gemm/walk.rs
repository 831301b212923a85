//! How persistent blocks share the tiles of a product.

use super::ring::Turn;
use crate::emit::{Emitter, Val};

/// Rows of tiles that are walked together, so that weights stay in the second-level cache.
const GROUP: i64 = 16;

/// Walks this block's tiles of `rows`, i32, by `columns`: `body(first row, first column, turn)`
/// gives the next turn of the ring, which runs on from tile to tile.
pub(super) fn each_tile(
    e: &Emitter,
    rows: Val,
    columns: i64,
    tile: [i64; 2],
    body: impl FnOnce(Val, Val, Turn) -> Turn,
) {
    each_tile_of(e, 1, (rows, columns), tile, body);
}

/// As [`each_tile`], where so many neighbouring blocks have the same tiles.
pub(super) fn each_tile_of(
    e: &Emitter,
    cluster: i64,
    (rows, columns): (Val, i64),
    tile: [i64; 2],
    body: impl FnOnce(Val, Val, Turn) -> Turn,
) {
    let [tile_m, tile_n] = tile;
    let across = (columns + tile_n - 1) / tile_n;
    let down = e.div_ceil_const(rows, tile_m);
    let count = e.mul_const(down, across);
    let all = [e.block('x'), e.special("nctaid.x")];
    let [block, blocks] = match cluster {
        1 => all,
        _ => all.map(|n| e.div_unsigned(n, e.i32(cluster))),
    };
    let left = e.sub(count, block);
    let mine = e.div_unsigned(e.add(left, e.add_const(blocks, -1)), blocks);
    let start = Turn::start(e).values();
    let _ = e.for_loop(e.i32(0), mine, 1, &start, |i, turn| {
        let index = e.add(block, e.mul(i, blocks));
        let group = e.div_unsigned(index, e.i32(GROUP * across));
        let within = e.sub(index, e.mul_const(group, GROUP * across));
        let first = e.mul_const(group, GROUP);
        let height = e.min(e.i32(GROUP), e.sub(down, first));
        let m = e.add(first, e.rem_unsigned(within, height));
        let n = e.div_unsigned(within, height);
        let turn = Turn::of(turn);
        body(e.mul_const(m, tile_m), e.mul_const(n, tile_n), turn).values().to_vec()
    });
}
