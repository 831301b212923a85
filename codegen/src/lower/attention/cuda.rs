//! Attention on GPUs with `mma.sync`, after FlashAttention-2 (Dao 2023, arXiv:2307.08691).
//!
//! A block has 64 rows, tokens times query heads of one key/value head, sixteen a warp (or a pair
//! of warps, half of the values' elements each, where those are more than 128), and walks the keys
//! of a sequence in chunks of 64 (of 32 for values beyond 64, so that registers suffice) from the
//! sequence's start on, two of them in shared memory. Queries and weights are rounded to the type
//! of keys and values, scores and sums are f32. A row meets the same chunks in the same order
//! whatever the other rows are, and a chunk of which it sees nothing leaves its sums as they are:
//! its bits depend neither on the batch nor on how a prompt is split.

mod chunk;
mod softmax;

use ir::{DType, Dim, KernelSpec};

use super::{Sizes, dense, required};
use crate::{
    cuda::CudaKernel,
    emit::{Barrier, Cmp, Elem, Emitter, Ty, Val},
    lower::{
        cx::Cx,
        view::{View, memory_elem, strides},
    },
};
use chunk::{Chunks, Memory, place};

/// Rows of a block.
const ROWS: i64 = 64;
/// Warps that the rows are divided among.
const WARPS: i64 = 4;
const WORD: Ty = Ty::Scalar(Elem::I32);

/// Checks what the kernels need beyond what the operators' family does.
fn check(spec: &KernelSpec, sizes: Sizes) -> Result<(), String> {
    let (q, k, v) = (required(spec, 0)?, required(spec, 1)?, required(spec, 2)?);
    if k.ty.dtype == DType::I8 {
        return Err("keys and values in i8 have no GPU kernel; take bf16 or f16".into());
    }
    if !matches!(k.ty.dtype, DType::Bf16 | DType::F16) || k.ty.dtype != v.ty.dtype {
        return Err(format!("tensor cores take keys and values in bf16 or f16, not {k} and {v}"));
    }
    if q.ty.rank() != 3 {
        return Err("the batched form has no GPU kernel".into());
    }
    if ROWS % sizes.group != 0 {
        return Err(format!("{} query heads of a key/value head", sizes.group));
    }
    let head = |n: i64| n % 16 == 0 && (16..=256).contains(&n);
    if !head(sizes.key) || !head(sizes.value) {
        return Err(format!("heads of {} and {}", sizes.key, sizes.value));
    }
    if sizes.value > 64 && sizes.key < 64 {
        return Err(format!("keys of {} with values of {}", sizes.key, sizes.value));
    }
    dense(q, 2)?;
    for layout in [q, k, v, &spec.results[0]] {
        let all = strides(layout);
        let whole = |s: &Dim| s.is(1) || s.as_const().is_some_and(|s| s % 8 == 0);
        if !all.iter().all(whole) {
            return Err(format!("{layout}: strides must be multiples of eight"));
        }
    }
    Ok(())
}

impl Sizes {
    /// Groups of warps that share the rows, each with its part of the values' elements.
    const fn parts(self) -> i64 {
        if self.value > 128 { 2 } else { 1 }
    }

    fn threads(self) -> u32 {
        u32::try_from(32 * WARPS * self.parts()).expect("few warps")
    }
}

/// The kernel of `attention`, packed, or of `paged_attention`.
///
/// # Errors
/// What GPU kernels do not support.
pub(super) fn kernel(spec: &KernelSpec, sizes: Sizes) -> Result<CudaKernel, String> {
    check(spec, sizes)?;
    let cx = Cx::cuda(spec, sizes.threads());
    let memory = Memory::of(&cx, sizes);
    let chunks = Chunks { cx: &cx, sizes, memory, shared: cx.e.shared() };
    let shared = u32::try_from(chunks.bytes()).expect("chunks fit");
    let per_block = ROWS / sizes.group;
    let block = Block { cx: &cx, sizes, chunks: &chunks, thread: cx.e.thread() };
    block.emit(per_block);
    let blocks = cx.result(0).shape[0].ceil_div(per_block);
    let grid = [blocks, Dim::from(sizes.kv_heads), 1.into()];
    // All but tables, offsets and positions.
    let result = u32::try_from(spec.operands.len()).expect("few operands");
    Ok(cx.finish_cuda(grid, shared, &[], |arg| arg < 3 || arg == result))
}

/// Emission state of a block.
struct Block<'a> {
    cx: &'a Cx<'a>,
    sizes: Sizes,
    chunks: &'a Chunks<'a>,
    thread: Val,
}

/// The part of a block's tokens that is of one sequence.
#[derive(Clone, Copy)]
struct Piece {
    segment: Val,
    /// First token of the sequence and the one past its last.
    start: Val,
    end: Val,
    /// First token of the piece, and how many there are.
    first: Val,
    count: Val,
}

/// One of the two rows of a lane.
#[derive(Clone, Copy)]
struct Row {
    /// Token and query head; those of the first row where there is none.
    token: Val,
    head: Val,
    exists: Val,
    /// Keys that it sees, i32.
    from: Val,
    to: Val,
}

impl Block<'_> {
    fn emit(&self, per_block: i64) {
        let (cx, e) = (self.cx, &self.cx.e);
        let offsets = cx.operand(if cx.spec.op == "attention" { 3 } else { 4 });
        let tokens = cx.size(&cx.result(0).shape[0]);
        let segments = cx.size(&(offsets.shape[0].clone() - Dim::from(1)));
        let bound = |i: Val| e.cast(offsets.load(cx, cx.scale(i, &offsets.strides[0])), Elem::I64);
        let from = e.mul_const(e.cast(e.block('x'), Elem::I64), per_block);
        let to = e.min(e.add_const(from, per_block), tokens);
        // Sequences that end before the block, and those that begin before its end.
        let zero = e.i64(0);
        let range = e.for_loop(zero, segments, 1, &[zero, zero], |i, found| {
            let one = |hit: Val| e.cast(hit, Elem::I64);
            let ended = one(e.cmp(Cmp::Le, bound(e.add_const(i, 1)), from));
            let begun = one(e.cmp(Cmp::Lt, bound(i), to));
            vec![e.add(found[0], ended), e.add(found[1], begun)]
        });
        e.for_each(range[0], range[1], 1, |segment| {
            let (start, end) = (bound(segment), bound(e.add_const(segment, 1)));
            let first = e.max(start, from);
            let count = e.sub(e.min(end, to), first);
            self.piece(Piece { segment, start, end, first, count });
        });
    }

    /// Keys that a token sees: the first one and the one past the last, i32.
    fn visible(&self, piece: Piece, token: Val) -> [Val; 2] {
        let (cx, e) = (self.cx, &self.cx.e);
        let position = if cx.spec.op == "attention" {
            e.cast(e.sub(token, piece.start), Elem::I32)
        } else {
            let positions = cx.operand(5);
            positions.load(cx, cx.scale(token, &positions.strides[0]))
        };
        let from = match cx.spec.attrs.int("window") {
            0 => e.i32(0),
            window => e.max(e.add_const(position, 1 - window), e.i32(0)),
        };
        let to = if cx.spec.attrs.str("mask") == "causal" {
            e.add_const(position, 1)
        } else {
            e.cast(e.sub(piece.end, piece.start), Elem::I32)
        };
        [from, to]
    }

    fn row(&self, piece: Piece, index: Val) -> Row {
        let e = &self.cx.e;
        let group = e.i32(self.sizes.group);
        let token = e.cast(e.div_unsigned(index, group), Elem::I64);
        let exists = e.cmp(Cmp::Lt, token, piece.count);
        let token = e.add(piece.first, e.select(exists, token, e.i64(0)));
        let within = e.rem_unsigned(index, group);
        let head = e.add(e.mul_const(e.block('y'), self.sizes.group), within);
        let [from, to] = self.visible(piece, token);
        Row { token, head: e.cast(head, Elem::I64), exists, from, to }
    }

    /// Where a row of q or y begins.
    fn place_of(&self, view: &View, row: Row) -> View {
        let cx = self.cx;
        let offset = cx.offset(cx.scale(row.token, &view.strides[0]), row.head, &view.strides[1]);
        view.at(cx, offset)
    }

    fn piece(&self, piece: Piece) {
        let e = &self.cx.e;
        let lane = e.and(self.thread, e.i32(31));
        let warp = e.and(e.shr(self.thread, 5), e.i32(WARPS - 1));
        let first = e.add(e.shl(warp, 4), e.shr(lane, 2));
        let rows = [0, 8].map(|below| self.row(piece, e.add_const(first, below)));
        // Keys that any row sees.
        let most = e.int(WORD, i32::MAX.into());
        let last = e.add(piece.first, piece.count);
        let seen = e.for_loop(piece.first, last, 1, &[most, e.i32(0)], |token, seen| {
            let [from, to] = self.visible(piece, token);
            vec![e.min(seen[0], from), e.max(seen[1], to)]
        });
        let keys = self.chunks.keys();
        let bounds = (e.div_unsigned(seen[0], e.i32(keys)), e.div_ceil_const(seen[1], keys));
        self.queries(piece);
        self.chunks.fetch(piece, bounds.0, seen[1], e.i32(0));
        e.ptx("cp.async.commit_group;", &[]);
        let sums = usize::try_from(self.sizes.value / 2 / self.sizes.parts()).expect("small");
        // Stage, then largest score and sum of weights of both rows, then sums of values.
        let mut init = vec![e.i32(0)];
        init.extend([e.f32(f32::NEG_INFINITY); 2]);
        init.extend(vec![e.f32(0.0); 2 + sums]);
        let done = e.for_loop(bounds.0, bounds.1, 1, &init, |chunk, carried| {
            let stage = carried[0];
            let other = e.sub(e.i32(self.chunks.stage_bytes()), stage);
            let next = e.add_const(chunk, 1);
            e.if_then(e.cmp(Cmp::Lt, next, bounds.1), || {
                self.chunks.fetch(piece, next, seen[1], other);
            });
            e.ptx("cp.async.commit_group;", &[]);
            e.ptx("cp.async.wait_group 1;", &[]);
            e.barrier(Barrier::Block);
            let scores = self.scores(stage);
            let (state, weights) = self.weigh(rows, chunk, &scores, &carried[1..]);
            let sums = self.add_values(stage, &weights, &state[4..]);
            e.barrier(Barrier::Block);
            [other].into_iter().chain(state[..4].iter().copied()).chain(sums).collect()
        });
        self.store(rows, &done[3..5], &done[5..]);
        // The next piece overwrites the queries.
        e.barrier(Barrier::Block);
    }

    /// Rounds the queries of the block into shared memory.
    fn queries(&self, piece: Piece) {
        let (cx, e) = (self.cx, &self.cx.e);
        let q = cx.operand(0);
        let units = self.sizes.key / 8;
        let threads = i64::from(e.threads());
        for i in 0..ROWS * units / threads {
            let unit = e.add_const(self.thread, i * threads);
            let index = e.div_unsigned(unit, e.i32(units));
            let unit = e.rem_unsigned(unit, e.i32(units));
            let to = e.add(self.chunks.queries(), place(e, index, unit, units));
            let row = self.row(piece, index);
            let from = self.place_of(&q, row);
            let column = e.cast(e.shl(unit, 3), Elem::I64);
            let at = e.at(from.base, memory_elem(q.dtype), column);
            let values = e.load_whole(Ty::Vector(memory_elem(q.dtype), 8), at);
            let values = e.cast(values, Elem::F32);
            let zero = e.zero(values.ty());
            let values = e.select(row.exists, values, zero);
            let mut operands = vec![to];
            operands.extend(
                (0..4)
                    .map(|i| self.round([e.extract(values, 2 * i), e.extract(values, 2 * i + 1)])),
            );
            e.ptx("st.shared.v4.b32 [$0], {$1, $2, $3, $4};", &operands);
        }
    }

    /// Two f32 as one word of two numbers of the type of keys, the first one low.
    fn round(&self, pair: [Val; 2]) -> Val {
        let text = format!("cvt.rn.{}x2.f32 $0, $2, $1;", self.chunks.type_name());
        self.cx.e.ptx_pure(&text, &[WORD], &pair)[0]
    }

    /// Adds a step of sixteen to blocks of 16 x 8 sums.
    fn multiply(&self, left: &[Val; 4], right: [Val; 2], sums: &mut [Val]) {
        let name = self.chunks.type_name();
        let text = format!(
            "mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32 {{$0, $1, $2, $3}}, {{$8, $9, \
             $10, $11}}, {{$12, $13}}, {{$0, $1, $2, $3}};"
        );
        let operands: Vec<Val> = left.iter().copied().chain(right).collect();
        sums.copy_from_slice(&self.cx.e.ptx_update(&text, sums, &operands));
    }

    /// Products of queries and keys: four a block of eight keys.
    fn scores(&self, stage: Val) -> Vec<Val> {
        let e = &self.cx.e;
        let mut scores = vec![e.f32(0.0); usize::try_from(self.chunks.keys() / 2).expect("small")];
        for step in 0..self.sizes.key / 16 {
            let left = self.chunks.query_fragment(self.thread, step);
            for j in 0..self.chunks.keys() / 16 {
                let right = self.chunks.key_fragment(self.thread, stage, j, step);
                for (half, right) in right.into_iter().enumerate() {
                    let block = 2 * usize::try_from(j).expect("small") + half;
                    self.multiply(&left, right, &mut scores[4 * block..][..4]);
                }
            }
        }
        scores
    }

    /// Adds the products of weights and values.
    fn add_values(&self, stage: Val, weights: &[Val], sums: &[Val]) -> Vec<Val> {
        let mut sums = sums.to_vec();
        for step in 0..self.chunks.keys() / 16 {
            let at = 8 * usize::try_from(step).expect("small");
            // Sums of 16 x 8 lie in lanes as two of the four parts of a left operand do.
            let part = |i: usize| self.round([weights[at + i], weights[at + i + 1]]);
            let left = [part(0), part(2), part(4), part(6)];
            for j in 0..self.sizes.value / 16 / self.sizes.parts() {
                let right = self.chunks.value_fragment(self.thread, stage, j, step);
                for (half, right) in right.into_iter().enumerate() {
                    let block = 2 * usize::try_from(j).expect("small") + half;
                    self.multiply(&left, right, &mut sums[4 * block..][..4]);
                }
            }
        }
        sums
    }

    fn store(&self, rows: [Row; 2], totals: &[Val], sums: &[Val]) {
        let (cx, e) = (self.cx, &self.cx.e);
        let y = cx.result(0);
        let pair = e.shl(e.and(self.thread, e.i32(3)), 1);
        let pair = e.add(pair, e.mul_const(self.chunks.part(self.thread), self.sizes.value / 2));
        for (half, row) in rows.into_iter().enumerate() {
            let total = [1, 2]
                .into_iter()
                .fold(totals[half], |sum, mask| e.add(sum, e.shuffle_xor(sum, mask)));
            let none = e.cmp(Cmp::Eq, total, e.f32(0.0));
            let scale = e.select(none, e.f32(0.0), e.div(e.f32(1.0), total));
            let y = self.place_of(&y, row);
            e.if_then(row.exists, || {
                for (j, block) in (0..).zip(sums.chunks_exact(4)) {
                    let zero = e.zero(Emitter::f32s(2));
                    let value = e.insert(block[2 * half], zero, 0);
                    let value = e.insert(block[2 * half + 1], value, 1);
                    let value = e.mul(value, e.splat(scale, 2));
                    // Adding zero turns -0 to +0, as chunks of unseen keys may.
                    let value = e.add(value, zero);
                    let column = e.cast(e.add_const(pair, 8 * j), Elem::I64);
                    y.store_strip(cx, value, column, &Dim::from(1));
                }
            });
        }
    }
}
