//! Products for `sm_80`: a ring of `cp.async` stages, `ldmatrix`, `mma.sync.m16n8k16`.
//!
//! A block computes one tile. Sixteen-byte units of shared memory are permuted so that neither the
//! copies nor the eight rows of an `ldmatrix` meet in a bank: a row's units are exclusive-ored with
//! bits of the row's number. What lies outside of an operand is filled with zeros by the copies
//! themselves, so no operand is padded in memory.
//!
//! Where rows are few, warps of their own copy: with one block on a multiprocessor, the others have
//! little more time for a step over k than their chain of products takes. On `sm_90a` kernels for
//! few rows begin early: stages of the weight, and more of it to the second-level cache, are
//! fetched before the grid waits for those before it.

mod copy;
mod fragments;

use serde::{Deserialize, Serialize};

use super::{
    Draft, Form, Gemm, Order, PANEL, Variant,
    epilogue::{Epilogue, Strip},
    tile::Tile as Kind,
};
use crate::emit::{Barrier, Cmp, Elem, Emitter, Val};
pub(super) use copy::{Copier, Dense};

/// A block's share of the product, and how its warps divide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tile {
    /// Rows of y; a multiple of `16 · warps[0]`.
    pub m: i64,
    /// Columns of the stored weight; a multiple of `16 · warps[1]`, of a gated one `32 · warps[1]`.
    pub n: i64,
    /// Steps over k of a stage: 32, 64 or 128.
    pub k: i64,
    /// Warps along rows and columns.
    pub warps: [i64; 2],
    /// Stages of the ring.
    pub stages: i64,
    /// Warps that copy, besides those that multiply; where there are none, those do.
    #[serde(default)]
    pub copiers: i64,
}

/// Bytes of the weight that all blocks together ask to the second-level cache, behind the first
/// stages of their rings: what memory gives in some 4 us, and a part of the cache.
const AHEAD_BYTES: i64 = 16 << 20;
/// Blocks that are on the multiprocessors together, about.
const RESIDENT: i64 = 256;

impl Tile {
    /// For more than 64 rows.
    pub const LARGE: Tile = Tile { m: 128, n: 128, k: 32, warps: [2, 2], stages: 4, copiers: 0 };
    /// For at most 64 rows.
    pub const MEDIUM: Tile = Tile { m: 64, n: 64, k: 64, warps: [2, 2], stages: 4, copiers: 0 };
    /// For at most sixteen rows: little to compute, much to read.
    pub const SMALL: Tile = Tile { m: 16, n: 64, k: 64, warps: [1, 2], stages: 8, copiers: 0 };
    /// As [`Tile::SMALL`], where there are too few columns for all multiprocessors.
    pub const NARROW: Tile = Tile { m: 16, n: 32, k: 64, warps: [1, 1], stages: 8, copiers: 2 };

    /// Warps that multiply.
    pub(super) const fn multiply(self) -> i64 {
        self.warps[0] * self.warps[1]
    }

    /// Threads that multiply, the first of a block.
    const fn multipliers(self) -> i64 {
        32 * self.multiply()
    }

    fn threads(self) -> u32 {
        u32::try_from(self.multipliers() + 32 * self.copiers).expect("few warps")
    }
}

/// The tiles of a product for a GPU with so many multiprocessors, those for fewer rows first.
pub(super) fn defaults(spec: &Gemm, multiprocessors: i64) -> Vec<Variant> {
    let few = spec.columns() / Tile::SMALL.n < multiprocessors;
    let small = if few { Tile::NARROW } else { Tile::SMALL };
    let tiles = [(small, Some(16)), (Tile::MEDIUM, Some(64)), (Tile::LARGE, None)];
    tiles.map(|(tile, rows)| Variant { rows, tile: Kind::Mma(tile) }).into()
}

/// Emits the kernel `symbol`.
#[must_use]
pub fn emit(symbol: &str, spec: &Gemm, tile: Tile, order: Order) -> Draft {
    draft(symbol, spec, tile, order, false)
}

/// As [`emit`], of `sm_90a`: the kernel fetches its weight before it waits for the grids before it.
#[must_use]
pub fn emit_early(symbol: &str, spec: &Gemm, tile: Tile, order: Order) -> Draft {
    draft(symbol, spec, tile, order, true)
}

fn draft(symbol: &str, spec: &Gemm, tile: Tile, order: Order, begins_early: bool) -> Draft {
    let e = Emitter::cuda(symbol, tile.threads());
    let generator = Gen::new(&e, spec, tile, order, begins_early);
    generator.emit();
    let shared = generator.stage_bytes() * tile.stages;
    let shared_bytes = u32::try_from(shared).expect("stages fit in shared memory");
    let (tile, maps) = ([tile.m, tile.n], Vec::new());
    let early = if begins_early { vec![spec.w] } else { Vec::new() };
    Draft { e, tile, blocks: None, shared_bytes, maps, max_rows: None, early }
}

/// Emission state.
struct Gen<'a> {
    e: &'a Emitter,
    spec: &'a Gemm,
    tile: Tile,
    order: Order,
    begins_early: bool,
    rows: Val,
    /// First row and first column of the block's tile.
    origin: [Val; 2],
    thread: Val,
    lane: Val,
    /// First row and column of the warp within the tile.
    warp: [Val; 2],
    shared: Val,
}

impl<'a> Gen<'a> {
    fn new(e: &'a Emitter, spec: &'a Gemm, tile: Tile, order: Order, begins_early: bool) -> Self {
        let rows = e.cast(e.dim(0), Elem::I32);
        let thread = e.thread();
        let warp = e.shr(thread, 5);
        let along_m = e.rem_unsigned(warp, e.i32(tile.warps[0]));
        let along_n = e.div_unsigned(warp, e.i32(tile.warps[0]));
        Gen {
            e,
            spec,
            tile,
            order,
            begins_early,
            rows,
            origin: [e.mul_const(e.block('x'), tile.m), e.mul_const(e.block('y'), tile.n)],
            thread,
            lane: e.and(thread, e.i32(31)),
            warp: [
                e.mul_const(along_m, tile.m / tile.warps[0]),
                e.mul_const(along_n, tile.n / tile.warps[1]),
            ],
            shared: e.shared(),
        }
    }

    /// Bytes of a row of the stage's part of `a`.
    fn a_pitch(&self) -> i64 {
        self.tile.k * self.spec.a.elem.bytes().cast_signed()
    }

    fn a_bytes(&self) -> i64 {
        self.tile.m * self.a_pitch()
    }

    fn stage_bytes(&self) -> i64 {
        self.a_bytes() + self.tile.n * self.tile.k * 2
    }

    fn steps(&self) -> i64 {
        (self.spec.k + self.tile.k - 1) / self.tile.k
    }

    fn emit(&self) {
        let (e, tile) = (self.e, self.tile);
        let (m, n) = self.blocks();
        let zeros = vec![e.f32(0.0); usize::try_from(4 * m * n).expect("few sums")];
        if self.begins_early {
            e.launch_dependents();
        }
        if tile.copiers == 0 {
            self.fill();
            let sums = self.walk(&zeros, |step, [reads, writes], sums| {
                self.await_stage();
                e.barrier(Barrier::Block);
                self.refill(step, writes);
                self.multiply(e.add(self.shared, reads), sums)
            });
            self.store(&sums);
            return;
        }
        // What multiplied the step before has come to the barrier, so its stage may be filled.
        let copies = || {
            self.fill();
            let _ = self.walk(&[], |step, [_, writes], _| {
                self.await_stage();
                e.barrier(Barrier::Block);
                self.refill(step, writes);
                Vec::new()
            });
        };
        let multiplies = || {
            if self.begins_early {
                e.wait_for_grids();
            }
            let sums = self.walk(&zeros, |_, [reads, _], sums| {
                e.barrier(Barrier::Block);
                self.multiply(e.add(self.shared, reads), sums)
            });
            self.store(&sums);
        };
        let is_copier = e.cmp(Cmp::Ge, self.thread, e.i32(tile.multipliers()));
        e.either(is_copier, copies, multiplies);
    }

    /// Begins the copies of all stages but one, of the weight first where it may be read early.
    fn fill(&self) {
        let (e, tile) = (self.e, self.tile);
        let place = |s: i64| (e.i32(s), e.add_const(self.shared, s * self.stage_bytes()));
        let first = (tile.stages - 1).min(self.steps());
        if self.begins_early {
            (0..first).map(place).for_each(|(step, to)| self.fetch_weight(step, to));
            self.ask_ahead(first);
            e.wait_for_grids();
        }
        for s in 0..tile.stages - 1 {
            if s < first {
                let (step, to) = place(s);
                self.fetch_rows(step, to);
                if !self.begins_early {
                    self.fetch_weight(step, to);
                }
            }
            e.ptx("cp.async.commit_group;", &[]);
        }
    }

    /// Asks for what comes behind the first stages of each panel.
    fn ask_ahead(&self, stages: i64) {
        let (e, spec, tile) = (self.e, self.spec, self.tile);
        let row = PANEL * 2;
        let skipped = stages * tile.k;
        let blocks = ((spec.columns() + tile.n - 1) / tile.n).min(RESIDENT);
        let panels = blocks * tile.n / PANEL;
        let bytes = (AHEAD_BYTES / panels / row).min(spec.k - skipped) * row;
        if spec.form != Form::Panels || bytes <= 0 {
            return;
        }
        let number = self.copier().thread;
        e.if_then(e.cmp(Cmp::Lt, number, e.i32(tile.n / PANEL)), || {
            let panel = e.add(e.div_unsigned(self.origin[1], e.i32(PANEL)), number);
            e.if_then(e.cmp(Cmp::Lt, panel, e.i32(spec.panels())), || {
                let start = e.mul_const(e.cast(panel, Elem::I64), spec.k * PANEL);
                let start = e.add_const(start, skipped * PANEL);
                let from = e.at(e.arg(spec.w), spec.w_elem, start);
                let text = "cp.async.bulk.prefetch.L2.global [$0], $1;";
                e.ptx(text, &[from, e.i32(bytes)]);
            });
        });
    }

    /// Walks over k: `body(step, [where it lies, where the one before lay], sums)`.
    fn walk(&self, sums: &[Val], body: impl Fn(Val, [Val; 2], &[Val]) -> Vec<Val>) -> Vec<Val> {
        let (e, tile) = (self.e, self.tile);
        let (stage, ring) = (self.stage_bytes(), self.stage_bytes() * tile.stages);
        let ahead = e.i32((tile.stages - 1) * stage);
        let init = [&[e.i32(0), ahead], sums].concat();
        let done = e.for_loop(e.i32(0), e.i32(self.steps()), 1, &init, |step, carried| {
            let [reads, writes, ref sums @ ..] = *carried else { unreachable!("a ring and sums") };
            let sums = body(step, [reads, writes], sums);
            let turn = |at: Val| {
                let next = e.add_const(at, stage);
                e.select(e.cmp(Cmp::Eq, next, e.i32(ring)), e.i32(0), next)
            };
            [turn(reads), turn(writes)].into_iter().chain(sums).collect()
        });
        done[2..].to_vec()
    }

    /// Waits for the thread's copies of the oldest stage.
    fn await_stage(&self) {
        self.e.ptx(&format!("cp.async.wait_group {};", self.tile.stages - 2), &[]);
    }

    /// Begins the copies of the stage that is as far ahead of a step as the ring is long.
    fn refill(&self, step: Val, writes: Val) {
        let e = self.e;
        let next = e.add_const(step, self.tile.stages - 1);
        e.if_then(e.cmp(Cmp::Lt, next, e.i32(self.steps())), || {
            let to = e.add(self.shared, writes);
            self.fetch_rows(next, to);
            self.fetch_weight(next, to);
        });
        e.ptx("cp.async.commit_group;", &[]);
    }

    /// Blocks of 16 rows and of 8 columns of a warp.
    fn blocks(&self) -> (i64, i64) {
        (self.tile.m / self.tile.warps[0] / 16, self.tile.n / self.tile.warps[1] / 8)
    }

    /// Begins the copies of the rows of step `step` to the stage at `to`.
    fn fetch_rows(&self, step: Val, to: Val) {
        let (e, spec, tile) = (self.e, self.spec, self.tile);
        let a = Dense {
            matrix: spec.a,
            first: [self.origin[0], e.mul_const(step, tile.k)],
            limits: [self.rows, e.i32(spec.k)],
            columns_whole: spec.k % tile.k == 0,
            extent: [tile.m, tile.k],
        };
        self.copy(&a, to);
    }

    /// Begins the copies of the weight of step `step` to the stage at `to`.
    fn fetch_weight(&self, step: Val, to: Val) {
        let (e, spec, tile) = (self.e, self.spec, self.tile);
        let k = e.mul_const(step, tile.k);
        let whole = spec.k % tile.k == 0;
        let to = e.add_const(to, self.a_bytes());
        let weight = |stride: i64| super::Matrix { arg: spec.w, elem: spec.w_elem, stride };
        match spec.form {
            Form::Panels => self.copy_panels(k, to),
            Form::Columns(stride) => self.copy(
                &Dense {
                    matrix: weight(stride),
                    first: [self.origin[1], k],
                    limits: [e.i32(spec.n), e.i32(spec.k)],
                    columns_whole: whole,
                    extent: [tile.n, tile.k],
                },
                to,
            ),
            Form::Rows(stride) => self.copy(
                &Dense {
                    matrix: weight(stride),
                    first: [k, self.origin[1]],
                    limits: [e.i32(spec.k), e.i32(spec.n)],
                    columns_whole: spec.n % tile.n == 0,
                    extent: [tile.k, tile.n],
                },
                to,
            ),
        }
    }

    /// Adds the products of the stage at `from`.
    fn multiply(&self, from: Val, sums: &[Val]) -> Vec<Val> {
        let (e, (m, n)) = (self.e, self.blocks());
        let name = self.spec.type_name();
        let text = format!(
            "mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32 {{$0, $1, $2, $3}}, {{$8, $9, \
             $10, $11}}, {{$12, $13}}, {{$0, $1, $2, $3}};"
        );
        let w_base = e.add_const(from, self.a_bytes());
        let mut sums = sums.to_vec();
        for step in 0..self.tile.k / 16 {
            let left: Vec<[Val; 4]> = (0..m).map(|i| self.left(from, i, step)).collect();
            let right: Vec<[Val; 2]> =
                (0..n / 2).flat_map(|j| self.right(w_base, j, step)).collect();
            let pairs = left.iter().flat_map(|a| right.iter().map(move |b| (a, b)));
            for ((a, b), sum) in pairs.zip(sums.chunks_exact_mut(4)) {
                let operands: Vec<Val> = a.iter().chain(b).copied().collect();
                sum.copy_from_slice(&e.ptx_update(&text, sum, &operands));
            }
        }
        sums
    }

    fn store(&self, sums: &[Val]) {
        let (e, (m, n)) = (self.e, self.blocks());
        let group = e.shr(self.lane, 2);
        let pair = e.shl(e.and(self.lane, e.i32(3)), 1);
        let first = e.add(e.add(self.origin[0], self.warp[0]), group);
        let column = e.add(e.add(self.origin[1], self.warp[1]), pair);
        let outputs = self.spec.outputs(self.tile.n);
        let epilogue =
            Epilogue { e, spec: self.spec, rows: self.rows, whole: self.spec.n % outputs == 0 };
        let n = usize::try_from(n).expect("few blocks");
        for i in 0..m {
            for half in 0..2 {
                let block = &sums[usize::try_from(i).expect("few blocks") * 4 * n..][..4 * n];
                let pick = |quad: &[Val]| [quad[2 * half], quad[2 * half + 1]];
                let sums: Vec<[Val; 2]> = block.chunks_exact(4).map(pick).collect();
                let row = e.add_const(first, 16 * i + 8 * half as i64);
                epilogue.store(&Strip { row, column, sums: &sums });
            }
        }
    }
}
