//! Which kernels a product gets, by the number of rows: the tile that takes the fewest cycles.
//!
//! Up to 64 rows memory is what takes time, and `mma.sync` from a ring of `cp.async` stages reads
//! it as fast as it comes: blocks enough for all multiprocessors, each with 40 KB and more in
//! flight. From 65 rows on it is `wgmma`, whose tiles differ in columns. A step over k takes a
//! multiprocessor the longer of two times: 64 by 64 products of 128 rows and so many columns, 2048
//! a cycle; or the copies of both operands at some 45 bytes a cycle, which is what a multiprocessor
//! has of the second-level cache when all read it. Tiles are shared out in waves, so with few rows
//! narrower tiles can keep more multiprocessors at work.

use super::{
    super::{Form, Gemm, sm80, tile::by_rows},
    Tile,
};

/// Shared memory of a block, at most, without what the barriers take.
const SHARED: i64 = 224 << 10;

/// Columns of tiles, and stages that fit.
const TILES: [Tile; 6] = [
    Tile { n: 256, stages: 4 },
    Tile { n: 224, stages: 5 },
    Tile { n: 192, stages: 5 },
    Tile { n: 128, stages: 6 },
    Tile { n: 64, stages: 8 },
    Tile { n: 32, stages: 10 },
];

/// Whether most multiprocessors have a block if each has so many columns.
fn enough(spec: &Gemm, n: i64, multiprocessors: i64) -> bool {
    5 * spec.columns() / n >= 4 * multiprocessors
}

/// Tiles for up to 16 and up to 64 rows.
pub(super) fn few(spec: &Gemm, multiprocessors: i64) -> [sm80::Tile; 2] {
    let tile = |m: i64, n: i64, k: i64, warps: [i64; 2], blocks: i64| {
        let stage = m * k * spec.a.elem.bytes().cast_signed() + n * k * 2;
        let stages = (SHARED / blocks / stage).min(10);
        let copiers = if m == 16 { 2 } else { 0 };
        sm80::Tile { m, n, k, warps, stages, copiers }
    };
    let small = if enough(spec, 64, multiprocessors) {
        tile(16, 64, 64, [1, 2], 2)
    } else {
        tile(16, 32, 128, [1, if spec.gated { 1 } else { 2 }], 2)
    };
    let medium = if enough(spec, 128, multiprocessors) {
        tile(64, 128, 64, [2, 4], 1)
    } else if enough(spec, 64, multiprocessors) {
        tile(64, 64, 64, [2, 2], 2)
    } else {
        tile(64, 32, 64, [4, if spec.gated { 1 } else { 2 }], 2)
    };
    [small, medium]
}

/// Tiles for more rows, each with the number of rows that it is for at most.
pub(super) fn many(spec: &Gemm, multiprocessors: i64) -> Vec<(Tile, Option<i64>)> {
    let across = |n: i64| (spec.columns() + n - 1) / n;
    let best = |rows: i64| {
        let cost = |tile: &Tile| {
            let tiles = (rows + tile.m() - 1) / tile.m() * across(tile.n);
            let waves = (tiles + multiprocessors - 1) / multiprocessors;
            waves * (4 * tile.n).max(360 + 3 * tile.n)
        };
        // The copy engine's rows of dense columns are 64 wide.
        let fits = |tile: &&Tile| !matches!(spec.form, Form::Rows(_)) || tile.n % 64 == 0;
        *TILES.iter().filter(fits).min_by_key(|tile| cost(tile)).expect("a tile")
    };
    by_rows(best)
}

#[cfg(test)]
mod tests {
    use ir::Dim;

    use super::*;
    use crate::{
        emit::Elem,
        kernels::{gemm::Matrix, matmul::Activation},
    };

    fn spec(n: i64) -> Gemm {
        let matrix = |arg, stride| Matrix { arg, elem: Elem::Bf16, stride };
        Gemm {
            rows: Dim::symbol("T"),
            n,
            k: 4096,
            a: matrix(0, 4096),
            w: 1,
            w_elem: Elem::Bf16,
            bits: None,
            form: Form::Panels,
            gated: false,
            activation: Activation::None,
            bias: None,
            residual: None,
            y: matrix(2, n),
            map: None,
        }
    }

    #[test]
    fn all_multiprocessors_have_work() {
        let columns = |n| {
            let tiles = many(&spec(n), 132).into_iter();
            tiles.map(|(tile, most)| (tile.n, most)).collect::<Vec<_>>()
        };
        // 128 tiles of 132 multiprocessors each.
        let narrow = [(32, Some(128)), (64, Some(256)), (128, Some(512)), (256, None)];
        assert_eq!(columns(4096), narrow);
        // Two waves of 256 tiles instead of two of 224 that are wider.
        assert!(columns(14336).contains(&(224, Some(512))), "{:?}", columns(14336));
        for n in [16, 4096, 14336, 128_256] {
            for tile in few(&spec(n), 132) {
                assert!(tile.stages >= 4, "{tile:?}");
            }
            for (tile, _) in many(&spec(n), 132) {
                assert!((tile.m() + tile.n) * 128 * tile.stages <= SHARED, "{tile:?}");
            }
        }
    }
}
