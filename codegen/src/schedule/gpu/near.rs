//! Tiles that a search tries beside one.

use super::{Fma, Place, Rows, Tile, fp8, fp8_stage, quantized, sm80, sm90a, wgmma_stage};

/// Most stages of a ring that are tried.
const MOST_STAGES: i64 = 10;

impl Place {
    /// Legal tiles that differ from one in a size or two, or are of another kind, for so many rows
    /// at most.
    #[must_use]
    pub fn around(&self, tile: Tile, rows: i64) -> Vec<Tile> {
        let mut all = match tile {
            Tile::Mma(tile) => self.around_mma(tile, rows),
            Tile::Wgmma(tile) => self.around_wgmma(tile, rows),
            Tile::Stream(stream) => {
                let ahead = [64, 128, 192, 256, 384, 512].into_iter();
                let ahead = ahead.map(|ahead_bytes| quantized::Stream { ahead_bytes, ..stream });
                let mut all: Vec<Tile> = ahead.map(Tile::Stream).collect();
                all.push(Tile::Stream(quantized::Stream { m: 16, ..stream }));
                all
            }
            Tile::Lanes(tile) => self.around_lanes(tile),
            Tile::Fp8(tile) => self.around_fp8(tile),
            Tile::Rows(_) | Tile::Fma(_) => {
                let rows = [1, 4, 16].into_iter().map(|m| Tile::Rows(Rows { m }));
                let warps = [1, 2].into_iter().flat_map(|a| [1, 2, 4].map(|b| [a, b]));
                let tiles = warps.flat_map(|warps| [4, 8].map(|rows| Fma { warps, rows }));
                rows.chain(tiles.map(Tile::Fma)).collect()
            }
        };
        let enough = |other: &Tile| other.most_rows().is_none_or(|most| most >= rows);
        all.retain(|other| *other != tile && enough(other) && self.check_tile(*other).is_ok());
        let mut distinct: Vec<Tile> = Vec::new();
        for tile in all {
            if !distinct.contains(&tile) {
                distinct.push(tile);
            }
        }
        distinct
    }

    fn around_mma(&self, tile: sm80::Tile, rows: i64) -> Vec<Tile> {
        let sm80::Tile { m, n, k, warps: [along, across], stages, copiers } = tile;
        let of = |change: sm80::Tile| {
            let stage = 2 * change.k * (change.m + change.n);
            let stages = change.stages.min(self.shared() / stage.max(1));
            Tile::Mma(sm80::Tile { stages, ..change })
        };
        let mut all = Vec::new();
        for (m, n, k) in [(2 * m, n, k), (m / 2, n, k), (m, 2 * n, k), (m, n / 2, k)] {
            all.push(of(sm80::Tile { m, n, k, ..tile }));
        }
        for k in [32, 64, 128] {
            // As many bytes in flight.
            let stages = (stages * tile.k / k).clamp(2, MOST_STAGES);
            all.push(of(sm80::Tile { k, stages, ..tile }));
        }
        for (a, b) in [(2, 1), (1, 2), (4, 2), (2, 4)] {
            let [more, less] = [[along * a / 2, across * b / 2], [along * 2 / a, across * 2 / b]];
            all.extend([more, less].map(|warps| of(sm80::Tile { warps, ..tile })));
        }
        // Wider or taller tiles with as much for each warp.
        all.push(of(sm80::Tile { n: 2 * n, warps: [along, 2 * across], ..tile }));
        all.push(of(sm80::Tile { n: n / 2, warps: [along, across / 2], ..tile }));
        all.push(of(sm80::Tile { m: 2 * m, warps: [2 * along, across], ..tile }));
        all.push(of(sm80::Tile { m: m / 2, warps: [along / 2, across], ..tile }));
        for stages in [stages - 1, stages + 1, stages + 2, 2 * stages, stages / 2] {
            all.push(of(sm80::Tile { stages, ..tile }));
        }
        for other in [0, 1, 2, 4] {
            all.push(of(sm80::Tile { copiers: other, ..tile }));
        }
        if rows > 16 && copiers == 0 {
            all.extend([32, 64, 128].map(|n| self.wgmma(n, MOST_STAGES)));
        }
        all
    }

    fn wgmma(&self, n: i64, stages: i64) -> Tile {
        let stages = (self.shared() / wgmma_stage(n).max(1)).min(stages);
        Tile::Wgmma(sm90a::Tile { n, stages })
    }

    fn around_wgmma(&self, tile: sm90a::Tile, rows: i64) -> Vec<Tile> {
        let sm90a::Tile { n, stages } = tile;
        let sizes = [n - 64, n - 32, n + 32, n + 64, n / 2, 2 * n, n];
        let mut all: Vec<Tile> = sizes.map(|n| self.wgmma(n, MOST_STAGES)).into();
        all.extend([stages - 2, stages - 1, stages + 1].map(|stages| self.wgmma(n, stages)));
        if rows <= 256 {
            let tile = |m: i64, n: i64, warps: [i64; 2]| sm80::Tile {
                m,
                n,
                k: 64,
                warps,
                stages: 4,
                copiers: 0,
            };
            let tiles = [
                tile(64, 64, [2, 2]),
                tile(64, 128, [2, 4]),
                tile(128, 64, [4, 2]),
                tile(128, 128, [2, 4]),
            ];
            all.extend(tiles.map(Tile::Mma));
        }
        all
    }

    fn around_lanes(&self, tile: quantized::Tile) -> Vec<Tile> {
        let quantized::Tile { m, n, warps: [along, across], stages } = tile;
        let size = |m: i64, n: i64, warps: [i64; 2]| quantized::Tile { m, n, warps, stages };
        let mut all = vec![
            size(2 * m, n, [along, across]),
            size(m / 2, n, [along, across]),
            size(m, 2 * n, [along, across]),
            size(m, n / 2, [along, across]),
            size(2 * m, n, [2 * along, across]),
            size(m / 2, n, [along / 2, across]),
            size(m, 2 * n, [along, 2 * across]),
            size(m, n / 2, [along, across / 2]),
            size(m, n, [2 * along, across]),
            size(m, n, [along, 2 * across]),
            size(m, n, [along / 2, across]),
            size(m, n, [along, across / 2]),
            size(m, n, [2 * along, across / 2]),
            size(m, n, [along / 2, 2 * across]),
        ];
        let rings = [stages - 1, stages + 1, stages + 2];
        all.extend(rings.map(|stages| quantized::Tile { stages, ..tile }));
        all.into_iter().map(Tile::Lanes).collect()
    }

    fn around_fp8(&self, tile: fp8::Tile) -> Vec<Tile> {
        let fp8::Tile { warpgroups, n, blocks, stages } = tile;
        let of = |warpgroups: i64, n: i64, blocks: i64, stages: i64| {
            let room = self.fp8_shared(warpgroups) / fp8_stage(warpgroups, n).max(1);
            let stages = stages.min(room);
            Tile::Fp8(fp8::Tile { warpgroups, n, blocks, stages })
        };
        let mut all = vec![of(3 - warpgroups, n, 1, MOST_STAGES)];
        all.extend([n - 32, n + 32, n / 2, 2 * n].map(|n| of(warpgroups, n, blocks, MOST_STAGES)));
        // One block at once needs the fewest registers, so that tiles can be wider.
        all.extend([n + 32, 2 * n].map(|n| of(warpgroups, n, 1, MOST_STAGES)));
        all.extend([1, 2, 4].map(|blocks| of(warpgroups, n, blocks, stages)));
        let rings = [stages - 2, stages - 1, stages + 1];
        all.extend(rings.map(|stages| of(warpgroups, n, blocks, stages)));
        all
    }
}
