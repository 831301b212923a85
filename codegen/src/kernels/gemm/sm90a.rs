//! Products for `sm_90a`: the copy engine fills a ring of stages, warpgroups multiply from it.
//!
//! The last warpgroup is the producer: one thread of it waits until a stage is empty and starts the
//! copies, which count the stage full when they have landed. Rows of `a` that have to be rounded or
//! put in another order are not copied but loaded and stored by its threads (`fill`). The other
//! two warpgroups each hold 64 rows of the tile's sums in registers; `wgmma` reads both operands
//! from shared memory. The group of one step over k stays in flight while that of the next is
//! issued, and its stage is released after that. Blocks are persistent: each walks over tiles, and
//! the ring runs on from tile to tile, so that the copies of a tile overlap the stores of the last.
//!
//! The copy engine takes as long for a row of 32 bytes as for one of 128, so a packed weight's
//! panels are copied in rows of four steps over k, which turns the order of k within eight
//! (`operands`); `a` is put in the same order.
//!
//! Few rows, and operands that sixteen-byte accesses cannot read, take the kernels of
//! [`super::sm80`].

mod fill;
pub(crate) mod operands;
pub mod outer;
mod tiles;

use serde::{Deserialize, Serialize};

use super::{
    Draft, Gemm, Variant,
    epilogue::{Epilogue, Strip},
    ring::{Ring, Turn},
    tile::Tile as Kind,
    walk::each_tile,
};
use crate::emit::{Barrier, Cmp, Elem, Emitter, Val};
use fill::Fill;
use operands::Operands;
pub(super) use operands::bulk;

/// A block's share of the product: 128 rows, 64 for each warpgroup that multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tile {
    /// Columns of the stored weight: a multiple of 32 up to 256, of dense rows one of 64.
    pub n: i64,
    /// Stages of the ring.
    pub stages: i64,
}

/// Steps over k of a stage: 128 bytes of a row.
const K: i64 = 64;
/// Threads of a warpgroup.
const WARPGROUP: i64 = 128;

/// Warpgroups that multiply.
const CONSUMERS: i64 = 2;
/// Registers of a thread of a producer, and of a consumer: three warpgroups start with 168 each.
const REGISTERS: [i64; 2] = [136, 184];

impl Tile {
    const fn m(self) -> i64 {
        64 * CONSUMERS
    }
}

/// Whether the copy engine can read the operands of a product.
pub(super) fn can_copy(spec: &Gemm) -> bool {
    Operands::can_copy(spec)
}

/// The tiles of a product for a GPU with so many multiprocessors, those for fewer rows first.
pub(super) fn defaults(spec: &Gemm, multiprocessors: i64) -> Vec<Variant> {
    let few = tiles::few(spec, multiprocessors);
    let few = few.into_iter().map(|tile| Variant { rows: Some(tile.m), tile: Kind::Mma(tile) });
    let many = tiles::many(spec, multiprocessors);
    let many = many.into_iter().map(|(tile, rows)| Variant { rows, tile: Kind::Wgmma(tile) });
    few.chain(many).collect()
}

/// Emits the kernel `symbol` for at most so many blocks.
#[must_use]
pub fn emit(symbol: &str, spec: &Gemm, tile: Tile, blocks: i64) -> Draft {
    let threads = u32::try_from(WARPGROUP * (CONSUMERS + 1)).expect("few threads");
    let e = Emitter::cuda(symbol, threads);
    let operands = Operands::new(spec, tile);
    let maps = operands.maps();
    Gen::new(&e, spec, tile, &operands).emit();
    let stages = operands.stage_bytes() * tile.stages;
    let shared_bytes = u32::try_from(stages + Ring::bytes(tile.stages)).expect("it fits");
    let (tile, early) = ([tile.m(), tile.n], Vec::new());
    Draft { e, tile, blocks: Some(blocks), shared_bytes, maps, max_rows: None, early }
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

impl<'a> Gen<'a> {
    fn new(e: &'a Emitter, spec: &'a Gemm, tile: Tile, operands: &'a Operands<'a>) -> Self {
        let shared = e.shared();
        let barriers = e.add_const(shared, operands.stage_bytes() * tile.stages);
        let ring = Ring { barriers, stages: tile.stages };
        let rows = e.cast(e.dim(0), Elem::I32);
        Gen { e, spec, tile, operands, rows, thread: e.thread(), shared, ring }
    }

    fn steps(&self) -> i64 {
        (self.spec.k + K - 1) / K
    }

    fn emit(&self) {
        let e = self.e;
        let fills = if self.operands.engine() { 0 } else { WARPGROUP / 32 };
        e.if_then(e.cmp(Cmp::Eq, self.thread, e.i32(0)), || {
            self.ring.init(e, 1 + fills, e.i32(4 * CONSUMERS));
        });
        e.barrier(Barrier::Block);
        // Warpgroups begin at multiples of four warps, so those that multiply come first.
        let first = e.i32(WARPGROUP * CONSUMERS);
        let produces = e.cmp(Cmp::Ge, self.thread, first);
        let [few, many] = REGISTERS;
        e.either(
            produces,
            || {
                e.ptx(&format!("setmaxnreg.dec.sync.aligned.u32 {few};"), &[]);
                let leads = e.cmp(Cmp::Eq, self.thread, first);
                if self.operands.engine() {
                    e.if_then(leads, || self.produce());
                } else {
                    self.fill(e.sub(self.thread, first), leads);
                }
            },
            || {
                e.ptx(&format!("setmaxnreg.inc.sync.aligned.u32 {many};"), &[]);
                self.consume();
            },
        );
    }

    /// Walks this block's tiles: `body(first row, first column, turn)` gives the next turn.
    fn tiles(&self, body: impl FnOnce(Val, Val, Turn) -> Turn) {
        let tile = [self.tile.m(), self.tile.n];
        each_tile(self.e, self.rows, self.spec.columns(), tile, body);
    }

    fn produce(&self) {
        let e = self.e;
        self.tiles(|row, column, turn| {
            let steps =
                e.for_loop(e.i32(0), e.i32(self.steps()), 1, &turn.values(), |step, turn| {
                    let turn = Turn::of(turn);
                    self.ring.wait_empty(e, turn);
                    self.copy([row, column, step], turn);
                    self.ring.next(e, turn).values().to_vec()
                });
            Turn::of(&steps)
        });
    }

    /// Starts the copies of a stage: row and column of the tile, and the step.
    fn copy(&self, [row, column, step]: [Val; 3], turn: Turn) {
        let e = self.e;
        let full = self.ring.full(e, turn);
        let text = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;";
        e.ptx(text, &[full, e.i32(self.operands.copied_bytes())]);
        self.operands.copy(e, [row, column, e.mul_const(step, K)], self.stage(turn), full);
    }

    /// As [`Self::produce`] by all threads, of which one `leads`: it starts the weight's copies.
    fn fill(&self, thread: Val, leads: Val) {
        let e = self.e;
        let fill = Fill {
            e,
            a: self.spec.a,
            k: self.spec.k,
            to: self.spec.type_name(),
            order: self.spec.order(),
            tile: self.tile,
            rows: self.rows,
            thread,
        };
        let first = e.cmp(Cmp::Eq, e.and(thread, e.i32(31)), e.i32(0));
        self.tiles(|row, column, turn| {
            let rows = fill.rows(row);
            let mut init = turn.values().to_vec();
            init.extend((0..fill.ahead()).flat_map(|step| fill.load(&rows, e.i32(step))));
            let done = e.for_loop(e.i32(0), e.i32(self.steps()), 1, &init, |step, carried| {
                let turn = Turn::of(&carried[..2]);
                let (now, later) = carried[2..].split_at(fill.in_flight());
                let words = fill.convert(now);
                let next = fill.load(&rows, e.add_const(step, fill.ahead()));
                self.ring.wait_empty(e, turn);
                e.if_then(leads, || self.copy([row, column, step], turn));
                // The one that leads and the others go on together.
                e.barrier(Barrier::Warp);
                fill.store(&words, self.stage(turn));
                // Each thread's writes come before what tensor cores read; one lane says so.
                e.ptx("fence.proxy.async.shared::cta;", &[]);
                e.barrier(Barrier::Warp);
                e.if_then(first, || self.ring.arrive_full(e, turn));
                let values = self.ring.next(e, turn).values().into_iter();
                values.chain(later.iter().copied()).chain(next).collect()
            });
            Turn::of(&done[..2])
        });
    }

    fn stage(&self, turn: Turn) -> Val {
        self.e.add(self.shared, self.e.mul_const(turn.stage, self.operands.stage_bytes()))
    }

    fn consume(&self) {
        let (e, tile) = (self.e, self.tile);
        let thread = self.thread;
        let group = e.div_unsigned(thread, e.i32(WARPGROUP));
        let leads = e.cmp(Cmp::Eq, e.and(thread, e.i32(31)), e.i32(0));
        let count = usize::try_from(tile.n / 2).expect("few sums");
        self.tiles(|row, column, turn| {
            let mut init = turn.values().to_vec();
            init.extend(vec![e.f32(0.0); count]);
            let done = e.for_loop(e.i32(0), e.i32(self.steps()), 1, &init, |step, carried| {
                let turn = Turn::of(&carried[..2]);
                self.ring.wait_full(e, turn);
                let sums = self.operands.multiply(e, self.stage(turn), group, &carried[2..]);
                // All but the newest group are done: the stage before this one has been read.
                let started = e.cmp(Cmp::Gt, step, e.i32(0));
                e.if_then(e.and(started, leads), || self.ring.release_before(e, turn));
                self.ring.next(e, turn).values().into_iter().chain(sums).collect()
            });
            let turn = Turn::of(&done[..2]);
            let sums = e.ptx_update("wgmma.wait_group.sync.aligned 0;", &done[2..], &[]);
            e.if_then(leads, || self.ring.release_before(e, turn));
            self.store(row, column, thread, &sums);
            turn
        });
    }

    fn store(&self, row: Val, column: Val, thread: Val, sums: &[Val]) {
        let e = self.e;
        let lane = e.and(thread, e.i32(31));
        // A warp has sixteen rows.
        let first = e.add(row, e.shl(e.shr(thread, 5), 4));
        let first = e.add(first, e.shr(lane, 2));
        let column = e.add(column, e.shl(e.and(lane, e.i32(3)), 1));
        let outputs = self.spec.outputs(self.tile.n);
        let whole = self.spec.n % outputs == 0;
        let epilogue = Epilogue { e, spec: self.spec, rows: self.rows, whole };
        for half in 0..2 {
            let pick = |quad: &[Val]| [quad[2 * half], quad[2 * half + 1]];
            let sums: Vec<[Val; 2]> = sums.chunks_exact(4).map(pick).collect();
            let row = e.add_const(first, 8 * half as i64);
            epilogue.store(&Strip { row, column, sums: &sums });
        }
    }
}
