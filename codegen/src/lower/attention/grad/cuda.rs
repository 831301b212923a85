//! `attention_grad` on GPUs, after FlashAttention-2's backward (Dao 2023, arXiv:2307.08691),
//! without atomics: on tensor cores ([`mma`]) where all that is multiplied is bf16 or f16, else in
//! f32.
//!
//! There are blocks of queries, which walk chunks of keys and sum `dq`, and blocks of keys, which
//! walk chunks of queries, one head of the group after the other, and sum `dk` and `dv`. Either is
//! the other with the sides of the scores exchanged, so weights are computed twice; no block writes
//! what another does, and every sum is one chain in the order of tokens. The blocks behind those
//! clear what belongs to no sequence.

mod mma;
mod plan;

use ir::{Dim, KernelSpec, Target};

use super::super::{
    Sizes,
    cuda::{
        fma::{Line, Matrix, Threads},
        softmax::power_of_two,
        tile::{Numbering, Row, Tile, Tiles, aligned},
    },
};
use plan::{Plan, THREADS};

use crate::{
    cuda::CudaKernel,
    emit::{Barrier, Cmp, Elem, Val},
    lower::{
        cx::Cx,
        view::{View, strides},
    },
    math,
};

/// Tokens that a block looks at to clear those of no sequence.
const CLEARED: i64 = 1024;
const OFFSETS: usize = 6;

/// The kernel.
///
/// # Errors
/// Heads that are too large.
pub(super) fn kernel(
    spec: &KernelSpec,
    sizes: Sizes,
    target: &Target,
) -> Result<CudaKernel, String> {
    if mma::check(spec, sizes).is_ok() {
        return Ok(on_tensor_cores(spec, sizes));
    }
    let (key, value) = (sizes.key, sizes.value);
    let plan = Plan::of(sizes, target);
    let plan = plan.ok_or_else(|| format!("heads of {key} and {value} do not fit"))?;
    let mut cx = Cx::cuda(spec, u32::try_from(THREADS).expect("few"));
    // Of large heads, and elsewhere, a multiprocessor has memory for one block.
    if target.cpu == "sm_90a" && plan.chunk == 64 {
        cx.e = cx.e.with_blocks(2);
    }
    let block = Block { cx: &cx, plan, threads: Threads::new(&cx), matrices: plan.matrices(&cx) };
    let (queries, keys) = tiles(&cx, sizes, plan.rows);
    let grid = divide(
        (&queries, &keys),
        |tile| block.queries(&queries, tile),
        |tile| block.keys(&queries, &keys, tile),
    );
    let bytes = u32::try_from(plan.bytes()).expect("it fits");
    let inputs = u32::try_from(spec.operands.len()).expect("few");
    Ok(cx.finish_cuda(grid, bytes, &[], |arg| match arg {
        0..=3 | 5 => by_four(spec.operands[arg as usize].as_ref().expect("an operand")),
        _ if arg >= inputs => by_four(&spec.results[(arg - inputs) as usize]),
        _ => false,
    }))
}

fn on_tensor_cores(spec: &KernelSpec, sizes: Sizes) -> CudaKernel {
    let plan = mma::Plan::of(sizes);
    let mut cx = Cx::cuda(spec, u32::try_from(mma::THREADS).expect("few"));
    cx.e = cx.e.with_blocks(2);
    let block = mma::Block::new(&cx, plan);
    let (queries, keys) = tiles(&cx, sizes, mma::ROWS);
    let grid = divide(
        (&queries, &keys),
        |tile| block.queries(&queries, tile),
        |tile| block.keys(&queries, &keys, tile),
    );
    let bytes = u32::try_from(plan.bytes()).expect("it fits");
    cx.finish_cuda(grid, bytes, &[], mma::is_aligned)
}

/// Tiles of queries and of keys.
fn tiles<'a>(cx: &'a Cx<'a>, sizes: Sizes, rows: i64) -> (Tiles<'a>, Tiles<'a>) {
    let numbering = Numbering::Packed(OFFSETS);
    let tiles = |sizes: Sizes| Tiles { cx, sizes, numbering, rows };
    (tiles(sizes), tiles(Sizes { group: 1, ..sizes }))
}

/// Gives every tile to a block, those of keys first, which take longer; the last blocks clear what
/// is in no sequence. Returns the grid.
fn divide(
    (of_queries, of_keys): (&Tiles<'_>, &Tiles<'_>),
    queries: impl Fn(Tile),
    keys: impl Fn(Tile),
) -> [Dim; 3] {
    let (cx, sizes) = (of_queries.cx, of_queries.sizes);
    let e = &cx.e;
    let counts = [of_keys.count(), of_queries.count()];
    let (x, head) = (e.block('x'), e.block('y'));
    let ends = [
        e.cast(cx.size(&counts[0]), Elem::I32),
        e.cast(cx.size(&(counts[0].clone() + counts[1].clone())), Elem::I32),
    ];
    let some = |tile: Tile, body: &dyn Fn(Tile)| {
        e.if_then(e.cmp(Cmp::Gt, tile.rows, e.i32(0)), || body(tile));
    };
    e.either(
        e.cmp(Cmp::Lt, x, ends[0]),
        || some(of_keys.find(x, head), &keys),
        || {
            e.either(
                e.cmp(Cmp::Lt, x, ends[1]),
                // Of a causal mask, later queries see more.
                || some(of_queries.find(e.add_const(e.sub(ends[1], x), -1), head), &queries),
                || clear(cx, sizes, e.sub(x, ends[1]), head),
            );
        },
    );
    let tokens = cx.operand(0).shape[0].clone();
    let [first, second] = counts;
    [first + second + tokens.ceil_div(CLEARED), Dim::from(sizes.kv_heads), 1.into()]
}

/// Queries of a sequence that see a key of a tile: the first one and the one past the last, i32.
fn queries_of(cx: &Cx<'_>, tile: Tile) -> [Val; 2] {
    let (e, attrs) = (&cx.e, &cx.spec.attrs);
    let from = if attrs.str("mask") == "causal" { tile.first } else { e.i32(0) };
    let last = e.add_const(e.add(tile.first, tile.rows), -1);
    let to = match attrs.int("window") {
        0 => tile.tokens,
        window => e.min(tile.tokens, e.add_const(last, window)),
    };
    [from, to]
}

/// Whether four elements may be read or written at once.
fn by_four(layout: &ir::Layout) -> bool {
    aligned(layout, 4) && strides(layout).last().is_some_and(|s| s.is(1))
}

struct Block<'a> {
    cx: &'a Cx<'a>,
    plan: Plan,
    threads: Threads<'a>,
    matrices: [Matrix; 7],
}

/// Numbers of a query: the logarithm of its sum, in units of log2, and `dy · y`.
#[derive(Clone, Copy)]
struct Stats {
    log_sum: Val,
    mean: Val,
}

impl Block<'_> {
    fn operand_by_four(&self, i: usize) -> bool {
        by_four(self.cx.spec.operands[i].as_ref().expect("an operand"))
    }

    /// Fills a matrix with rows of operand `i` of a head: tokens by `token(row)`, of which `valid`.
    fn fill(
        &self,
        to: usize,
        i: usize,
        (rows, valid): (i64, Val),
        line: &dyn Fn(&View, Val) -> View,
    ) {
        let view = self.cx.operand(i);
        let sizes = self.plan.sizes;
        let size = if to.is_multiple_of(2) { sizes.key } else { sizes.value };
        let step = view.strides[2].clone();
        let shape = (rows, Plan::columns(size));
        self.threads.fill(
            self.matrices[to],
            shape,
            (valid, size),
            self.operand_by_four(i),
            &|row| Line { view: line(&view, row), step: step.clone(), scale: None },
        );
    }

    /// `dy · y` of a row, of which dy is row `index` of `from`, in all sixteen threads.
    fn mean(&self, from: Matrix, index: Val, y: &View) -> Val {
        let (cx, e) = (self.cx, &self.cx.e);
        let size = self.plan.sizes.value;
        let step = &y.strides[2];
        let whole = self.operand_by_four(3) && size % 4 == 0;
        let first = e.shl(self.threads.lane, 2);
        let sum = e.for_loop(first, e.i32(size), 64, &[e.f32(0.0)], |column, sum| {
            let dy = self.threads.get_four(from, index, column);
            let at = |column: Val| cx.scale(e.cast(column, Elem::I64), step);
            let y: Vec<Val> = if whole {
                let y = y.load_strip(cx, at(column), step, 4);
                (0..4).map(|i| e.extract(y, i)).collect()
            } else {
                // dy is zero behind the row's end.
                let last = e.i32(size - 1);
                (0..4).map(|i| y.load(cx, at(e.min(e.add_const(column, i), last)))).collect()
            };
            vec![dy.iter().zip(&y).fold(sum[0], |sum, (dy, y)| e.fma(*dy, *y, sum))]
        });
        self.threads.over_row(sum[0], |a, b| e.add(a, b))
    }

    fn log_sum(&self, at: &View) -> Val {
        let e = &self.cx.e;
        e.mul(at.load(self.cx, e.i64(0)), e.f32(std::f32::consts::LOG2_E))
    }

    /// Weight and gradient of a product of query and key, given `dy · v`; zero if not seen.
    fn gradient(&self, product: Val, slope: Val, stats: Stats, seen: Val) -> [Val; 2] {
        let (e, attrs) = (&self.cx.e, &self.cx.spec.attrs);
        let (scale, cap) = (attrs.float("scale"), attrs.float("softcap"));
        let units = std::f64::consts::LOG2_E;
        let zero = e.f32(0.0);
        let (score, factor) = if cap > 0.0 {
            let inner = math::tanh(e, e.mul(product, e.like(product, scale / cap)));
            let slope = e.sub(e.f32(1.0), e.mul(inner, inner));
            (e.mul(inner, e.like(inner, cap * units)), e.mul(slope, e.like(slope, scale)))
        } else {
            (e.mul(product, e.like(product, scale * units)), e.like(product, scale))
        };
        let weight = power_of_two(e, e.sub(score, stats.log_sum));
        let gradient = e.mul(e.mul(weight, e.sub(slope, stats.mean)), factor);
        [e.select(seen, weight, zero), e.select(seen, gradient, zero)]
    }

    fn zeros(&self, size: i64) -> Vec<Val> {
        let count = self.plan.shape().0 * Plan::columns(size) / 16;
        vec![self.cx.e.f32(0.0); usize::try_from(count).expect("few")]
    }

    fn sees(&self, row: Row, key: Val) -> Val {
        let e = &self.cx.e;
        e.and(e.cmp(Cmp::Ge, key, row.from), e.cmp(Cmp::Lt, key, row.to))
    }

    fn queries(&self, tiles: &Tiles<'_>, tile: Tile) {
        let (cx, e, plan) = (self.cx, &self.cx.e, self.plan);
        let (rows, others) = plan.shape();
        let [_, dy, ..] = self.matrices;
        let own = |view: &View, row: Val| tiles.place(view, tile, tiles.row(tile, row));
        self.fill(0, 0, (plan.rows, tile.rows), &own);
        self.fill(1, 5, (plan.rows, tile.rows), &own);
        e.barrier(Barrier::Block);
        let own_rows: Vec<Val> = (0..rows).map(|r| self.threads.own_row(r)).collect();
        let all: Vec<Row> = own_rows.iter().map(|r| tiles.row(tile, *r)).collect();
        let stats = all.iter().zip(&own_rows).map(|(row, index)| Stats {
            log_sum: self.log_sum(&tiles.place(&cx.operand(4), tile, *row)),
            mean: self.mean(dy, *index, &tiles.place(&cx.operand(3), tile, *row)),
        });
        let stats: Vec<Stats> = stats.collect();
        let [from, keys] = tiles.seen(tile).any;
        let (first, end) =
            (e.div_unsigned(from, e.i32(plan.chunk)), e.div_ceil_const(keys, plan.chunk));
        let init = self.zeros(plan.sizes.key);
        let sums = e.for_loop(first, end, 1, &init, |chunk, sums| {
            let first = e.mul_const(chunk, plan.chunk);
            let valid = e.min(e.sub(keys, first), e.i32(plan.chunk));
            let line = |view: &View, row: Val| tiles.at(view, tile, e.add(first, row), tile.head);
            e.barrier(Barrier::Block);
            self.fill(2, 1, (plan.chunk, valid), &line);
            self.fill(3, 2, (plan.chunk, valid), &line);
            e.barrier(Barrier::Block);
            let (products, slopes) = self.products();
            let pairs = (0..rows).flat_map(|r| (0..others).map(move |j| (r, j)));
            for ((r, j), (product, slope)) in pairs.zip(products.iter().zip(&slopes)) {
                let r = usize::try_from(r).expect("few");
                let column = e.add_const(self.threads.lane, 16 * j);
                let seen = self.sees(all[r], e.add(first, column));
                let [_, gradient] = self.gradient(*product, *slope, stats[r], seen);
                self.threads.put(self.matrices[5], own_rows[r], column, gradient);
            }
            e.barrier(Barrier::Block);
            let shape = (rows, Plan::columns(plan.sizes.key) / 64);
            let both = (self.matrices[5], self.matrices[2]);
            self.threads.rows_by_columns(both, shape, plan.chunk, sums)
        });
        self.store(tiles, tile, &all, 0, plan.sizes.key, &sums);
    }

    /// Products of own rows and those of the chunk: of queries and keys, and of `dy` and values.
    fn products(&self) -> (Vec<Val>, Vec<Val>) {
        let (shape, sizes) = (self.plan.shape(), self.plan.sizes);
        let [first, second, other_first, other_second, ..] = self.matrices;
        let multiply = |both: (Matrix, Matrix), size: i64| {
            self.threads.rows_by_rows(both, shape, Plan::width(size))
        };
        (multiply((first, other_first), sizes.key), multiply((second, other_second), sizes.value))
    }

    fn keys(&self, of_queries: &Tiles<'_>, tiles: &Tiles<'_>, tile: Tile) {
        let (cx, e, plan) = (self.cx, &self.cx.e, self.plan);
        let sizes = plan.sizes;
        let (rows, others) = plan.shape();
        let own = |view: &View, row: Val| tiles.place(view, tile, tiles.row(tile, row));
        self.fill(0, 1, (plan.rows, tile.rows), &own);
        self.fill(1, 2, (plan.rows, tile.rows), &own);
        let own_rows: Vec<Val> = (0..rows).map(|r| self.threads.own_row(r)).collect();
        let [from, to] = queries_of(cx, tile);
        let (first, end) =
            (e.div_unsigned(from, e.i32(plan.chunk)), e.div_ceil_const(to, plan.chunk));
        let keys = self.zeros(sizes.key).len();
        let mut init = self.zeros(sizes.key);
        init.extend(self.zeros(sizes.value));
        let stats = self.matrices[6];
        let sums = e.for_loop(e.i32(0), e.i32(sizes.group), 1, &init, |within, sums| {
            let head = e.add(e.mul_const(tile.head, sizes.group), e.cast(within, Elem::I64));
            e.for_loop(first, end, 1, sums, |chunk, sums| {
                let first = e.mul_const(chunk, plan.chunk);
                let valid = e.min(e.sub(to, first), e.i32(plan.chunk));
                let line =
                    |view: &View, row: Val| of_queries.at(view, tile, e.add(first, row), head);
                e.barrier(Barrier::Block);
                self.fill(2, 0, (plan.chunk, valid), &line);
                self.fill(3, 5, (plan.chunk, valid), &line);
                e.barrier(Barrier::Block);
                self.chunk_stats(valid, &line);
                e.barrier(Barrier::Block);
                let (products, slopes) = self.products();
                for j in 0..others {
                    let column = e.add_const(self.threads.lane, 16 * j);
                    let token = e.min(e.add(first, column), e.add_const(to, -1));
                    let [from, end] = of_queries.visible(tile, token);
                    let exists = e.cmp(Cmp::Lt, column, valid);
                    let stat = |which: i64| self.threads.get(stats, e.i32(which), column);
                    let stats = Stats { log_sum: stat(0), mean: stat(1) };
                    let row = Row { token, head, exists, from, to: end };
                    for (r, index) in (0..).zip(&own_rows) {
                        let key = e.add(tile.first, *index);
                        let seen = e.and(row.exists, self.sees(row, key));
                        let at = usize::try_from(r * others + j).expect("few");
                        let [weight, gradient] =
                            self.gradient(products[at], slopes[at], stats, seen);
                        self.threads.put(self.matrices[4], *index, column, weight);
                        self.threads.put(self.matrices[5], *index, column, gradient);
                    }
                }
                e.barrier(Barrier::Block);
                let blocks = |size: i64| (rows, Plan::columns(size) / 64);
                let both = (self.matrices[5], self.matrices[2]);
                let mut next = self.threads.rows_by_columns(
                    both,
                    blocks(sizes.key),
                    plan.chunk,
                    &sums[..keys],
                );
                let both = (self.matrices[4], self.matrices[3]);
                next.extend(self.threads.rows_by_columns(
                    both,
                    blocks(sizes.value),
                    plan.chunk,
                    &sums[keys..],
                ));
                next
            })
        });
        let all: Vec<Row> = own_rows.iter().map(|r| tiles.row(tile, *r)).collect();
        self.store(tiles, tile, &all, 1, sizes.key, &sums[..keys]);
        self.store(tiles, tile, &all, 2, sizes.value, &sums[keys..]);
    }

    /// The numbers of a chunk's queries, to shared memory.
    fn chunk_stats(&self, valid: Val, line: &dyn Fn(&View, Val) -> View) {
        let (cx, e) = (self.cx, &self.cx.e);
        let [.., dy, _, _, stats] = self.matrices;
        for r in 0..self.plan.chunk / self.threads.apart() {
            let index = self.threads.own_row(r);
            let row = e.min(index, e.add_const(valid, -1));
            let mean = self.mean(dy, row, &line(&cx.operand(3), row));
            let log_sum = self.log_sum(&line(&cx.operand(4), row));
            e.if_then(e.cmp(Cmp::Eq, self.threads.lane, e.i32(0)), || {
                self.threads.put(stats, e.i32(0), index, log_sum);
                self.threads.put(stats, e.i32(1), index, mean);
            });
        }
    }

    fn store(
        &self,
        tiles: &Tiles<'_>,
        tile: Tile,
        rows: &[Row],
        result: usize,
        size: i64,
        sums: &[Val],
    ) {
        let (cx, e) = (self.cx, &self.cx.e);
        let view = cx.result(result);
        let places: Vec<View> = rows.iter().map(|row| tiles.place(&view, tile, *row)).collect();
        let whole = by_four(&cx.spec.results[result]);
        let shape = (self.plan.shape().0, Plan::columns(size) / 64);
        self.threads.each_strip(shape, size, |at, row, column| {
            let row = usize::try_from(row).expect("few");
            e.if_then(rows[row].exists, || {
                let values = &sums[at..at + 4];
                let step = &view.strides[2];
                self.threads.store(&places[row], step, values, column, (size, whole));
            });
        });
    }
}

/// Clears the gradients of tokens in no sequence, of those that block `x` looks at.
fn clear(cx: &Cx<'_>, sizes: Sizes, x: Val, head: Val) {
    let e = &cx.e;
    let offsets = cx.operand(OFFSETS);
    let bound = |i: Val| e.cast(offsets.load(cx, cx.scale(i, &offsets.strides[0])), Elem::I64);
    let last = cx.size(&(offsets.shape[0].clone() - Dim::from(1)));
    let (first, end) = (bound(e.i64(0)), bound(last));
    let begin = e.mul_const(e.cast(x, Elem::I64), CLEARED);
    let tokens = cx.size(&cx.operand(0).shape[0]);
    let head = e.cast(head, Elem::I64);
    let from = e.add(begin, e.cast(e.thread(), Elem::I64));
    let to = e.min(e.add_const(begin, CLEARED), tokens);
    e.for_each(from, to, e.threads().into(), |token| {
        let outside = e.or(e.cmp(Cmp::Lt, token, first), e.cmp(Cmp::Ge, token, end));
        e.if_then(outside, || {
            for (result, heads) in [(0, sizes.group), (1, 1), (2, 1)] {
                let view = cx.result(result);
                e.for_each(e.i64(0), e.i64(heads), 1, |within| {
                    let head = e.add(e.mul_const(head, heads), within);
                    let at = cx.scale(token, &view.strides[0]);
                    let row = view.at(cx, cx.offset(at, head, &view.strides[1]));
                    e.for_each(e.i64(0), cx.size(&view.shape[2]), 1, |column| {
                        row.store(cx, e.f32(0.0), cx.scale(column, &view.strides[2]));
                    });
                });
            }
        });
    });
}
