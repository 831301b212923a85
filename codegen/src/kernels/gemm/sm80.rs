//! Products for `sm_80`: a ring of `cp.async` stages, `ldmatrix`, `mma.sync.m16n8k16`.
//!
//! A block computes one tile. Sixteen-byte units of shared memory are permuted so that neither the
//! copies nor the eight rows of an `ldmatrix` meet in a bank: a row's units are exclusive-ored with
//! bits of the row's number. What lies outside of an operand is filled with zeros by the copies
//! themselves, so no operand is padded in memory.

mod copy;
mod fragments;

use super::{
    Draft, Form, Gemm, Order,
    epilogue::{Epilogue, Strip},
};
use crate::emit::{Barrier, Cmp, Elem, Emitter, Val};
pub(super) use copy::{Copier, Dense};

/// A block's share of the product, and how its warps divide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

impl Tile {
    /// For more than 64 rows.
    pub const LARGE: Tile = Tile { m: 128, n: 128, k: 32, warps: [2, 2], stages: 4 };
    /// For at most 64 rows.
    pub const MEDIUM: Tile = Tile { m: 64, n: 64, k: 64, warps: [2, 2], stages: 4 };
    /// For at most sixteen rows: little to compute, much to read.
    pub const SMALL: Tile = Tile { m: 16, n: 64, k: 64, warps: [1, 2], stages: 8 };
    /// As [`Tile::SMALL`], where there are too few columns for all multiprocessors.
    pub const NARROW: Tile = Tile { m: 16, n: 32, k: 64, warps: [1, 1], stages: 8 };

    fn threads(self) -> u32 {
        u32::try_from(32 * self.warps[0] * self.warps[1]).expect("few warps")
    }
}

/// The kernels of a product for a GPU with so many multiprocessors, those for fewer rows first.
#[must_use]
pub fn variants(symbol: &str, spec: &Gemm, multiprocessors: u32) -> Vec<Draft> {
    let few = spec.columns() / Tile::SMALL.n < i64::from(multiprocessors);
    let small = if few { Tile::NARROW } else { Tile::SMALL };
    [small, Tile::MEDIUM, Tile::LARGE].map(|tile| emit(symbol, spec, tile, Order::Plain)).into()
}

/// Emits the kernel `symbol`.
#[must_use]
pub fn emit(symbol: &str, spec: &Gemm, tile: Tile, order: Order) -> Draft {
    let e = Emitter::cuda(symbol, tile.threads());
    let generator = Gen::new(&e, spec, tile, order);
    generator.emit();
    let shared = generator.stage_bytes() * tile.stages;
    let shared_bytes = u32::try_from(shared).expect("stages fit in shared memory");
    let max_rows = (tile.m < Tile::LARGE.m).then_some(tile.m);
    let tile = [tile.m, tile.n];
    Draft { e, tile, blocks: None, shared_bytes, maps: Vec::new(), max_rows }
}

/// Emission state.
struct Gen<'a> {
    e: &'a Emitter,
    spec: &'a Gemm,
    tile: Tile,
    order: Order,
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
    fn new(e: &'a Emitter, spec: &'a Gemm, tile: Tile, order: Order) -> Self {
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

    fn emit(&self) {
        let (e, tile) = (self.e, self.tile);
        let steps = (self.spec.k + tile.k - 1) / tile.k;
        let (stage, ring) = (self.stage_bytes(), self.stage_bytes() * tile.stages);
        for s in 0..tile.stages - 1 {
            if s < steps {
                self.fetch(e.i32(s), e.add_const(self.shared, s * stage));
            }
            e.ptx("cp.async.commit_group;", &[]);
        }
        let (m, n) = self.blocks();
        let zero = e.f32(0.0);
        let ahead = e.i32((tile.stages - 1) * stage);
        let mut init = vec![e.i32(0), ahead];
        init.extend(vec![zero; usize::try_from(4 * m * n).expect("few sums")]);
        let result = e.for_loop(e.i32(0), e.i32(steps), 1, &init, |step, carried| {
            let [reads, writes, ref sums @ ..] = *carried else { unreachable!("a ring and sums") };
            e.ptx(&format!("cp.async.wait_group {};", tile.stages - 2), &[]);
            e.barrier(Barrier::Block);
            let next = e.add_const(step, tile.stages - 1);
            e.if_then(e.cmp(Cmp::Lt, next, e.i32(steps)), || {
                self.fetch(next, e.add(self.shared, writes));
            });
            e.ptx("cp.async.commit_group;", &[]);
            let sums = self.multiply(e.add(self.shared, reads), sums);
            let turn = |at: Val| {
                let next = e.add_const(at, stage);
                e.select(e.cmp(Cmp::Eq, next, e.i32(ring)), e.i32(0), next)
            };
            [turn(reads), turn(writes)].into_iter().chain(sums).collect()
        });
        self.store(&result[2..]);
    }

    /// Blocks of 16 rows and of 8 columns of a warp.
    fn blocks(&self) -> (i64, i64) {
        (self.tile.m / self.tile.warps[0] / 16, self.tile.n / self.tile.warps[1] / 8)
    }

    /// Begins the copies of step `step` to the stage at `to`.
    fn fetch(&self, step: Val, to: Val) {
        let (e, spec, tile) = (self.e, self.spec, self.tile);
        let k = e.mul_const(step, tile.k);
        let whole = spec.k % tile.k == 0;
        let a = Dense {
            matrix: spec.a,
            first: [self.origin[0], k],
            limits: [self.rows, e.i32(spec.k)],
            columns_whole: whole,
            extent: [tile.m, tile.k],
        };
        self.copy(&a, to);
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
