//! Products of e4m3 with e4m3, in blocks of 128 k that have a scale on either side, for `sm_90a`.
//!
//! A row of 128 bytes in shared memory is a block, so that a stage of the ring is a step of four
//! `wgmma.m64nNk32`, the first from zero. Tensor cores keep fewer bits of a sum of e4m3 than f32
//! has (DeepSeek-AI 2024, arXiv:2412.19437, section 3.3.2); here they add up 128 products and no
//! more, and what a block gives is scaled and added in registers:
//! `sum = fma(block, x_scale · w_scale, sum)`, in the order of k. The instruction, its operands and
//! this order are the same for every number of rows and every tile.
//!
//! The roles are those of [`super::sm90a`]: a producer starts copies, each other warpgroup holds 64
//! rows of a tile, blocks are persistent. While one warpgroup scales, the tensor cores have the
//! other's products. Few rows are one warpgroup's: its 64 rows take tensor cores a quarter of the
//! time in which the weight arrives, and the copy engine fills rows that are not there with zeros
//! without reading any. Several blocks of k are multiplied before they are scaled where sums are
//! few, and two blocks share a multiprocessor.

mod operands;
mod tiles;

use serde::{Deserialize, Serialize};

use super::{
    Draft, Gemm, Variant,
    epilogue::{Epilogue, Strip},
    ring::{Ring, Turn},
    tile::Tile as Kind,
    walk::each_tile,
};
use crate::emit::{Barrier, Cmp, Elem, Emitter, Ty, Val};
use operands::Operands;

/// k of a block, and bytes of it.
const BLOCK: i64 = ir::E4M3_BLOCK as i64;
/// Threads of a warpgroup.
const WARPGROUP: i64 = 128;
/// Registers of a thread of the producer, and of a consumer, where there are two warpgroups of
/// these: three warpgroups start with 168 each.
const REGISTERS: [i64; 2] = [40, 232];

/// A block's share of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tile {
    /// Warpgroups that multiply, 64 rows each: one or two.
    pub warpgroups: i64,
    /// Columns of the stored weight: a multiple of 32.
    pub n: i64,
    /// Blocks of k that are multiplied before they are scaled, at most: one, two or four.
    pub blocks: i64,
    /// Stages of the ring.
    pub stages: i64,
}

impl Tile {
    const fn m(self) -> i64 {
        64 * self.warpgroups
    }
}

/// The tiles of a product for a GPU with so many multiprocessors, those for fewer rows first.
pub(super) fn defaults(spec: &Gemm, multiprocessors: i64) -> Vec<Variant> {
    let few = (tiles::few(spec, multiprocessors), Some(64));
    let all = std::iter::once(few).chain(tiles::many(spec, multiprocessors));
    all.map(|(tile, rows)| Variant { rows, tile: Kind::Fp8(tile) }).collect()
}

/// Emits the kernel `symbol` for a GPU with so many multiprocessors.
#[must_use]
pub fn emit(symbol: &str, spec: &Gemm, tile: Tile, multiprocessors: u32) -> Draft {
    let resident = if tile.warpgroups == 1 { 2 } else { 1 };
    let producer = if tile.warpgroups == 1 { 32 } else { WARPGROUP };
    let threads = u32::try_from(WARPGROUP * tile.warpgroups + producer).expect("few threads");
    let e = Emitter::cuda(symbol, threads).with_blocks(resident);
    let operands = Operands { spec, tile };
    let maps = operands.maps();
    Gen::new(&e, spec, tile, &operands).emit();
    let shared = operands.bytes() + Ring::bytes(tile.stages);
    Draft {
        e,
        tile: [tile.m(), tile.n],
        blocks: Some(i64::from(multiprocessors * resident)),
        shared_bytes: u32::try_from(shared).expect("it fits"),
        maps,
        max_rows: None,
        early: Vec::new(),
    }
}

/// Emission state.
struct Gen<'a> {
    e: &'a Emitter,
    spec: &'a Gemm,
    tile: Tile,
    operands: &'a Operands<'a>,
    rows: Val,
    thread: Val,
    shared: Val,
    ring: Ring,
}

/// What a thread has of the scales of its two rows.
struct Rows {
    /// Addresses of the first.
    scales: [Val; 2],
}

impl<'a> Gen<'a> {
    fn new(e: &'a Emitter, spec: &'a Gemm, tile: Tile, operands: &'a Operands<'a>) -> Self {
        let shared = e.shared();
        let ring = Ring { barriers: e.add_const(shared, operands.bytes()), stages: tile.stages };
        let rows = e.cast(e.dim(0), Elem::I32);
        Gen { e, spec, tile, operands, rows, thread: e.thread(), shared, ring }
    }

    /// Blocks of k.
    fn steps(&self) -> i64 {
        self.spec.k / BLOCK
    }

    /// Of them as many as are multiplied before they are scaled.
    fn at_once(&self) -> i64 {
        let fits = |count: &i64| *count <= self.tile.blocks && self.steps() % count == 0;
        [4, 2].into_iter().find(fits).unwrap_or(1)
    }

    fn emit(&self) {
        let e = self.e;
        e.if_then(e.cmp(Cmp::Eq, self.thread, e.i32(0)), || {
            self.ring.init(e, 1, e.i32(4 * self.tile.warpgroups));
        });
        e.barrier(Barrier::Block);
        // Warpgroups begin at multiples of four warps, so those that multiply come first.
        let first = e.i32(WARPGROUP * self.tile.warpgroups);
        let limit = |how: &str, count: i64| {
            if self.tile.warpgroups > 1 {
                e.ptx(&format!("setmaxnreg.{how}.sync.aligned.u32 {count};"), &[]);
            }
        };
        let [few, many] = REGISTERS;
        e.either(
            e.cmp(Cmp::Ge, self.thread, first),
            || {
                limit("dec", few);
                e.if_then(e.cmp(Cmp::Eq, self.thread, first), || self.produce());
            },
            || {
                limit("inc", many);
                self.consume();
            },
        );
    }

    fn tiles(&self, body: impl FnOnce(Val, Val, Turn) -> Turn) {
        let tile = [self.tile.m(), self.tile.n];
        each_tile(self.e, self.rows, self.spec.columns(), tile, body);
    }

    fn produce(&self) {
        let e = self.e;
        self.tiles(|row, column, turn| {
            let (first, last) = (e.i32(0), e.i32(self.steps()));
            let turn = e.for_loop(first, last, 1, &turn.values(), |step, turn| {
                let turn = Turn::of(turn);
                self.ring.wait_empty(e, turn);
                let full = self.ring.full(e, turn);
                let text = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;";
                e.ptx(text, &[full, e.i32(self.operands.stage_bytes())]);
                self.operands.copy(e, [row, column, step], self.shared, turn, full);
                self.ring.next(e, turn).values().to_vec()
            });
            Turn::of(&turn)
        });
    }

    fn consume(&self) {
        let (e, tile) = (self.e, self.tile);
        let lane = e.and(self.thread, e.i32(31));
        let leads = e.cmp(Cmp::Eq, lane, e.i32(0));
        let group = e.shr(self.thread, WARPGROUP.ilog2());
        let (at_once, count) = (self.at_once(), at(tile.n / 2));
        self.tiles(|row, column, turn| {
            // A warp has sixteen rows.
            let row = e.add(row, e.shl(e.shr(self.thread, 5), 4));
            let row = e.add(row, e.shr(lane, 2));
            let rows = self.rows(row);
            let mut init = turn.values().to_vec();
            init.extend(self.row_scales(&rows, e.i32(0)));
            init.extend(vec![e.f32(0.0); count]);
            let last = e.i32(self.steps() - at_once);
            let end = e.i32(self.steps());
            let done = e.for_loop(e.i32(0), end, at_once, &init, |step, carried| {
                let (turn, rest) = carried.split_at(2);
                let (scales, sums) = rest.split_at(at(2 * at_once));
                let next = self.row_scales(&rows, e.min(e.add_const(step, at_once), last));
                let mut turns = vec![Turn::of(turn)];
                for _ in 0..at_once {
                    let turn = *turns.last().expect("the first");
                    turns.push(self.ring.next(e, turn));
                }
                let stages = &turns[..at(at_once)];
                stages.iter().for_each(|turn| self.ring.wait_full(e, *turn));
                let products = self.multiply(stages, group);
                let mut sums = sums.to_vec();
                for (i, block) in products.chunks_exact(count).enumerate() {
                    let weights = self.operands.scales(e, self.shared, turns[i], lane);
                    let own = [scales[i], scales[i + at(at_once)]];
                    self.add(&mut sums, block, own, &weights);
                    // All lanes have read the stage before one says so.
                    e.barrier(Barrier::Warp);
                    e.if_then(leads, || self.ring.release_before(e, turns[i + 1]));
                }
                let turn = turns[at(at_once)].values();
                turn.into_iter().chain(next).chain(sums).collect()
            });
            let sums = &done[done.len() - count..];
            self.store(row, e.add(column, e.shl(e.and(lane, e.i32(3)), 1)), sums);
            Turn::of(&done[..2])
        });
    }

    /// The rows of a thread, which are that and the eighth behind it; those beyond the last are the
    /// last.
    fn rows(&self, row: Val) -> Rows {
        let (e, a) = (self.e, self.spec.a);
        let last = e.add_const(self.rows, -1);
        let scales = [0, 8].map(|behind| {
            let row = e.min(e.add_const(row, behind), last);
            let start = e.mul_const(e.cast(row, Elem::I64), a.stride);
            let start = e.add_const(start, self.steps() * BLOCK);
            e.at(e.arg(a.arg), a.elem, start)
        });
        Rows { scales }
    }

    /// The scales of both rows for the blocks of k from `step` on that are multiplied at once.
    fn row_scales(&self, rows: &Rows, step: Val) -> Vec<Val> {
        let e = self.e;
        let offset = e.cast(e.shl(step, 2), Elem::I64);
        let load = |from: &Val| {
            let from = e.at(*from, Elem::I8, offset);
            let (text, count) = match self.at_once() {
                1 => ("ld.global.nc.f32 $0, [$1];", 1),
                2 => ("ld.global.nc.v2.f32 {$0, $1}, [$2];", 2),
                _ => ("ld.global.nc.v4.f32 {$0, $1, $2, $3}, [$4];", 4),
            };
            e.ptx_values(text, &[Ty::Scalar(Elem::F32); 4][..count], &[from])
        };
        rows.scales.iter().flat_map(load).collect()
    }

    /// The products of these stages for the rows of a warpgroup, one after the other.
    fn multiply(&self, stages: &[Turn], group: Val) -> Vec<Val> {
        let (e, n) = (self.e, self.tile.n);
        let count = at(n / 2);
        let mut text = "wgmma.fence.sync.aligned;\n".to_owned();
        let mut descriptors = Vec::new();
        for (i, turn) in stages.iter().enumerate() {
            let sums = (0..count).map(|j| format!("${}", i * count + j)).collect::<Vec<_>>();
            let sums = sums.join(", ");
            let both = self.operands.descriptors(e, self.shared, *turn, group);
            for step in 0..4 {
                let [a, b] = [0, 1].map(|side| stages.len() * count + descriptors.len() + side);
                // 32 bytes are two units of a descriptor's address.
                descriptors.extend(both.map(|from| e.add_const(from, 2 * step)));
                text += &format!(
                    "wgmma.mma_async.sync.aligned.m64n{n}k32.f32.e4m3.e4m3 {{{sums}}}, ${a}, ${b}, \
                     {}, 1, 1;\n",
                    i64::from(step > 0)
                );
            }
        }
        text += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;";
        let types = vec![Emitter::f32s(1); stages.len() * count];
        e.ptx_values(&text, &types, &descriptors)
    }

    /// Adds what a block of k gives, scaled by the rows' scales and those of the lane's columns.
    fn add(&self, sums: &mut [Val], block: &[Val], rows: [Val; 2], columns: &[[Val; 2]]) {
        let e = self.e;
        for (i, pair) in columns.iter().enumerate() {
            for (half, row) in rows.into_iter().enumerate() {
                for (j, column) in pair.iter().enumerate() {
                    let at = 4 * i + 2 * half + j;
                    sums[at] = e.fma(block[at], e.mul(row, *column), sums[at]);
                }
            }
        }
    }

    fn store(&self, row: Val, column: Val, sums: &[Val]) {
        let (e, spec) = (self.e, self.spec);
        let whole = spec.n % spec.outputs(self.tile.n) == 0;
        let epilogue = Epilogue { e, spec, rows: self.rows, whole };
        for half in 0..2 {
            let pick = |quad: &[Val]| [quad[2 * half], quad[2 * half + 1]];
            let sums: Vec<[Val; 2]> = sums.chunks_exact(4).map(pick).collect();
            let row = e.add_const(row, 8 * half as i64);
            epilogue.store(&Strip { row, column, sums: &sums });
        }
    }
}

fn at(i: i64) -> usize {
    usize::try_from(i).expect("small")
}
