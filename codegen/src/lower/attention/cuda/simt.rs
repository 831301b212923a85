//! Attention without tensor cores, in f32: of keys and values of any type and layout, with biases.
//!
//! A block has a tile of 64 rows, or of large heads fewer, and walks the chunks of keys from the
//! sequence's start on, with one online softmax. Every product and sum is a chain of fused
//! multiply-adds in the order of elements or keys, over a chunk at a time.

use ir::{Dim, KernelSpec, Target};

use super::{
    Sizes,
    fma::{Line, Matrix, Threads},
    numbering, required, result_of,
    softmax::{advance, log_sum, power_of_two, reciprocal, scaled},
    tile::{Numbering, Row, Tile, Tiles, aligned},
};
use crate::{
    cuda::CudaKernel,
    emit::{Barrier, Cmp, Elem, Val},
    lower::{
        cx::Cx,
        space::broadcast_strides,
        view::{View, strides},
    },
};

/// Rows of a tile: the first that fits.
const ROWS: [i64; 3] = [64, 32, 16];

/// How heads of a size are divided.
#[derive(Clone, Copy)]
struct Plan {
    sizes: Sizes,
    /// f32 of a key and of a value in shared memory.
    key: i64,
    value: i64,
    /// Rows of a tile.
    rows: i64,
    /// Keys of a chunk.
    chunk: i64,
    threads: i64,
}

impl Plan {
    /// The first that fits in shared memory of every GPU.
    fn of(sizes: Sizes, target: &Target) -> Option<Plan> {
        let arch = target.cuda?.arch;
        let mut plans = ROWS.into_iter().map(|rows| Plan::with(sizes, rows));
        plans.find(|plan| plan.bytes() <= i64::from(arch.common_shared_bytes()))
    }

    fn with(sizes: Sizes, rows: i64) -> Plan {
        let large = sizes.key > 128 || sizes.value > 128;
        let round = |n: i64, to: i64| (n + to - 1) / to * to;
        Plan {
            sizes,
            key: round(sizes.key, 8),
            value: round(sizes.value, 64),
            rows,
            chunk: if large { 32 } else { 64 },
            threads: if large { 256 } else { 128 },
        }
    }

    /// Rows of a thread.
    const fn own_rows(self) -> i64 {
        self.rows * 16 / self.threads
    }

    /// Blocks of 64 columns of the values.
    const fn blocks(self) -> i64 {
        self.value / 64
    }

    /// Queries, keys, values and weights in shared memory, from `at` on, and the end. Rows of a
    /// number of f32 of which four times an odd one is read without conflicts of banks, and of
    /// weights those that sixteen threads of two rows write.
    fn matrices(self, cx: &Cx<'_>, at: Val) -> [Matrix; 4] {
        let mut byte = 0;
        self.shapes().map(|(rows, stride)| {
            let matrix = Matrix { at: cx.e.add_const(at, byte), stride };
            byte += 4 * rows * stride;
            matrix
        })
    }

    const fn shapes(self) -> [(i64, i64); 4] {
        let key = self.key + 4;
        [
            (self.rows, key),
            (self.chunk, key),
            (self.chunk, self.value),
            (self.rows, self.chunk + 16),
        ]
    }

    fn bytes(self) -> i64 {
        self.shapes().iter().map(|(rows, stride)| 4 * rows * stride).sum()
    }
}

/// The kernel.
///
/// # Errors
/// Heads that are too large.
pub(super) fn kernel(
    spec: &KernelSpec,
    sizes: Sizes,
    target: &Target,
) -> Result<CudaKernel, String> {
    let (key, value) = (sizes.key, sizes.value);
    let plan = Plan::of(sizes, target);
    let plan = plan.ok_or_else(|| format!("heads of {key} and {value} do not fit"))?;
    required(spec, 0)?;
    let cx = Cx::cuda(spec, u32::try_from(plan.threads).expect("few"));
    let tiles = Tiles { cx: &cx, sizes, numbering: numbering(spec), rows: plan.rows };
    let grid = [tiles.count(), Dim::from(sizes.kv_heads), 1.into()];
    let e = &cx.e;
    let tile = tiles.find(e.block('x'), e.block('y'));
    e.if_then(e.cmp(Cmp::Gt, tile.rows, e.i32(0)), || {
        Block::new(&cx, &tiles, plan, tile).emit();
    });
    let bytes = u32::try_from(plan.bytes()).expect("it fits");
    let result = result_of(spec);
    let whole = aligned(&spec.results[0], 4);
    Ok(cx.finish_cuda(grid, bytes, &[], |arg| match arg {
        0..3 => by_four(spec, arg as usize),
        _ => arg == result && whole,
    }))
}

struct Block<'a> {
    cx: &'a Cx<'a>,
    tiles: &'a Tiles<'a>,
    plan: Plan,
    threads: Threads<'a>,
    tile: Tile,
    rows: Vec<Row>,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    weights: Matrix,
}

/// Whether four elements of an operand may be read at once.
fn by_four(spec: &KernelSpec, operand: usize) -> bool {
    let layout = spec.operands[operand].as_ref().expect("an operand");
    aligned(layout, 4) && strides(layout).last().is_some_and(|s| s.is(1))
}

impl<'a> Block<'a> {
    fn new(cx: &'a Cx<'a>, tiles: &'a Tiles<'a>, plan: Plan, tile: Tile) -> Block<'a> {
        let threads = Threads::new(cx);
        let [q, k, v, weights] = plan.matrices(cx, cx.e.shared());
        let rows = (0..plan.own_rows()).map(|r| tiles.row(tile, threads.own_row(r))).collect();
        Block { cx, tiles, plan, threads, tile, rows, q, k, v, weights }
    }

    fn emit(&self) {
        let (cx, e, plan) = (self.cx, &self.cx.e, self.plan);
        let [from, keys] = self.tiles.seen(self.tile).any;
        let rows = usize::try_from(plan.own_rows()).expect("few");
        let columns = usize::try_from(4 * plan.blocks()).expect("few");
        self.queries();
        let mut init = vec![e.f32(f32::NEG_INFINITY); rows];
        init.extend(vec![e.f32(0.0); rows + rows * columns]);
        let first = e.div_unsigned(from, e.i32(plan.chunk));
        let end = e.div_ceil_const(keys, plan.chunk);
        let done = e.for_loop(first, end, 1, &init, |chunk, state| {
            let first = e.mul_const(chunk, plan.chunk);
            let valid = e.min(e.sub(keys, first), e.i32(plan.chunk));
            // The chunk before has been read.
            e.barrier(Barrier::Block);
            self.keys(first, valid);
            self.values(first, valid);
            e.barrier(Barrier::Block);
            let shape = (plan.own_rows(), plan.chunk / 16);
            let scores = self.threads.rows_by_rows((self.q, self.k), shape, plan.key);
            let (mut next, factors) = self.weigh(first, &scores, state);
            e.barrier(Barrier::Block);
            let sums = state[2 * rows..].iter().enumerate();
            let sums: Vec<Val> = sums.map(|(i, sum)| e.mul(*sum, factors[i / columns])).collect();
            let shape = (plan.own_rows(), plan.blocks());
            let both = (self.weights, self.v);
            next.extend(self.threads.rows_by_columns(both, shape, plan.chunk, &sums));
            next
        });
        let (maxima, rest) = done.split_at(rows);
        let (totals, sums) = rest.split_at(rows);
        let y = cx.result(0);
        let whole = aligned(&cx.spec.results[0], 4);
        let places: Vec<View> =
            self.rows.iter().map(|row| self.tiles.place(&y, self.tile, *row)).collect();
        let scales: Vec<Val> = totals.iter().map(|total| reciprocal(e, *total)).collect();
        let size = plan.sizes.value;
        self.threads.each_strip((plan.own_rows(), plan.blocks()), size, |at, row, column| {
            let row = usize::try_from(row).expect("few");
            e.if_then(self.rows[row].exists, || {
                let scaled = |sum: &Val| e.add(e.mul(*sum, scales[row]), e.f32(0.0));
                let values: Vec<Val> = sums[at..at + 4].iter().map(scaled).collect();
                let one = Dim::from(1);
                self.threads.store(&places[row], &one, &values, column, (size, whole));
            });
        });
        if cx.spec.results.len() > 1 {
            let lse = cx.result(1);
            let leads = e.cmp(Cmp::Eq, self.threads.lane, e.i32(0));
            for (i, row) in self.rows.iter().enumerate() {
                e.if_then(e.and(leads, row.exists), || {
                    let value = log_sum(e, maxima[i], totals[i]);
                    self.tiles.place(&lse, self.tile, *row).store(cx, value, e.i64(0));
                });
            }
        }
    }

    fn queries(&self) {
        let cx = self.cx;
        let q = cx.operand(0);
        let step = q.strides[q.strides.len() - 1].clone();
        let shape = ((self.plan.rows, self.plan.key), (self.tile.rows, self.plan.sizes.key));
        self.threads.fill(self.q, shape.0, shape.1, by_four(cx.spec, 0), &|row| {
            let row = self.tiles.row(self.tile, row);
            let view = self.tiles.place(&q, self.tile, row);
            Line { view, step: step.clone(), scale: None }
        });
    }

    /// Where a key's row of keys or values begins, of those that lie in rows.
    fn line(&self, view: &View, key: Val) -> View {
        self.tiles.at(view, self.tile, key, self.tile.head)
    }

    /// Block and slot of a key in memory.
    fn slot(&self, view: &View, axis: usize, key: Val) -> [Val; 2] {
        let (cx, e) = (self.cx, &self.cx.e);
        let tables = cx.operand(3);
        let size = e.i32(view.shape[axis].as_const().expect("`supports` checked the block size"));
        let table = tables.at(cx, cx.scale(self.tile.segment, &tables.strides[0]));
        let at = e.cast(e.div_unsigned(key, size), Elem::I64);
        let entry = e.cast(table.load(cx, cx.scale(at, &tables.strides[1])), Elem::I64);
        // Whatever the table says, the block is one of the memory's.
        let last = e.add_const(cx.size(&view.shape[0]), -1);
        let entry = e.max(e.min(entry, last), e.i64(0));
        [entry, e.cast(e.rem_unsigned(key, size), Elem::I64)]
    }

    /// A view from a key's block, slot (along `axis`) and head on.
    fn in_block(&self, view: &View, axis: usize, key: Val) -> View {
        let cx = self.cx;
        let [entry, slot] = self.slot(view, axis, key);
        let at = cx.scale(entry, &view.strides[0]);
        let at = cx.offset(at, self.tile.head, &view.strides[1]);
        view.at(cx, cx.offset(at, slot, &view.strides[axis]))
    }

    fn keys(&self, first: Val, valid: Val) {
        let (cx, e, plan) = (self.cx, &self.cx.e, self.plan);
        let k = cx.operand(1);
        let shape = ((plan.chunk, plan.key), (valid, plan.sizes.key));
        let whole = by_four(cx.spec, 1);
        if self.tiles.numbering != Numbering::Paged {
            let step = k.strides[k.strides.len() - 1].clone();
            self.threads.fill(self.k, shape.0, shape.1, whole, &|row| {
                let view = self.line(&k, e.add(first, row));
                Line { view, step: step.clone(), scale: None }
            });
            return;
        }
        let scales = cx.optional(6);
        self.threads.fill_columns(self.k, shape.0, shape.1, whole, &|row| {
            let key = e.add(first, row);
            let scales = scales.as_ref().map(|scales| {
                let at = self.in_block(scales, 2, key);
                (0..4).fold(e.zero(crate::emit::Emitter::f32s(4)), |all, i| {
                    e.insert(at.load(cx, e.i64(i64::from(i))), all, i)
                })
            });
            (self.in_block(&k, 3, key), k.strides[2].clone(), scales)
        });
    }

    fn values(&self, first: Val, valid: Val) {
        let (cx, e, plan) = (self.cx, &self.cx.e, self.plan);
        let v = cx.operand(2);
        let shape = ((plan.chunk, plan.value), (valid, plan.sizes.value));
        let scales = cx.optional(7).filter(|_| self.tiles.numbering == Numbering::Paged);
        self.threads.fill(self.v, shape.0, shape.1, by_four(cx.spec, 2), &|row| {
            let key = e.add(first, row);
            let view = match self.tiles.numbering {
                Numbering::Paged => self.in_block(&v, 2, key),
                Numbering::Packed(_) | Numbering::Batched => self.line(&v, key),
            };
            let scale = scales.as_ref().map(|s| self.in_block(s, 2, key).load(cx, e.i64(0)));
            Line { view, step: Dim::from(1), scale }
        });
    }

    /// What is added to the score of a row and key, in units of log2.
    fn bias(&self) -> Option<(View, Vec<Dim>)> {
        if self.tiles.numbering != Numbering::Batched {
            return None;
        }
        let bias = self.cx.optional(4)?;
        let all = broadcast_strides(&bias.shape, &bias.strides, 4);
        let at = self.cx.scale(self.tile.segment, &all[0]);
        Some((bias.at(self.cx, at), all))
    }

    /// Largest scores and sums of weights after a chunk, and the factors of what was summed before;
    /// its weights go to shared memory.
    fn weigh(&self, first: Val, scores: &[Val], state: &[Val]) -> (Vec<Val>, Vec<Val>) {
        let (cx, e) = (self.cx, &self.cx.e);
        let lowest = e.f32(f32::NEG_INFINITY);
        let others = usize::try_from(self.plan.chunk / 16).expect("few");
        let (mut maxima, mut totals, mut factors) = (Vec::new(), Vec::new(), Vec::new());
        let bias = self.bias();
        for (r, (scores, row)) in scores.chunks_exact(others).zip(&self.rows).enumerate() {
            let columns = (0..).zip(scores).map(|(j, score)| {
                let key = e.add(first, e.add_const(self.threads.lane, 16 * j));
                let mut seen = e.and(e.cmp(Cmp::Ge, key, row.from), e.cmp(Cmp::Lt, key, row.to));
                let mut score = scaled(cx, *score);
                if let Some((bias, strides)) = &bias {
                    // The first key stands in for those that are not there.
                    let key = e.cast(e.select(seen, key, e.i32(0)), Elem::I64);
                    let at = cx.offset(cx.scale(row.head, &strides[1]), key, &strides[3]);
                    let token = e.cast(row.token, Elem::I64);
                    let value = bias.load(cx, cx.offset(at, token, &strides[2]));
                    seen = e.and(seen, e.cmp(Cmp::Ne, value, lowest));
                    score = e.fma(value, e.f32(std::f32::consts::LOG2_E), score);
                }
                e.select(seen, score, lowest)
            });
            let columns: Vec<Val> = columns.collect();
            let max = columns[1..].iter().fold(columns[0], |max, score| e.max(max, *score));
            let max = self.threads.over_row(max, |a, b| e.max(a, b));
            let (max, factor, shift) = advance(e, state[r], max);
            let weights = columns.iter().map(|score| power_of_two(e, e.sub(*score, shift)));
            let weights: Vec<Val> = weights.collect();
            let sum = weights[1..].iter().fold(weights[0], |sum, weight| e.add(sum, *weight));
            let sum = self.threads.over_row(sum, |a, b| e.add(a, b));
            let rows = self.rows.len();
            totals.push(e.fma(state[rows + r], factor, sum));
            for (j, weight) in (0..).zip(weights) {
                let column = e.add_const(self.threads.lane, 16 * j);
                let row = self.threads.own_row(i64::try_from(r).expect("few"));
                self.threads.put(self.weights, row, column, weight);
            }
            maxima.push(max);
            factors.push(factor);
        }
        maxima.extend(totals);
        (maxima, factors)
    }
}
