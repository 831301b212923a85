//! `linear_cross_entropy` and its gradient: logits of a block of rows and a chunk of the other
//! side, which never meet the rest of the logits. `linear_cross_entropy_dlogits` is the same loss,
//! and keeps what becomes of the logits.
//!
//! The loss and `dx` have tiles of tokens, which walk the vocabulary; `dw` has tiles of the
//! vocabulary, which walk the tokens. A tile writes its own rows alone, and every logit and every
//! sum is one chain of fused multiply-adds, so values do not depend on how tiles are shared out.
//! The sum of exponentials is [`super::log_sum_exp`]'s, over chunks of [`CHUNK`].

mod cuda;

use ir::{DType, KernelSpec, Target};

use super::{
    Emitted, Lower, LowerError,
    block::{Block, CHUNK, Chunk, GROUP, SCALAR, VECTOR},
    cx::{Cx, LANES, refuse},
    log_sum_exp::Running,
    view::{View, check_f32s, check_rank},
};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Ty, Val},
    math,
};

/// The family.
pub(super) struct CrossEntropy;

/// Rows of a tile.
const ROWS: i64 = 96;

/// Columns of both sides that are multiplied at a time, so that they stay in cache.
const K_BLOCK: i64 = 512;

impl CrossEntropy {
    fn width(spec: &KernelSpec) -> Result<i64, String> {
        check_f32s(spec, &[0, 1, 3, 4])?;
        let ranks = [2, 2, 1, 1, 1].into_iter().enumerate().take(spec.operands.len());
        ranks.into_iter().try_for_each(|(i, rank)| check_rank(spec, i, rank))?;
        // They are logits before.
        if spec.op == "linear_cross_entropy_dlogits" && spec.results[1].ty.dtype != DType::F32 {
            return Err("gradients of logits are f32".into());
        }
        let [Some(x), _, Some(targets), ..] = spec.operands.as_slice() else {
            return Err("takes x, w and targets".into());
        };
        if targets.ty.dtype != DType::I32 {
            return Err(format!("targets are {}, not i32", targets.ty.dtype));
        }
        let width = x.ty.shape[1].as_const().filter(|k| *k > 0);
        width.ok_or_else(|| "the inner dimension must be a positive constant".into())
    }
}

impl Lower for CrossEntropy {
    fn ops(&self) -> &'static [&'static str] {
        &["linear_cross_entropy", "linear_cross_entropy_dlogits", "linear_cross_entropy_grad"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        CrossEntropy::width(spec).map(|_| ())
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        let width = CrossEntropy::width(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let e = &cx.e;
        let mut block = Block::new(&cx, &[width], ROWS);
        let scores = block.take(ROWS * CHUNK);
        let stats = [block.take(ROWS.max(CHUNK)), block.take(ROWS.max(CHUNK)), block.take(ROWS)];
        let [x, w, targets] = [0, 1, 2].map(|i| cx.operand(i));
        let rows = [x.shape[0].clone(), w.shape[0].clone()];
        let head = Head { cx: &cx, width, block, scores, stats, sides: [x, w], targets };
        let blocks = rows.each_ref().map(|n| n.ceil_div(ROWS));
        let range = |side: usize, index: Val| {
            let first = e.mul_const(index, ROWS);
            (first, e.min(e.i64(ROWS), e.sub(cx.size(&rows[side]), first)))
        };
        let (begin, end) = (e.tile_begin(), e.tile_end());
        if spec.op != "linear_cross_entropy_grad" {
            e.for_each(begin, end, 1, |tile| {
                let (first, count) = range(0, tile);
                head.losses(first, count);
            });
            let scratch = head.block.scratch_bytes();
            return Ok(cx.finish(blocks[0].clone(), scratch));
        }
        // Tiles of tokens take longer, so they are spread evenly among those of the vocabulary.
        let tiles = blocks[0].clone() + blocks[1].clone();
        e.for_each(begin, end, 1, |tile| {
            let before = |tile: Val| {
                let share = e.mul(tile, cx.size(&blocks[0]));
                e.div_unsigned(share, cx.size(&tiles))
            };
            let (of_tokens, next) = (before(tile), before(e.add_const(tile, 1)));
            e.either(
                e.cmp(Cmp::Lt, of_tokens, next),
                || head.gradient(0, range(0, of_tokens)),
                || head.gradient(1, range(1, e.sub(tile, of_tokens))),
            );
        });
        let scratch = head.block.scratch_bytes();
        Ok(cx.finish(tiles, scratch))
    }

    fn emit_cuda(&self, spec: &KernelSpec, target: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        if target.cuda.is_none() {
            return Err(refuse(spec, format!("{target} is no GPU")));
        }
        Ok(vec![cuda::kernel(spec).map_err(|reason| refuse(spec, reason))?])
    }
}

/// What makes gradients of sixteen logits.
struct Logits {
    lse: Val,
    dloss: Val,
    /// Which are those of targets.
    hit: Val,
    /// Which belong to tokens whose targets are not ignored.
    counts: Val,
}

/// Emission state.
struct Head<'c> {
    cx: &'c Cx<'c>,
    width: i64,
    block: Block<'c>,
    /// f32 `[ROWS][CHUNK]`: logits, then their gradients.
    scores: Val,
    /// Of tokens, `[ROWS or CHUNK]` each: the greatest logit, or f32 `lse`; the sum of
    /// exponentials, or `dloss`; the target's logit.
    stats: [Val; 3],
    /// x and w.
    sides: [View; 2],
    targets: View,
}

impl Head<'_> {
    fn line(&self, row: Val) -> Val {
        self.cx.e.at(self.scores, Elem::F32, self.cx.e.mul_const(row, CHUNK))
    }

    fn row(&self, side: usize, row: Val) -> View {
        let view = &self.sides[side];
        view.at(self.cx, self.cx.scale(row, &view.strides[0]))
    }

    /// Number `token` of a vector.
    fn number(&self, view: &View, token: Val) -> Val {
        view.load(self.cx, self.cx.scale(token, &view.strides[0]))
    }

    /// The target of a token, as i64, and whether it counts.
    fn target(&self, token: Val) -> (Val, Val) {
        let e = &self.cx.e;
        let target = e.cast(self.number(&self.targets, token), Elem::I64);
        let rows = self.cx.size(&self.sides[1].shape[0]);
        let counts = e.and(e.cmp(Cmp::Ge, target, e.i64(0)), e.cmp(Cmp::Lt, target, rows));
        (target, counts)
    }

    /// Walks the other side in chunks: takes each and computes its logits. Only for a gradient its
    /// rows are read again.
    fn walk(&self, side: usize, rows: Val, body: impl FnOnce(Chunk)) {
        let (cx, e) = (self.cx, &self.cx.e);
        let all = cx.size(&self.sides[1 - side].shape[0]);
        e.for_each(e.i64(0), all, CHUNK, |first| {
            let chunk = Chunk { first, count: e.min(e.i64(CHUNK), e.sub(all, first)) };
            if cx.spec.op == "linear_cross_entropy_grad" {
                self.block.other(0, chunk.count, |i| self.row(1 - side, e.add(first, i)));
            } else {
                self.block.other_panels(0, chunk.count, &self.row(1 - side, first));
            }
            let count = e.mul_const(rows, CHUNK);
            e.for_each(e.i64(0), count, GROUP, |i| e.store_at(e.zero(VECTOR), self.scores, i));
            e.for_each(e.i64(0), e.i64(self.width), K_BLOCK, |from| {
                let to = e.min(e.add_const(from, K_BLOCK), e.i64(self.width));
                e.for_each(e.i64(0), e.div_ceil_const(chunk.count, GROUP), 1, |group| {
                    let slot = e.mul_const(group, GROUP);
                    self.block.tiles(rows, |tile| self.products(tile, (group, slot), (from, to)));
                });
            });
            body(chunk);
        });
    }

    fn products(&self, tile: &[Val], (group, slot): (Val, Val), columns: (Val, Val)) {
        let e = &self.cx.e;
        let lines: Vec<Val> = tile.iter().map(|row| self.line(*row)).collect();
        let init: Vec<Val> = lines.iter().map(|line| e.load_at(VECTOR, *line, slot)).collect();
        let sums = self.block.products(0, tile, group, columns, &init);
        for (sum, line) in sums.into_iter().zip(lines) {
            e.store_at(sum, line, slot);
        }
    }

    /// Losses, and logarithms of sums, of a block of tokens.
    fn losses(&self, first: Val, count: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let zero = e.i64(0);
        let [max, sum, picked] = self.stats;
        self.block.own(0, count, |row| self.row(0, e.add(first, row)));
        e.for_each(zero, count, 1, |row| {
            e.store_at(e.f32(f32::NEG_INFINITY), max, row);
            e.store_at(e.f32(0.0), sum, row);
            e.store_at(e.f32(0.0), picked, row);
        });
        let dlogits = (cx.spec.op == "linear_cross_entropy_dlogits").then(|| cx.result(1));
        self.walk(0, count, |chunk| {
            e.for_each(zero, count, 1, |row| {
                self.fold(row, e.add(first, row), chunk);
                if let Some(dlogits) = &dlogits {
                    self.keep(dlogits, row, e.add(first, row), chunk);
                }
            });
        });
        let loss = cx.result(0);
        e.for_each(zero, count, 1, |row| {
            let token = e.add(first, row);
            let (_, counts) = self.target(token);
            let [max, sum] = [max, sum].map(|stat| e.load_at(SCALAR, stat, row));
            let total = Running { max, sum }.total(cx);
            let own = e.sub(total, e.load_at(SCALAR, picked, row));
            match &dlogits {
                Some(dlogits) => self.to_dlogits(dlogits, row, token, total),
                None => {
                    let lse = cx.result(1);
                    lse.store(cx, total, cx.scale(token, &lse.strides[0]));
                }
            }
            let own = e.select(counts, own, e.f32(0.0));
            loss.store(cx, own, cx.scale(token, &loss.strides[0]));
        });
    }

    /// Takes a chunk's logits of one row to its maximum, sum and target.
    fn fold(&self, row: Val, token: Val, chunk: Chunk) {
        let (cx, e) = (self.cx, &self.cx.e);
        let line = self.line(row);
        let [max, sum, picked] = self.stats;
        let [before, so_far] = [max, sum].map(|stat| e.load_at(SCALAR, stat, row));
        let now = Running { max: before, sum: so_far }.with(cx, line, chunk.count);
        e.store_at(now.sum, sum, row);
        e.store_at(now.max, max, row);
        let place = e.sub(self.target(token).0, chunk.first);
        let here = e.and(e.cmp(Cmp::Ge, place, e.i64(0)), e.cmp(Cmp::Lt, place, chunk.count));
        e.if_then(here, || e.store_at(e.load_at(SCALAR, line, place), picked, row));
    }

    /// A token's part of a result with columns for the vocabulary, from one of them on.
    fn columns(&self, view: &View, token: Val, column: Val) -> View {
        let row = self.cx.scale(token, &view.strides[0]);
        view.at(self.cx, self.cx.offset(row, column, &view.strides[1]))
    }

    /// Keeps a chunk's logits of one row.
    fn keep(&self, dlogits: &View, row: Val, token: Val, chunk: Chunk) {
        let (cx, e) = (self.cx, &self.cx.e);
        let line = self.line(row);
        let to = self.columns(dlogits, token, chunk.first);
        let step = &to.strides[1];
        cx.strips(e.i64(0), chunk.count, |i, lanes| {
            let logits = e.load_at(Ty::of(Elem::F32, lanes), line, i);
            to.store_strip(cx, logits, cx.scale(i, step), step);
        });
    }

    /// From a token's logits, in place, to their gradients.
    fn to_dlogits(&self, dlogits: &View, row: Val, token: Val, lse: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let (target, counts) = self.target(token);
        let picked = e.load_at(SCALAR, self.stats[2], row);
        let to = self.columns(dlogits, token, e.i64(0));
        let step = &to.strides[1];
        let dloss = self.number(&cx.operand(3), token);
        let n = cx.size(&self.sides[1].shape[0]);
        e.either(
            counts,
            || {
                cx.strips(e.i64(0), n, |i, lanes| {
                    let at = cx.scale(i, step);
                    let logits = to.load_strip(cx, at, step, lanes);
                    let weights = math::exp(e, e.sub(logits, e.splat(lse, lanes)));
                    let gradients = e.mul(weights, e.splat(dloss, lanes));
                    to.store_strip(cx, gradients, at, step);
                });
                let rest = e.sub(math::exp(e, e.sub(picked, lse)), e.f32(1.0));
                to.store(cx, e.mul(rest, dloss), cx.scale(target, step));
            },
            || {
                cx.strips(e.i64(0), n, |i, lanes| {
                    let zero = e.zero(Ty::of(Elem::F32, lanes));
                    to.store_strip(cx, zero, cx.scale(i, step), step);
                });
            },
        );
    }

    /// `dx` of a block of tokens (side 0), or `dw` of a block of the vocabulary (side 1).
    fn gradient(&self, side: usize, (first, count): (Val, Val)) {
        let (cx, e) = (self.cx, &self.cx.e);
        let block = &self.block;
        block.own(0, count, |row| self.row(side, e.add(first, row)));
        block.clear(0, count);
        if side == 0 {
            self.take_stats(first, count);
        }
        self.walk(side, count, |chunk| {
            if side == 1 {
                self.take_stats(chunk.first, chunk.count);
                self.hide_ignored(chunk);
            }
            e.for_each(e.i64(0), count, 1, |row| match side {
                0 => self.by_vocabulary(row, e.add(first, row), chunk),
                _ => self.by_tokens(row, e.add(first, row), chunk),
            });
            block.columns(0, |column| {
                block.tiles(count, |tile| {
                    let factors: Vec<Val> = tile.iter().map(|row| self.line(*row)).collect();
                    block.add(0, &factors, tile, (e.i64(0), chunk.count), column);
                });
            });
        });
        let to = cx.result(side);
        block.finish(0, count, 1.0, |row| to.at(cx, cx.scale(e.add(first, row), &to.strides[0])));
    }

    /// Of tokens from `first` on: `lse`, `dloss` (zero where the target is ignored) and the target.
    fn take_stats(&self, first: Val, count: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let [lse, dloss] = [3, 4].map(|i| cx.operand(i));
        e.for_each(e.i64(0), count, 1, |i| {
            let token = e.add(first, i);
            let (target, counts) = self.target(token);
            e.store_at(self.number(&lse, token), self.stats[0], i);
            let dloss = e.select(counts, self.number(&dloss, token), e.f32(0.0));
            e.store_at(dloss, self.stats[1], i);
            e.store_at(e.cast(target, Elem::I32), self.stats[2], i);
        });
    }

    /// Zero for the rows of a chunk's tokens whose targets are ignored: whatever is in them.
    fn hide_ignored(&self, chunk: Chunk) {
        let e = &self.cx.e;
        e.for_each(e.i64(0), chunk.count, 1, |i| {
            let (_, counts) = self.target(e.add(chunk.first, i));
            let ignored = e.xor(counts, e.int(counts.ty(), 1));
            e.if_then(ignored, || self.block.clear_other(0, i));
        });
    }

    /// Gradients of a token's logits.
    fn by_vocabulary(&self, row: Val, token: Val, chunk: Chunk) {
        let e = &self.cx.e;
        let stat = |i: usize| e.splat(e.load_at(SCALAR, self.stats[i], row), LANES);
        let (lse, dloss) = (stat(0), stat(1));
        let int = |v: Val| e.splat(e.cast(v, Elem::I32), LANES);
        let (target, counts) = self.target(token);
        let (target, counts) = (int(e.sub(target, chunk.first)), e.splat(counts, LANES));
        let lanes = e.iota(Ty::Vector(Elem::I32, LANES));
        self.each_group(row, chunk, |slot| {
            let hit = e.cmp(Cmp::Eq, e.add(lanes, int(slot)), target);
            Logits { lse, dloss, hit, counts }
        });
    }

    /// Gradients of the logits of one row of w.
    fn by_tokens(&self, row: Val, own: Val, chunk: Chunk) {
        let e = &self.cx.e;
        let int = |v: Val| e.splat(e.cast(v, Elem::I32), LANES);
        let (own, rows) = (int(own), int(self.cx.size(&self.sides[1].shape[0])));
        self.each_group(row, chunk, |slot| {
            let [lse, dloss] = [0, 1].map(|i| e.load_at(VECTOR, self.stats[i], slot));
            let targets = e.load_at(Ty::Vector(Elem::I32, LANES), self.stats[2], slot);
            let below = e.cmp(Cmp::Lt, targets, rows);
            let counts = e.and(below, e.cmp(Cmp::Ge, targets, e.zero(targets.ty())));
            Logits { lse, dloss, hit: e.cmp(Cmp::Eq, targets, own), counts }
        });
    }

    /// From logits to gradients.
    fn each_group(&self, row: Val, chunk: Chunk, of: impl FnOnce(Val) -> Logits) {
        let e = &self.cx.e;
        let line = self.line(row);
        e.for_each(e.i64(0), e.div_ceil_const(chunk.count, GROUP), 1, |group| {
            let slot = e.mul_const(group, GROUP);
            let Logits { lse, dloss, hit, counts } = of(slot);
            let weight = math::exp(e, e.sub(e.load_at(VECTOR, line, slot), lse));
            let rest = e.select(hit, e.sub(weight, e.float(VECTOR, 1.0)), weight);
            let gradient = e.mul(rest, dloss);
            e.store_at(e.select(counts, gradient, e.zero(VECTOR)), line, slot);
        });
    }
}
