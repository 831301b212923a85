//! Which tiles a product gets, by the number of rows.
//!
//! Up to 64 rows the weight's way from memory takes the time: two blocks on a multiprocessor, with
//! as much of it in flight as fits, and tiles so narrow that most multiprocessors have one. For
//! more rows it is as for bf16, for a block of k has the bytes of 64 of bf16, and twice the
//! products at twice the rate: the longer of 64 by 64 of 128 bytes, and copies at some 45 bytes a
//! cycle. Two tiles of sums, one of a block and one of all, leave room for 192 columns.

use super::{
    super::{Gemm, tile::by_rows},
    Tile,
};

/// Shared memory of a multiprocessor for stages.
const SHARED: i64 = 224 << 10;

/// The tile of so many columns.
fn tile(warpgroups: i64, n: i64) -> Tile {
    let blocks = if warpgroups > 1 { 1 } else { (128 / n).clamp(1, 4) };
    let stage = 128 * (64 * warpgroups + n) + 4 * n;
    let room = if warpgroups > 1 { SHARED } else { SHARED / 2 };
    Tile { warpgroups, n, blocks, stages: (room / stage).min(10) }
}

/// The tile for up to 64 rows.
pub(super) fn few(spec: &Gemm, multiprocessors: i64) -> Tile {
    let enough = |n: &i64| 5 * spec.columns() / n >= 4 * multiprocessors;
    tile(1, [128, 64].into_iter().find(enough).unwrap_or(32))
}

/// Tiles for more rows, each with the number of rows that it is for at most.
pub(super) fn many(spec: &Gemm, multiprocessors: i64) -> Vec<(Tile, Option<i64>)> {
    let best = |rows: i64| {
        let cost = |tile: &Tile| {
            let down = (rows + tile.m() - 1) / tile.m();
            let tiles = down * ((spec.columns() + tile.n - 1) / tile.n);
            let waves = (tiles + multiprocessors - 1) / multiprocessors;
            waves * (4 * tile.n).max(360 + 3 * tile.n)
        };
        let tiles = [192, 128, 96, 64, 32].map(|n| tile(2, n));
        tiles.into_iter().min_by_key(cost).expect("a tile")
    };
    by_rows(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_long_and_fit() {
        for n in [192, 128, 96, 64, 32] {
            for warpgroups in [1, 2] {
                let tile = tile(warpgroups, n);
                let bytes = tile.stages * (128 * (tile.m() + n) + 4 * n);
                assert!(bytes <= SHARED * warpgroups / 2, "{tile:?}");
                assert!(tile.stages >= if n > 128 { 3 } else { 4 }, "{tile:?}");
                assert!(tile.stages >= 2 * tile.blocks, "{tile:?}: the next are on their way");
            }
        }
    }
}
