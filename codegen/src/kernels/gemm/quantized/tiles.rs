//! Any number of rows: a block computes a tile, from a ring of stages of one group each.
//!
//! A stage is rows of x and, as they lie in memory, the groups of the tile's panels. A warp
//! dequantises the integers of its own panels and meets all its rows with them. Registers hold the
//! sums of one part of k; the total of those before it waits in shared memory.

use serde::{Deserialize, Serialize};

use super::{
    super::{
        Draft, Gemm, PANEL,
        epilogue::Epilogue,
        sm80::{Copier, Dense},
    },
    GROUP, groups,
    lanes::{Lane, Lanes, SCALES, WORD},
    part_groups,
};
use crate::emit::{Barrier, Cmp, Elem, Emitter, Val};

/// A block's share of the product, and how its warps divide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tile {
    /// Rows of y; a multiple of `8 · warps[0]`.
    pub m: i64,
    /// Columns of the stored weight; a multiple of `16 · warps[1]`, of a gated one `32 · warps[1]`.
    pub n: i64,
    /// Warps along rows and columns.
    pub warps: [i64; 2],
    /// Stages of the ring, at most.
    pub stages: i64,
}

impl Tile {
    /// For more than 64 rows.
    pub const LARGE: Tile = Tile { m: 128, n: 128, warps: [2, 4], stages: 4 };
    /// For at most 64 rows.
    pub const MEDIUM: Tile = Tile { m: 64, n: 64, warps: [2, 2], stages: 5 };
    /// As [`Tile::MEDIUM`], where there are too few columns for all multiprocessors.
    pub const NARROW: Tile = Tile { m: 64, n: 32, warps: [2, 2], stages: 5 };

    const fn threads(self) -> i64 {
        32 * self.warps[0] * self.warps[1]
    }

    const fn panels(self) -> i64 {
        self.n / PANEL
    }
}

/// Emits the kernel `symbol`.
pub(super) fn emit(symbol: &str, spec: &Gemm, tile: Tile) -> Draft {
    let e = Emitter::cuda(symbol, u32::try_from(tile.threads()).expect("few warps"));
    let generator = Gen::new(&e, spec, tile);
    generator.emit();
    let shared = generator.ring_bytes() + 4 * tile.m * tile.n;
    let shared_bytes = u32::try_from(shared).expect("stages fit in shared memory");
    let (tile, maps, early) = ([tile.m, tile.n], Vec::new(), Vec::new());
    Draft { e, tile, blocks: None, shared_bytes, maps, max_rows: None, early }
}

/// Bytes of a row of a stage.
fn pitch(spec: &Gemm) -> i64 {
    GROUP * spec.a.elem.bytes().cast_signed()
}

fn stage_bytes(spec: &Gemm, tile: Tile) -> i64 {
    let panel = SCALES + 128 * i64::from(spec.bits.expect("a quantised weight"));
    tile.m * pitch(spec) + tile.panels() * panel
}

/// The tile with as many of its stages as `shared` bytes have room for beside the totals; `None` if
/// that is not two.
pub(super) fn fitted(spec: &Gemm, tile: Tile, shared: u32) -> Option<Tile> {
    let room = i64::from(shared) - 4 * tile.m * tile.n;
    let stages = tile.stages.min(room / stage_bytes(spec, tile));
    (stages >= 2).then_some(Tile { stages, ..tile })
}

/// Emission state.
struct Gen<'a> {
    lanes: Lanes<'a>,
    e: &'a Emitter,
    spec: &'a Gemm,
    tile: Tile,
    rows: Val,
    /// First row and first panel of the block's tile.
    origin: [Val; 2],
    thread: Val,
    /// Quotient and remainder of the lane by four.
    place: [Val; 2],
    /// First row and panel of the warp within the tile.
    warp: [Val; 2],
    shared: Val,
}

impl<'a> Gen<'a> {
    fn new(e: &'a Emitter, spec: &'a Gemm, tile: Tile) -> Self {
        let thread = e.thread();
        let lane = e.and(thread, e.i32(31));
        let warp = e.shr(thread, 5);
        let along_m = e.rem_unsigned(warp, e.i32(tile.warps[0]));
        let along_n = e.div_unsigned(warp, e.i32(tile.warps[0]));
        Gen {
            lanes: Lanes::new(e, spec),
            e,
            spec,
            tile,
            rows: e.cast(e.dim(0), Elem::I32),
            origin: [e.mul_const(e.block('x'), tile.m), e.mul_const(e.block('y'), tile.panels())],
            thread,
            place: [e.shr(lane, 2), e.and(lane, e.i32(3))],
            warp: [
                e.mul_const(along_m, tile.m / tile.warps[0]),
                e.mul_const(along_n, tile.panels() / tile.warps[1]),
            ],
            shared: e.shared(),
        }
    }

    /// Bytes of a row of a stage.
    fn pitch(&self) -> i64 {
        pitch(self.spec)
    }

    fn x_bytes(&self) -> i64 {
        self.tile.m * self.pitch()
    }

    fn stage_bytes(&self) -> i64 {
        stage_bytes(self.spec, self.tile)
    }

    fn stages(&self) -> i64 {
        self.tile.stages
    }

    fn ring_bytes(&self) -> i64 {
        self.stages() * self.stage_bytes()
    }

    /// Blocks of eight rows and panels of a warp.
    fn blocks(&self) -> (i64, i64) {
        (self.tile.m / self.tile.warps[0] / 8, self.tile.panels() / self.tile.warps[1])
    }

    fn emit(&self) {
        let e = self.e;
        let (all, part, stages) = (groups(self.spec), part_groups(self.spec), self.stages());
        let stage = self.stage_bytes();
        for s in 0..stages - 1 {
            if s < all {
                self.fetch(e.i32(s), e.add_const(self.shared, s * stage));
            }
            e.ptx("cp.async.commit_group;", &[]);
        }
        let (rows, panels) = self.blocks();
        let zeros = vec![e.f32(0.0); usize::try_from(4 * rows * panels).expect("few sums")];
        self.keep(&zeros);
        let turn = |at: Val| {
            let next = e.add_const(at, stage);
            e.select(e.cmp(Cmp::Eq, next, e.i32(self.ring_bytes())), e.i32(0), next)
        };
        let places = [e.i32(0), e.i32((stages - 1) * stage)];
        let _ = e.for_loop(e.i32(0), e.i32(all), part, &places, |first, places| {
            let end = e.min(e.add_const(first, part), e.i32(all));
            let init = [places, &zeros].concat();
            let done = e.for_loop(first, end, 1, &init, |group, carried| {
                let [reads, writes, ref sums @ ..] = *carried else {
                    unreachable!("a ring and sums")
                };
                e.ptx(&format!("cp.async.wait_group {};", stages - 2), &[]);
                e.barrier(Barrier::Block);
                let next = e.add_const(group, stages - 1);
                e.if_then(e.cmp(Cmp::Lt, next, e.i32(all)), || {
                    self.fetch(next, e.add(self.shared, writes));
                });
                e.ptx("cp.async.commit_group;", &[]);
                let sums = self.multiply(e.add(self.shared, reads), sums);
                [turn(reads), turn(writes)].into_iter().chain(sums).collect()
            });
            let totals = self.kept(zeros.len());
            let totals = totals.iter().zip(&done[2..]).map(|(total, sum)| e.add(*total, *sum));
            self.keep(&totals.collect::<Vec<_>>());
            done[..2].to_vec()
        });
        self.store(&self.kept(zeros.len()));
    }

    /// The thread's own place among the totals.
    fn own(&self) -> Val {
        let e = self.e;
        e.add(e.add_const(self.shared, self.ring_bytes()), e.shl(self.thread, 2))
    }

    /// Puts the thread's totals into shared memory.
    fn keep(&self, totals: &[Val]) {
        for (i, total) in (0..).zip(totals) {
            let text = format!("st.shared.f32 [$0+{}], $1;", i * 4 * self.tile.threads());
            self.e.ptx(&text, &[self.own(), *total]);
        }
    }

    /// Reads them.
    fn kept(&self, count: usize) -> Vec<Val> {
        let load = |i: i64| {
            let text = format!("ld.shared.f32 $0, [$1+{}];", i * 4 * self.tile.threads());
            self.e.ptx_values(&text, &[Emitter::f32s(1)], &[self.own()])[0]
        };
        (0..).map(load).take(count).collect()
    }

    /// Begins the copies of a group to the stage at `to`.
    fn fetch(&self, group: Val, to: Val) {
        let (e, spec, tile) = (self.e, self.spec, self.tile);
        let copier = Copier { e, thread: self.thread, threads: tile.threads() };
        let x = Dense {
            matrix: spec.a,
            first: [self.origin[0], e.mul_const(group, GROUP)],
            limits: [self.rows, e.i32(spec.k)],
            columns_whole: spec.k % GROUP == 0,
            extent: [tile.m, GROUP],
        };
        copier.dense(&x, to, |row, unit| {
            e.add(e.mul_const(row, self.pitch()), e.shl(e.xor(unit, self.turn(row)), 4))
        });
        let to = e.add_const(to, self.x_bytes());
        let bytes = self.lanes.group_bytes();
        let base = e.arg(spec.w);
        copier.share(tile.panels() * bytes / 16, |_, unit| {
            let (panel, within) =
                (e.div_unsigned(unit, e.i32(bytes / 16)), e.rem_unsigned(unit, e.i32(bytes / 16)));
            let panel = e.add(self.origin[1], panel);
            let start = e.mul_const(e.cast(panel, Elem::I64), groups(spec) * bytes);
            let within = e.add(e.mul_const(group, bytes), e.shl(within, 4));
            let from = e.at(base, Elem::I8, e.add(start, e.cast(within, Elem::I64)));
            let mut count = e.i32(16);
            if spec.columns() % tile.n != 0 {
                let inside = e.cmp(Cmp::Lt, panel, e.i32(spec.panels()));
                count = e.select(inside, count, e.i32(0));
            }
            let to = e.add(to, e.shl(unit, 4));
            e.ptx("cp.async.cg.shared.global [$0], [$1], 16, $2;", &[to, from, count]);
        });
    }

    /// What the units of a row are exclusive-ored with, so that those that two rows' lanes read at
    /// once are in different banks.
    fn turn(&self, row: Val) -> Val {
        let e = self.e;
        let odd = e.and(row, e.i32(1));
        if self.spec.a.elem == Elem::F32 { odd } else { e.shl(odd, 2) }
    }

    /// Adds the products of the stage at `from`.
    fn multiply(&self, from: Val, sums: &[Val]) -> Vec<Val> {
        let (e, (_, panels)) = (self.e, self.blocks());
        let bytes = self.lanes.group_bytes();
        let first = e.add(e.mul_const(self.warp[1], bytes), e.i32(self.x_bytes()));
        let first = e.add(from, first);
        let lane = e.add(e.shl(self.place[0], 2), self.place[1]);
        let integers = e.add(first, e.shl(lane, 4));
        let scales = e.add(first, e.shl(self.place[0], 3));
        let scales: Vec<[Val; 2]> = (0..panels)
            .map(|panel| {
                let text = format!("ld.shared.v2.b32 {{$0, $1}}, [$2+{}];", panel * bytes);
                let words = e.ptx_values(&text, &[WORD; 2], &[scales]);
                [words[0], words[1]]
            })
            .collect();
        let load = |panel: i64, i: i64| {
            let at = panel * bytes + SCALES + 512 * i;
            let text = format!("ld.shared.v4.b32 {{$0, $1, $2, $3}}, [$4+{at}];");
            e.ptx_values(&text, &[WORD; 4], &[integers])
        };
        let words: Vec<Vec<Val>> = (0..panels)
            .map(|panel| (0..self.lanes.loads()).flat_map(|i| load(panel, i)).collect())
            .collect();
        let mut sums = sums.to_vec();
        for block in 0..2 {
            let lanes = words.iter().zip(&scales);
            let panels: Vec<_> = lanes
                .map(|(words, scales)| {
                    let lane = Lane { words, scales: *scales };
                    (self.lanes.left(lane, block), self.lanes.scales(lane, block))
                })
                .collect();
            for (row, sums) in (0..).zip(sums.chunks_exact_mut(4 * panels.len())) {
                let x = self.right(from, row, block);
                for ((left, scales), sums) in panels.iter().zip(sums.chunks_exact_mut(4)) {
                    self.lanes.block(left, &x, *scales, sums);
                }
            }
        }
        sums
    }

    /// The right operands of a block's two products for a block of eight rows.
    fn right(&self, from: Val, row: i64, block: usize) -> Vec<Val> {
        let e = self.e;
        let own = e.add(self.warp[0], self.place[0]);
        let start = e.add(from, e.mul_const(own, self.pitch()));
        let turn = self.turn(self.place[0]);
        let below = row * 8 * self.pitch();
        let block = i64::try_from(block).expect("0 or 1");
        let unit = |unit: Val| e.add(start, e.shl(e.xor(unit, turn), 4));
        if self.spec.a.elem != Elem::F32 {
            let at = unit(e.add_const(self.place[1], 4 * block));
            let text = format!("ld.shared.v4.b32 {{$0, $1, $2, $3}}, [$4+{below}];");
            return e.ptx_values(&text, &[WORD; 4], &[at]);
        }
        let mut words = Vec::new();
        for half in 0..2 {
            let at = unit(e.add_const(e.shl(self.place[1], 1), 8 * block + half));
            let text = format!("ld.shared.v4.f32 {{$0, $1, $2, $3}}, [$4+{below}];");
            let floats = e.ptx_values(&text, &[Emitter::f32s(1); 4], &[at]);
            words.extend(floats.chunks_exact(2).map(|pair| self.lanes.round(pair)));
        }
        words
    }

    fn store(&self, totals: &[Val]) {
        let (e, spec, (_, panels)) = (self.e, self.spec, self.blocks());
        let outputs = spec.outputs(self.tile.n);
        let epilogue = Epilogue { e, spec, rows: self.rows, whole: spec.n % outputs == 0 };
        let first = e.add(self.origin[0], self.warp[0]);
        let first = e.add(first, e.shl(self.place[1], 1));
        let panel = e.add(self.origin[1], self.warp[1]);
        let panel = if spec.gated { e.shr(panel, 1) } else { panel };
        let column = e.shl(e.add(e.shl(panel, 3), self.place[0]), 1);
        let each = usize::try_from(4 * panels).expect("few sums");
        for (block, sums) in (0..).zip(totals.chunks_exact(each)) {
            let sums: Vec<&[Val]> = sums.chunks_exact(4).collect();
            for i in 0..2 {
                let row = e.add_const(first, 8 * block + i as i64);
                epilogue.store_panels(row, column, &self.lanes.pairs(&sums, i));
            }
        }
    }
}
