//! Sums of outer products: `y = aᵀ · b` of matrices with as many dense rows, which may be known
//! only at run time. Gradients of weights are such.
//!
//! As [`super`] in all but its operands: `wgmma` reads both transposed from shared memory, where a
//! stage has 64 rows of each, in pieces of 64 columns as the copy engine writes them. Rows outside
//! of the operands are zero.
//!
//! Gradients of weights are few tiles of long sums. Where tiles are too few for all
//! multiprocessors, the blocks of a cluster share the steps over k of one tile: each has a part of
//! them, neighbours, in one chain of sixteen-wide steps. The parts are exchanged through
//! the cluster's shared memory, which has no more copies to come by then, and added in the order of
//! k, each block for its share of the columns. How many parts there are follows from `m`, `n` and
//! the device's size, and where they begin from the number of rows.

use ir::{DType, Dim};

use super::{
    super::{
        Draft, Matrix,
        ring::{Ring, Turn},
        tiled::{Output, Run, Stride},
        walk::each_tile_of,
    },
    CONSUMERS, K, REGISTERS, Tile, WARPGROUP,
    operands::{DENSE_ROWS, bulk},
};
use crate::{
    cuda::{Swizzle, TensorMap},
    emit::{Barrier, Cmp, Elem, Emitter, Ty, Val},
};

/// A product; its kernel's parameter `Size(0)` is the number of rows of `a` and `b`.
#[derive(Clone, Debug, PartialEq)]
pub struct Outer {
    /// Rows of `a` and `b`.
    pub k: Dim,
    /// Rows of `y`, which are columns of `a`.
    pub m: i64,
    /// Columns of `y` and `b`.
    pub n: i64,
    /// `[k, m]`, bf16 or f16.
    pub a: Matrix,
    /// `[k, n]`, of the same type.
    pub b: Matrix,
    /// `[m, n]`.
    pub y: Matrix,
}

/// Columns of tiles, and stages that fit.
const TILES: [Tile; 4] = [
    Tile { n: 256, stages: 4 },
    Tile { n: 192, stages: 5 },
    Tile { n: 128, stages: 6 },
    Tile { n: 64, stages: 8 },
];

/// Blocks that share a tile.
const PARTS: [i64; 3] = [1, 2, 4];
/// Steps of the sums for which tiles are chosen: those of 16,384 rows.
const STEPS: i64 = 256;
/// Cycles until a block has its first stage.
const START: i64 = 1500;
/// Threads that hold sums.
const HOLDERS: i64 = WARPGROUP * CONSUMERS;

/// Clusters of so many blocks that run at once, where a block has a multiprocessor: larger ones
/// lie within groups of sixteen or eighteen multiprocessors.
const fn clusters(parts: i64, multiprocessors: i64) -> i64 {
    if parts > 2 { multiprocessors / 16 * 16 / parts } else { multiprocessors / parts }
}

impl Outer {
    /// Checks that the copy engine reads the operands.
    ///
    /// # Errors
    /// What this kernel does not compute.
    pub fn check(&self) -> Result<(), String> {
        let elem = self.a.elem;
        if !matches!(elem, Elem::Bf16 | Elem::F16) || self.b.elem != elem {
            return Err(format!("{} and {}", elem, self.b.elem));
        }
        if self.a.stride % 8 != 0 || self.b.stride % 8 != 0 {
            return Err("rows must begin at multiples of sixteen bytes".into());
        }
        if self.m < 64 || self.n < 32 {
            return Err("a product too small for its tiles".into());
        }
        Ok(())
    }

    fn name(&self) -> &'static str {
        if self.a.elem == Elem::F16 { "f16" } else { "bf16" }
    }

    /// The tile, and the number of blocks that share one, that take the fewest cycles: those of
    /// the steps as [`super::tiles`] counts them, and of the exchange, which a block writes at 128
    /// bytes a cycle and reads from others at 32.
    fn shape(&self, multiprocessors: i64) -> (Tile, i64) {
        let cost = |(tile, parts): &(Tile, i64)| {
            let down = (self.m + tile.m() - 1) / tile.m();
            let tiles = down * ((self.n + tile.n - 1) / tile.n);
            let at_once = clusters(*parts, multiprocessors);
            let sums = tile.m() * tile.n * 4;
            let exchange = match parts {
                1 => 0,
                _ => START + sums / 128 + sums * (parts - 1) / parts / 32,
            };
            let step = (4 * tile.n).max(360 + 3 * tile.n);
            (tiles + at_once - 1) / at_once * (STEPS / parts * step + exchange)
        };
        let possible = PARTS.iter().filter(|parts| clusters(**parts, multiprocessors) > 0);
        let all = possible.flat_map(|parts| TILES.map(|tile| (tile, *parts)));
        all.min_by_key(cost).expect("a tile")
    }

    fn maps(&self) -> Vec<TensorMap> {
        let map = |matrix: Matrix, columns: i64| TensorMap {
            arg: matrix.arg,
            dtype: if matrix.elem == Elem::F16 { DType::F16 } else { DType::Bf16 },
            extents: vec![Dim::from(columns), self.k.clone()],
            strides: vec![Dim::from(2 * matrix.stride)],
            boxes: vec![64, 64],
            swizzle: Swizzle::Bytes128,
        };
        vec![map(self.a, self.m), map(self.b, self.n)]
    }
}

/// Emits the kernel `symbol` for a GPU with so many multiprocessors, and says how many blocks of a
/// cluster share a tile. Several have one tile for each cluster.
#[must_use]
pub fn emit(symbol: &str, spec: &Outer, multiprocessors: u32) -> (Draft, i64) {
    let blocks = i64::from(multiprocessors);
    let (tile, parts) = spec.shape(blocks);
    let threads = u32::try_from(WARPGROUP * (CONSUMERS + 1)).expect("few threads");
    let e = Emitter::cuda(symbol, threads);
    let gen_ = Gen::new(&e, spec, tile, parts);
    gen_.emit();
    let stages = gen_.stage_bytes() * tile.stages;
    let shared_bytes = u32::try_from(stages + Ring::bytes(tile.stages)).expect("it fits");
    let tile = [tile.m(), tile.n];
    let (maps, early) = (spec.maps(), Vec::new());
    let blocks = (parts == 1).then_some(blocks);
    (Draft { e, tile, blocks, shared_bytes, maps, max_rows: None, early }, parts)
}

/// Emission state.
struct Gen<'a> {
    e: &'a Emitter,
    spec: &'a Outer,
    tile: Tile,
    /// Blocks that share a tile.
    parts: i64,
    /// The block's number among those, i32.
    rank: Val,
    /// Its first step of a stage, and how many it has, i32.
    first: Val,
    steps: Val,
    thread: Val,
    shared: Val,
    ring: Ring,
}

impl<'a> Gen<'a> {
    fn new(e: &'a Emitter, spec: &'a Outer, tile: Tile, parts: i64) -> Self {
        let shared = e.shared();
        let all = e.div_ceil_const(e.cast(e.dim(0), Elem::I32), K);
        let (mut rank, mut first, mut steps) = (e.i32(0), e.i32(0), all);
        if parts > 1 {
            let each = e.div_ceil_const(all, parts);
            rank = e.rem_unsigned(e.block('x'), e.i32(parts));
            first = e.min(e.mul(rank, each), all);
            steps = e.min(each, e.sub(all, first));
        }
        let stage = (tile.m() + tile.n) * K * 2;
        let ring = Ring { barriers: e.add_const(shared, stage * tile.stages), stages: tile.stages };
        Gen { e, spec, tile, parts, rank, first, steps, thread: e.thread(), shared, ring }
    }

    fn a_bytes(&self) -> i64 {
        self.tile.m() * K * 2
    }

    fn stage_bytes(&self) -> i64 {
        self.a_bytes() + self.tile.n * K * 2
    }

    fn stage(&self, turn: Turn) -> Val {
        self.e.add(self.shared, self.e.mul_const(turn.stage, self.stage_bytes()))
    }

    fn emit(&self) {
        let e = self.e;
        e.if_then(e.cmp(Cmp::Eq, self.thread, e.i32(0)), || {
            self.ring.init(e, 1, e.i32(4 * CONSUMERS))
        });
        e.barrier(Barrier::Block);
        let first = e.i32(WARPGROUP * CONSUMERS);
        let [few, many] = REGISTERS;
        e.either(
            e.cmp(Cmp::Ge, self.thread, first),
            || {
                e.ptx(&format!("setmaxnreg.dec.sync.aligned.u32 {few};"), &[]);
                e.if_then(e.cmp(Cmp::Eq, self.thread, first), || self.produce());
                if self.parts > 1 {
                    e.barrier(Barrier::Warp);
                    self.meet();
                    self.meet();
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
        let sizes = (self.e.i32(self.spec.m), self.spec.n);
        each_tile_of(self.e, self.parts, sizes, tile, body);
    }

    fn produce(&self) {
        let e = self.e;
        self.tiles(|row, column, turn| {
            let done = e.for_loop(e.i32(0), self.steps, 1, &turn.values(), |step, turn| {
                let turn = Turn::of(turn);
                self.ring.wait_empty(e, turn);
                let full = self.ring.full(e, turn);
                let text = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;";
                e.ptx(text, &[full, e.i32(self.stage_bytes())]);
                let k = e.mul_const(e.add(self.first, step), K);
                let to = self.stage(turn);
                let pieces = |map: u32, first: Val, count: i64, to: Val| {
                    for i in 0..count {
                        let (column, to) =
                            (e.add_const(first, 64 * i), e.add_const(to, 64 * i * K * 2));
                        bulk(e, map, &[column, k], to, full);
                    }
                };
                pieces(0, row, self.tile.m() / 64, to);
                pieces(1, column, self.tile.n / 64, e.add_const(to, self.a_bytes()));
                self.ring.next(e, turn).values().to_vec()
            });
            Turn::of(&done)
        });
    }

    fn consume(&self) {
        let e = self.e;
        let group = e.div_unsigned(self.thread, e.i32(WARPGROUP));
        let leads = e.cmp(Cmp::Eq, e.and(self.thread, e.i32(31)), e.i32(0));
        let count = usize::try_from(self.tile.n / 2).expect("few sums");
        self.tiles(|row, column, turn| {
            let mut init = turn.values().to_vec();
            init.extend(vec![e.f32(0.0); count]);
            let done = e.for_loop(e.i32(0), self.steps, 1, &init, |step, carried| {
                let turn = Turn::of(&carried[..2]);
                self.ring.wait_full(e, turn);
                let sums = self.multiply(self.stage(turn), group, &carried[2..]);
                // All but the newest group are done: the stage before this one has been read.
                let started = e.cmp(Cmp::Gt, step, e.i32(0));
                e.if_then(e.and(started, leads), || self.ring.release_before(e, turn));
                self.ring.next(e, turn).values().into_iter().chain(sums).collect()
            });
            let turn = Turn::of(&done[..2]);
            let sums = e.ptx_update("wgmma.wait_group.sync.aligned 0;", &done[2..], &[]);
            if self.parts > 1 {
                self.exchange(row, column, &sums);
            } else {
                e.if_then(leads, || self.ring.release_before(e, turn));
                self.store(row, column, &sums);
            }
            turn
        });
    }

    /// All threads of the cluster have come here, and see what the others wrote to shared memory.
    fn meet(&self) {
        self.e.ptx("barrier.cluster.arrive.release.aligned;", &[]);
        self.e.ptx("barrier.cluster.wait.acquire.aligned;", &[]);
    }

    /// Adds the parts of a tile, of which these sums are one, and stores this block's columns.
    fn exchange(&self, row: Val, column: Val, sums: &[Val]) {
        let e = self.e;
        // The other warpgroup may still multiply from the stages.
        e.barrier(Barrier::Named(1, u32::try_from(HOLDERS).expect("few threads")));
        // Of every eight columns, four sums of each thread side by side.
        let own = e.add(self.shared, e.shl(self.thread, 4));
        let line = 16 * HOLDERS;
        for (i, quad) in (0..).zip(sums.chunks_exact(4)) {
            let at = e.add_const(own, line * i);
            e.ptx("st.shared.v4.f32 [$0], {$1, $2, $3, $4};", &[&[at], quad].concat());
        }
        self.meet();
        let each = self.tile.n / 8 / self.parts;
        let mine = e.mul_const(self.rank, each);
        let from = e.add(own, e.mul_const(mine, line));
        let places: Vec<Val> = (0..self.parts)
            .map(|part| {
                let text = "mapa.shared::cluster.u32 $0, $1, $2;";
                e.ptx_values(text, &[from.ty()], &[from, e.i32(part)])[0]
            })
            .collect();
        let total: Vec<Val> = (0..each)
            .flat_map(|i| {
                let part = |place: &Val| {
                    let text =
                        format!("ld.shared::cluster.v4.f32 {{$0, $1, $2, $3}}, [$4+{}];", line * i);
                    e.ptx_values(&text, &[Ty::Scalar(Elem::F32); 4], &[*place])
                };
                let parts: Vec<Vec<Val>> = places.iter().map(part).collect();
                let add = |lane: usize| {
                    let [first, rest @ ..] = &parts[..] else { unreachable!("a part") };
                    rest.iter().fold(first[lane], |sum, part| e.add(sum, part[lane]))
                };
                [0, 1, 2, 3].map(add)
            })
            .collect();
        self.store(row, e.add(column, e.shl(mine, 3)), &total);
        // No block may end while others read from it.
        self.meet();
    }

    fn multiply(&self, from: Val, group: Val, sums: &[Val]) -> Vec<Val> {
        let (e, n, name) = (self.e, self.tile.n, self.spec.name());
        let a_from = e.add(from, e.mul_const(group, 64 * K * 2));
        let b_from = e.add_const(from, self.a_bytes());
        let list: Vec<String> = (0..sums.len()).map(|i| format!("${i}")).collect();
        let list = list.join(", ");
        let mut text = "wgmma.fence.sync.aligned;\n".to_owned();
        let mut operands = Vec::new();
        for step in 0..K / 16 {
            let [a, b] = [0, 1].map(|i| 2 * sums.len() + operands.len() + i);
            operands.extend([a_from, b_from].map(|from| DENSE_ROWS.at(e, from, step)));
            text += &format!(
                "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{name}.{name} {{{list}}}, ${a}, ${b}, \
                 1, 1, 1, 1, 1;\n"
            );
        }
        text += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;";
        e.ptx_update(&text, sums, &operands)
    }

    fn store(&self, row: Val, column: Val, sums: &[Val]) {
        let (e, spec) = (self.e, self.spec);
        let lane = e.and(self.thread, e.i32(31));
        // A warp has sixteen rows.
        let first = e.add(row, e.shl(e.shr(self.thread, 5), 4));
        let first = e.add(first, e.shr(lane, 2));
        let column = e.add(column, e.shl(e.and(lane, e.i32(3)), 1));
        let strides = [Stride::Const(spec.y.stride), Stride::Const(1)];
        let even = spec.n % 2 == 0 && spec.y.stride % 2 == 0;
        let (base, limits) = (e.arg(spec.y.arg), [e.i32(spec.m), e.i32(spec.n)]);
        let lanes = if even { 2 } else { 1 };
        let output = Output::plain(base, spec.y.elem, strides, limits, lanes);
        for line in 0..2 {
            let row = e.add_const(first, 8 * i64::try_from(line).expect("two"));
            for (j, quad) in (0..).zip(sums.chunks_exact(4)) {
                let (column, sums) = (e.add_const(column, 8 * j), &quad[2 * line..][..2]);
                output.store(e, &Run { line, row, column, sums, up: None });
            }
        }
    }
}
