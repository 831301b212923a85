//! `attention_grad` by `mma.sync.m16n8k16`, where all that is multiplied is bf16 or f16.
//!
//! A warp has sixteen of the block's rows. Chunks of the other side come by `cp.async`, the next
//! one while this one is multiplied. Sums of 16 x 8 lie in lanes as the parts of a left operand do,
//! so weights and gradients of scores go from sums to products in registers, rounded to the type of
//! the operands, as FlashAttention-2 rounds them. Sixteen-byte units of a row in shared memory are
//! exclusive-ored with bits of the row's number: neither copies nor `ldmatrix` meet in a bank.

use ir::{DType, Dim, KernelSpec};

use super::super::super::{
    Sizes,
    cuda::{
        softmax::power_of_two,
        tile::{Row, Tile, Tiles, aligned},
    },
    dense, required,
};
use crate::{
    emit::{Barrier, Cmp, Elem, Emitter, Ty, Val},
    lower::{
        cx::Cx,
        view::{View, memory_elem},
    },
    math,
};

/// Threads of a block.
pub(super) const THREADS: i64 = 128;
/// Rows of a block, sixteen a warp.
pub(super) const ROWS: i64 = 64;
const WORD: Ty = Ty::Scalar(Elem::I32);
const F32: Ty = Ty::Scalar(Elem::F32);

/// The operands that are multiplied: q, k, v, y, dy.
const FACTORS: [usize; 5] = [0, 1, 2, 3, 5];

/// Checks what these kernels need beyond what the family does.
pub(super) fn check(spec: &KernelSpec, sizes: Sizes) -> Result<(), String> {
    let dtype = required(spec, 0)?.ty.dtype;
    if !matches!(dtype, DType::Bf16 | DType::F16) {
        return Err(format!("tensor cores take bf16 and f16, not {dtype}"));
    }
    let head = |n: i64| n % 16 == 0 && (16..=128).contains(&n);
    if !head(sizes.key) || !head(sizes.value) {
        return Err(format!("heads of {} and {}", sizes.key, sizes.value));
    }
    let factors = FACTORS.map(|i| required(spec, i));
    for layout in factors.into_iter().chain(spec.results.iter().map(Ok)) {
        let layout = layout?;
        dense(layout, 2)?;
        if !aligned(layout, 8) {
            return Err(format!("{layout}: strides must be multiples of 8"));
        }
    }
    for i in FACTORS {
        let other = required(spec, i)?.ty.dtype;
        if other != dtype {
            return Err(format!("{dtype} and {other}"));
        }
    }
    Ok(())
}

/// Whether sixteen bytes of an argument are read or written at once.
pub(super) fn is_aligned(arg: u32) -> bool {
    FACTORS.contains(&(arg as usize)) || arg >= 7
}

/// How shared memory is divided.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    sizes: Sizes,
    /// Rows of a chunk.
    chunk: i64,
}

impl Plan {
    pub(super) const fn of(sizes: Sizes) -> Plan {
        // Of large heads, sums of both results leave registers for fewer scores.
        let small = sizes.key <= 64 && sizes.value <= 64;
        Plan { sizes, chunk: if small { 64 } else { 32 } }
    }

    const fn own_bytes(self) -> i64 {
        2 * ROWS * (self.sizes.key + self.sizes.value)
    }

    /// Two matrices of a chunk; of queries y, and logarithms of sums, besides.
    const fn stage_bytes(self) -> i64 {
        self.chunk * (2 * (self.sizes.key + 2 * self.sizes.value) + 4)
    }

    pub(super) const fn bytes(self) -> i64 {
        self.own_bytes() + 2 * self.stage_bytes() + 8 * self.chunk
    }
}

/// A matrix of rows of so many elements in shared memory.
#[derive(Clone, Copy)]
struct Matrix {
    at: Val,
    size: i64,
}

/// Emission state of a block.
pub(super) struct Block<'a> {
    cx: &'a Cx<'a>,
    plan: Plan,
    thread: Val,
    lane: Val,
    /// The warp's first row.
    first: Val,
}

/// A stage of the ring.
struct Stage {
    /// k and v, or q and dy.
    others: [Matrix; 2],
    y: Matrix,
    lse: Val,
}

/// Numbers of the queries that a score of this thread belongs to: given the row's half and the
/// column, the logarithm of its sum in units of log2, and `dy · y`.
type Stats<'s> = dyn Fn(usize, usize) -> [Val; 2] + 's;

impl<'a> Block<'a> {
    pub(super) fn new(cx: &'a Cx<'a>, plan: Plan) -> Block<'a> {
        let e = &cx.e;
        let thread = e.thread();
        let first = e.shl(e.shr(thread, 5), 4);
        Block { cx, plan, thread, lane: e.and(thread, e.i32(31)), first }
    }

    fn own(&self) -> [Matrix; 2] {
        let (e, sizes) = (&self.cx.e, self.plan.sizes);
        let at = e.shared();
        let second = e.add_const(at, 2 * ROWS * sizes.key);
        [Matrix { at, size: sizes.key }, Matrix { at: second, size: sizes.value }]
    }

    /// Stage 0 or 1 (i32).
    fn stage(&self, number: Val) -> Stage {
        let (e, plan) = (&self.cx.e, self.plan);
        let at = e.add_const(e.shared(), plan.own_bytes());
        let at = e.add(at, e.mul_const(number, plan.stage_bytes()));
        let Sizes { key, value, .. } = plan.sizes;
        let second = e.add_const(at, 2 * plan.chunk * key);
        let third = e.add_const(second, 2 * plan.chunk * value);
        let lse = e.add_const(third, 2 * plan.chunk * value);
        let y = Matrix { at: third, size: value };
        let others = [Matrix { at, size: key }, Matrix { at: second, size: value }];
        Stage { others, y, lse }
    }

    /// Where `[chunk][2]` numbers of a chunk's queries are.
    fn stats(&self) -> Val {
        let bytes = self.plan.own_bytes() + 2 * self.plan.stage_bytes();
        self.cx.e.add_const(self.cx.e.shared(), bytes)
    }

    fn elem(&self) -> Elem {
        memory_elem(self.cx.operand(0).dtype)
    }

    fn name(&self) -> &'static str {
        if self.elem() == Elem::F16 { "f16" } else { "bf16" }
    }

    /// What the units of a row are exclusive-ored with.
    fn turn(&self, row: Val, units: i64) -> Val {
        let e = &self.cx.e;
        match units {
            _ if units % 8 == 0 => e.and(row, e.i32(7)),
            _ if units % 4 == 0 => e.and(e.shr(row, 1), e.i32(3)),
            _ => e.and(e.shr(row, 2), e.i32(1)),
        }
    }

    /// Address of a unit of a row.
    fn unit(&self, matrix: Matrix, row: Val, unit: Val) -> Val {
        let (e, units) = (&self.cx.e, matrix.size / 8);
        let unit = e.xor(unit, self.turn(row, units));
        e.add(matrix.at, e.shl(e.add(e.mul_const(row, units), unit), 4))
    }

    /// Address of unit `bit + 2 step` of a row, for a bit: parts that lanes compute are few.
    fn unit_of_step(&self, matrix: Matrix, row: Val, bit: Val, step: i64) -> Val {
        let (e, units) = (&self.cx.e, matrix.size / 8);
        let among = match units {
            _ if units % 8 == 0 => 8,
            _ if units % 4 == 0 => 4,
            _ => 2,
        };
        let turned = e.xor(bit, self.turn(row, units));
        let unit = e.xor(turned, e.i32(2 * step % among));
        let begin = e.shl(e.add(e.mul_const(row, units), unit), 4);
        e.add_const(e.add(matrix.at, begin), 2 * step / among * among * 16)
    }

    /// Begins the copy of rows of operand `i`, zeros for those that do not exist.
    fn copy(&self, to: Matrix, rows: i64, i: usize, row: &dyn Fn(&View, Val) -> (View, Val)) {
        let (cx, e) = (self.cx, &self.cx.e);
        let view = cx.operand(i);
        let units = to.size / 8;
        let count = rows * units;
        let one = |index: Val| {
            let (line, unit) =
                (e.div_unsigned(index, e.i32(units)), e.rem_unsigned(index, e.i32(units)));
            let (from, exists) = row(&view, line);
            let column = e.cast(e.shl(unit, 3), Elem::I64);
            let from = e.at(from.base, self.elem(), column);
            let bytes = e.select(exists, e.i32(16), e.i32(0));
            let text = "cp.async.cg.shared.global [$0], [$1], 16, $2;";
            e.ptx(text, &[self.unit(to, line, unit), from, bytes]);
        };
        for first in (0..count).step_by(usize::try_from(THREADS).expect("few")) {
            let index = e.add_const(self.thread, first);
            if first + THREADS <= count {
                one(index);
            } else {
                e.if_then(e.cmp(Cmp::Lt, index, e.i32(count)), || one(index));
            }
        }
    }

    fn ldmatrix(&self, trans: &str, at: Val) -> [Val; 4] {
        let text =
            format!("ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{$0, $1, $2, $3}}, [$4];");
        let words = self.cx.e.ptx_values(&text, &[WORD; 4], &[at]);
        [words[0], words[1], words[2], words[3]]
    }

    fn bits(&self) -> [Val; 2] {
        let e = &self.cx.e;
        [3, 4].map(|n| e.and(e.shr(self.lane, n), e.i32(1)))
    }

    /// The warp's rows at step `step` over their elements.
    fn left(&self, matrix: Matrix, step: i64) -> [Val; 4] {
        let e = &self.cx.e;
        let row = e.add(self.first, e.and(self.lane, e.i32(15)));
        self.ldmatrix("", self.unit_of_step(matrix, row, self.bits()[1], step))
    }

    /// Rows of the other side from `16 j` on, as columns, at step `step` over their elements.
    fn right_rows(&self, matrix: Matrix, j: i64, step: i64) -> [[Val; 2]; 2] {
        let (e, [low, high]) = (&self.cx.e, self.bits());
        let row = e.add(e.and(self.lane, e.i32(7)), e.shl(high, 3));
        let at = self.unit_of_step(matrix, row, low, step);
        let words = self.ldmatrix("", e.add_const(at, 32 * j * matrix.size));
        [[words[0], words[1]], [words[2], words[3]]]
    }

    /// Elements of the other side from `16 j` on, at step `step` over its rows.
    fn right_columns(&self, matrix: Matrix, j: i64, step: i64) -> [[Val; 2]; 2] {
        let (e, [low, high]) = (&self.cx.e, self.bits());
        let row = e.add(e.and(self.lane, e.i32(7)), e.shl(low, 3));
        let at = self.unit_of_step(matrix, row, high, j);
        let words = self.ldmatrix(".trans", e.add_const(at, 32 * step * matrix.size));
        [[words[0], words[1]], [words[2], words[3]]]
    }

    fn multiply(&self, left: &[Val; 4], right: [Val; 2], sums: &mut [Val]) {
        let name = self.name();
        let text = format!(
            "mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32 {{$0, $1, $2, $3}}, {{$8, $9, \
             $10, $11}}, {{$12, $13}}, {{$0, $1, $2, $3}};"
        );
        let operands: Vec<Val> = left.iter().copied().chain(right).collect();
        sums.copy_from_slice(&self.cx.e.ptx_update(&text, sums, &operands));
    }

    fn zeros(&self, columns: i64) -> Vec<Val> {
        vec![self.cx.e.f32(0.0); usize::try_from(columns / 2).expect("few")]
    }

    /// Products of the warp's rows and those of a chunk: four a block of eight of those.
    fn scores(&self, own: Matrix, other: Matrix) -> Vec<Val> {
        let mut sums = self.zeros(self.plan.chunk);
        for step in 0..own.size / 16 {
            let left = self.left(own, step);
            for (j, sums) in (0..).zip(sums.chunks_exact_mut(8)) {
                let right = self.right_rows(other, j, step);
                for (right, sums) in right.into_iter().zip(sums.chunks_exact_mut(4)) {
                    self.multiply(&left, right, sums);
                }
            }
        }
        sums
    }

    /// Adds products of weights of a chunk's rows, and those rows.
    fn add(&self, weights: &[[Val; 4]], other: Matrix, sums: &[Val]) -> Vec<Val> {
        let mut sums = sums.to_vec();
        for (step, left) in (0..).zip(weights) {
            for (j, sums) in (0..).zip(sums.chunks_exact_mut(8)) {
                let right = self.right_columns(other, j, step);
                for (right, sums) in right.into_iter().zip(sums.chunks_exact_mut(4)) {
                    self.multiply(left, right, sums);
                }
            }
        }
        sums
    }

    /// Sums as left operands, rounded.
    fn rounded(&self, sums: &[Val]) -> Vec<[Val; 4]> {
        let text = format!("cvt.rn.{}x2.f32 $0, $2, $1;", self.name());
        let pair = |pair: &[Val]| self.cx.e.ptx_pure(&text, &[WORD], pair)[0];
        let of = |g: &[Val]| [0, 2, 4, 6].map(|i| pair(&g[i..i + 2]));
        sums.chunks_exact(8).map(of).collect()
    }

    /// A word's two numbers.
    fn floats(&self, word: Val) -> [Val; 2] {
        let e = &self.cx.e;
        let bits = match self.elem() {
            Elem::Bf16 => [e.shl(word, 16), e.and(word, e.i32(-0x1_0000))],
            _ => [word, e.shr(word, 16)].map(|word| {
                let half = e.bitcast(e.cast(word, Elem::I16), Ty::Scalar(Elem::F16));
                e.bitcast(e.cast(half, Elem::F32), WORD)
            }),
        };
        bits.map(|word| e.bitcast(word, F32))
    }

    /// The column within its chunk of sum `i` of a row's.
    fn column(&self, i: usize) -> Val {
        let e = &self.cx.e;
        let pair = e.shl(e.and(self.lane, e.i32(3)), 1);
        let behind = i64::try_from(i / 4 * 8 + i % 2).expect("small");
        e.add_const(pair, behind)
    }

    /// Weights of products, and gradients of them but for the scale, given `dy · v`; zero where
    /// `seen(half, column)` is not, unless `all` are.
    fn gradients(
        &self,
        products: &[Val],
        slopes: &[Val],
        stats: &Stats<'_>,
        (all, seen): (Val, &dyn Fn(usize, Val) -> Val),
    ) -> [Vec<Val>; 2] {
        let (e, attrs) = (&self.cx.e, &self.cx.spec.attrs);
        let (scale, cap) = (attrs.float("scale"), attrs.float("softcap"));
        let units = std::f64::consts::LOG2_E;
        let (mut weights, mut caps) = (Vec::new(), Vec::new());
        for (i, product) in products.iter().enumerate() {
            let [log_sum, _] = stats(i / 2 % 2, i);
            let exponent = if cap > 0.0 {
                let inner = math::tanh(e, e.mul(*product, e.like(*product, scale / cap)));
                caps.push(e.sub(e.f32(1.0), e.mul(inner, inner)));
                e.sub(e.mul(inner, e.like(inner, cap * units)), log_sum)
            } else {
                e.fma(*product, e.like(*product, scale * units), e.neg(log_sum))
            };
            weights.push(power_of_two(e, exponent));
        }
        let types: Vec<Ty> = weights.iter().map(|weight| weight.ty()).collect();
        let masked = || {
            let zero = e.f32(0.0);
            let one = |(i, weight): (usize, &Val)| {
                e.select(seen(i / 2 % 2, self.column(i)), *weight, zero)
            };
            weights.iter().enumerate().map(one).collect()
        };
        let weights = e.if_else(all, &types, || weights.clone(), masked);
        let mut gradients = Vec::new();
        for (i, (weight, slope)) in weights.iter().zip(slopes).enumerate() {
            let [_, mean] = stats(i / 2 % 2, i);
            let mut gradient = e.mul(*weight, e.sub(*slope, mean));
            if let Some(cap) = caps.get(i) {
                gradient = e.mul(gradient, *cap);
            }
            gradients.push(gradient);
        }
        [weights, gradients]
    }

    /// `dy · y` over a lane's units, those that are there, given the words of either.
    fn dot(&self, units: &[(Val, [Vec<Val>; 2])]) -> Val {
        let e = &self.cx.e;
        let mut sum = e.f32(0.0);
        for (exists, [dy, y]) in units {
            for (dy, y) in dy.iter().zip(y) {
                for (dy, y) in self.floats(*dy).into_iter().zip(self.floats(*y)) {
                    sum = e.fma(e.select(*exists, dy, e.f32(0.0)), y, sum);
                }
            }
        }
        sum
    }

    /// Units of a row that one of `among` lanes sums: whether each is there, and its number.
    fn share(&self, lane: Val, among: i64) -> Vec<(Val, Val)> {
        let e = &self.cx.e;
        let units = self.plan.sizes.value / 8;
        let each = (units + among - 1) / among;
        let one = |i: i64| {
            // Four times four units of 256 bytes: lanes go through theirs in other orders.
            let within = match (among, each) {
                (4, 4) => e.xor(e.and(lane, e.i32(2)), e.i32(i)),
                _ => e.i32(i),
            };
            let unit = e.add(e.mul_const(lane, each), within);
            (e.cmp(Cmp::Lt, unit, e.i32(units)), e.min(unit, e.i32(units - 1)))
        };
        (0..each).map(one).collect()
    }

    fn over_lanes(&self, sum: Val, among: i64) -> Val {
        let e = &self.cx.e;
        let masks = [1, 2].into_iter().filter(|mask| i64::from(*mask) < among);
        masks.fold(sum, |sum, mask| e.add(sum, e.shuffle_xor(sum, mask)))
    }

    fn words(&self, at: Val) -> Vec<Val> {
        self.cx.e.load_shared_four(Elem::I32, at, 0)
    }

    fn log_sum(&self, lse: Val) -> Val {
        let e = &self.cx.e;
        e.mul(lse, e.f32(std::f32::consts::LOG2_E))
    }

    /// Waits for copies, and for all threads.
    fn arrive(&self) {
        self.cx.e.ptx("cp.async.wait_group 0;", &[]);
        self.cx.e.barrier(Barrier::Block);
    }

    fn commit(&self) {
        self.cx.e.ptx("cp.async.commit_group;", &[]);
    }

    /// The two rows of a lane.
    fn rows(&self, tiles: &Tiles<'_>, tile: Tile) -> [Row; 2] {
        let e = &self.cx.e;
        let first = e.add(self.first, e.shr(self.lane, 2));
        [0, 8].map(|below| tiles.row(tile, e.add_const(first, below)))
    }

    /// Logarithms and `dy · y` of a lane's own queries, which are there.
    fn own_stats(&self, tiles: &Tiles<'_>, tile: Tile, rows: &[Row; 2]) -> [[Val; 2]; 2] {
        let (cx, e) = (self.cx, &self.cx.e);
        let among = 4;
        let share = self.share(e.and(self.lane, e.i32(3)), among);
        [0, 1].map(|half| {
            let row = rows[half];
            let y = tiles.place(&cx.operand(3), tile, row);
            let behind = 8 * i64::try_from(half).expect("two");
            let line = e.add_const(e.add(self.first, e.shr(self.lane, 2)), behind);
            let unit = |(exists, unit): &(Val, Val)| {
                let dy = self.words(self.unit(self.own()[1], line, *unit));
                let column = e.cast(e.shl(*unit, 3), Elem::I64);
                let from = e.at(y.base, self.elem(), column);
                let text = "ld.global.v4.b32 {$0, $1, $2, $3}, [$4];";
                (*exists, [dy, e.ptx_values(text, &[WORD; 4], &[from])])
            };
            let units: Vec<_> = share.iter().map(unit).collect();
            let mean = self.over_lanes(self.dot(&units), among);
            let lse = tiles.place(&cx.operand(4), tile, row).load(cx, e.i64(0));
            [self.log_sum(lse), mean]
        })
    }

    /// Sums `dq` of a tile of queries over chunks of keys.
    pub(super) fn queries(&self, tiles: &Tiles<'_>, tile: Tile) {
        let (cx, e, plan) = (self.cx, &self.cx.e, self.plan);
        let own = |view: &View, row: Val| {
            let row = tiles.row(tile, row);
            (tiles.place(view, tile, row), row.exists)
        };
        let [first_own, second_own] = self.own();
        self.copy(first_own, ROWS, 0, &own);
        self.copy(second_own, ROWS, 5, &own);
        let seen = tiles.seen(tile);
        let [from, keys] = seen.any;
        let (first, end) =
            (e.div_unsigned(from, e.i32(plan.chunk)), e.div_ceil_const(keys, plan.chunk));
        let last = e.add_const(keys, -1);
        let fetch = |chunk: Val, stage: Val| {
            let begin = e.mul_const(chunk, plan.chunk);
            let line = |view: &View, row: Val| {
                let key = e.add(begin, row);
                let exists = e.cmp(Cmp::Lt, key, keys);
                (tiles.at(view, tile, e.min(key, last), tile.head), exists)
            };
            for (i, to) in [1, 2].into_iter().zip(self.stage(stage).others) {
                self.copy(to, plan.chunk, i, &line);
            }
        };
        e.if_then(e.cmp(Cmp::Lt, first, end), || fetch(first, e.i32(0)));
        self.commit();
        self.arrive();
        let rows = self.rows(tiles, tile);
        let stats = self.own_stats(tiles, tile, &rows);
        let sums = e.for_loop(first, end, 1, &self.zeros(plan.sizes.key), |chunk, sums| {
            self.arrive();
            let stage = e.and(e.sub(chunk, first), e.i32(1));
            let next = e.add_const(chunk, 1);
            e.if_then(e.cmp(Cmp::Lt, next, end), || fetch(next, e.xor(stage, e.i32(1))));
            self.commit();
            let others = self.stage(stage).others;
            let products = self.scores(first_own, others[0]);
            let slopes = self.scores(second_own, others[1]);
            let begin = e.mul_const(chunk, plan.chunk);
            let after = e.cmp(Cmp::Ge, begin, seen.all[0]);
            let before = e.cmp(Cmp::Le, e.add_const(begin, plan.chunk), seen.all[1]);
            let sees = |half: usize, column: Val| {
                let key = e.add(begin, column);
                let row = rows[half];
                e.and(e.cmp(Cmp::Ge, key, row.from), e.cmp(Cmp::Lt, key, row.to))
            };
            let stats = |half: usize, _: usize| stats[half];
            let [_, gradients] =
                self.gradients(&products, &slopes, &stats, (e.and(after, before), &sees));
            self.add(&self.rounded(&gradients), others[0], sums)
        });
        let scale = cx.spec.attrs.float("scale");
        self.store(tiles, tile, &rows, 0, &sums, scale);
    }

    /// Sums `dk` and `dv` of a tile of keys over chunks of queries, one head after the other.
    pub(super) fn keys(&self, of_queries: &Tiles<'_>, tiles: &Tiles<'_>, tile: Tile) {
        let (cx, e, plan) = (self.cx, &self.cx.e, self.plan);
        let own = |view: &View, row: Val| {
            let row = tiles.row(tile, row);
            (tiles.place(view, tile, row), row.exists)
        };
        let [first_own, second_own] = self.own();
        self.copy(first_own, ROWS, 1, &own);
        self.copy(second_own, ROWS, 2, &own);
        let [from, to] = super::queries_of(cx, tile);
        let begin = e.div_unsigned(from, e.i32(plan.chunk));
        let chunks = e.sub(e.div_ceil_const(to, plan.chunk), begin);
        let count = e.mul_const(chunks, plan.sizes.group);
        let last = e.add_const(to, -1);
        // The first query of a step, and its head.
        let place = |step: Val| {
            let (within, chunk) = (e.div_unsigned(step, chunks), e.rem_unsigned(step, chunks));
            let head = e.mul_const(tile.head, plan.sizes.group);
            let head = e.add(head, e.cast(within, Elem::I64));
            (e.mul_const(e.add(begin, chunk), plan.chunk), head)
        };
        let fetch = |step: Val, number: Val| {
            let (begin, head) = place(step);
            let line = |view: &View, row: Val| {
                let token = e.add(begin, row);
                let exists = e.cmp(Cmp::Lt, token, to);
                (of_queries.at(view, tile, e.min(token, last), head), exists)
            };
            let stage = self.stage(number);
            self.copy(stage.others[0], plan.chunk, 0, &line);
            self.copy(stage.others[1], plan.chunk, 5, &line);
            self.copy(stage.y, plan.chunk, 3, &line);
            e.if_then(e.cmp(Cmp::Lt, self.thread, e.i32(plan.chunk)), || {
                let (from, exists) = line(&cx.operand(4), self.thread);
                let at = e.add(stage.lse, e.shl(self.thread, 2));
                let bytes = e.select(exists, e.i32(4), e.i32(0));
                let text = "cp.async.ca.shared.global [$0], [$1], 4, $2;";
                e.ptx(text, &[at, from.base, bytes]);
            });
        };
        e.if_then(e.cmp(Cmp::Gt, count, e.i32(0)), || fetch(e.i32(0), e.i32(0)));
        self.commit();
        let rows = self.rows(tiles, tile);
        let tile_end = e.add(tile.first, tile.rows);
        let keys = self.zeros(plan.sizes.key).len();
        let mut init = self.zeros(plan.sizes.key);
        init.extend(self.zeros(plan.sizes.value));
        let sums = e.for_loop(e.i32(0), count, 1, &init, |step, sums| {
            self.arrive();
            let number = e.and(step, e.i32(1));
            let next = e.add_const(step, 1);
            e.if_then(e.cmp(Cmp::Lt, next, count), || fetch(next, e.xor(number, e.i32(1))));
            self.commit();
            let stage = self.stage(number);
            self.chunk_stats(&stage);
            let products = self.scores(first_own, stage.others[0]);
            let slopes = self.scores(second_own, stage.others[1]);
            e.barrier(Barrier::Block);
            let numbers = self.load_stats();
            let (begin, _) = place(step);
            let end = e.add_const(begin, plan.chunk);
            // All see all where the chunk's last query sees the first key, and its first the last.
            let [first_from, first_to] = of_queries.visible(tile, begin);
            let [last_from, _] = of_queries.visible(tile, e.add_const(end, -1));
            let (low, high) = (e.max(first_from, last_from), first_to);
            let whole = e.cmp(Cmp::Le, end, to);
            let after = e.cmp(Cmp::Ge, tile.first, low);
            let before = e.cmp(Cmp::Le, tile_end, high);
            let all = e.and(whole, e.and(after, before));
            let sees = |half: usize, column: Val| {
                let token = e.add(begin, column);
                let [from, end] = of_queries.visible(tile, token);
                let key = rows[half].token;
                let seen = e.and(e.cmp(Cmp::Ge, key, from), e.cmp(Cmp::Lt, key, end));
                e.and(seen, e.cmp(Cmp::Lt, token, to))
            };
            let stats = |_: usize, i: usize| numbers[i / 4 * 2 + i % 2];
            let [weights, gradients] = self.gradients(&products, &slopes, &stats, (all, &sees));
            let of_values = self.add(&self.rounded(&weights), stage.others[1], &sums[keys..]);
            let mut next = self.add(&self.rounded(&gradients), stage.others[0], &sums[..keys]);
            next.extend(of_values);
            next
        });
        let scale = cx.spec.attrs.float("scale");
        self.store(tiles, tile, &rows, 1, &sums[..keys], scale);
        self.store(tiles, tile, &rows, 2, &sums[keys..], 1.0);
    }

    /// Numbers of a chunk's queries to shared memory.
    fn chunk_stats(&self, stage: &Stage) {
        let e = &self.cx.e;
        let among = THREADS / self.plan.chunk;
        let row = e.div_unsigned(self.thread, e.i32(among));
        let lane = e.rem_unsigned(self.thread, e.i32(among));
        let unit = |(exists, unit): (Val, Val)| {
            let of = |matrix: Matrix| self.words(self.unit(matrix, row, unit));
            (exists, [of(stage.others[1]), of(stage.y)])
        };
        let units: Vec<_> = self.share(lane, among).into_iter().map(unit).collect();
        let mean = self.over_lanes(self.dot(&units), among);
        e.if_then(e.cmp(Cmp::Eq, lane, e.i32(0)), || {
            let lse = e.load_shared(Elem::F32, e.add(stage.lse, e.shl(row, 2)), 0);
            let at = e.add(self.stats(), e.shl(row, 3));
            e.store_shared(self.log_sum(lse), at, 0);
            e.store_shared(mean, at, 4);
        });
    }

    /// The numbers of a lane's columns.
    fn load_stats(&self) -> Vec<[Val; 2]> {
        let e = &self.cx.e;
        let at = e.add(self.stats(), e.shl(e.and(self.lane, e.i32(3)), 4));
        let pair = |i: i64| {
            let four = e.load_shared_four(Elem::F32, at, 64 * i);
            [[four[0], four[1]], [four[2], four[3]]]
        };
        (0..self.plan.chunk / 8).flat_map(pair).collect()
    }

    /// Writes a tile's sums to a result.
    fn store(
        &self,
        tiles: &Tiles<'_>,
        tile: Tile,
        rows: &[Row; 2],
        result: usize,
        sums: &[Val],
        scale: f64,
    ) {
        let (cx, e) = (self.cx, &self.cx.e);
        let view = cx.result(result);
        let pair = e.shl(e.and(self.lane, e.i32(3)), 1);
        let zero = e.zero(Emitter::f32s(2));
        for (half, row) in rows.iter().enumerate() {
            let place = tiles.place(&view, tile, *row);
            e.if_then(row.exists, || {
                for (j, block) in (0..).zip(sums.chunks_exact(4)) {
                    let value = e.insert(block[2 * half], zero, 0);
                    let value = e.insert(block[2 * half + 1], value, 1);
                    let value = e.mul(value, e.float(value.ty(), scale));
                    let column = e.cast(e.add_const(pair, 8 * j), Elem::I64);
                    place.store_strip(cx, value, column, &Dim::from(1));
                }
            });
        }
    }
}
