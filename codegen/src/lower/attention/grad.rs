//! `attention_grad`: a tile is a block of rows against chunks of the other side of the scores.
//!
//! Dao 2023, arXiv:2307.08691. There are two kinds of tiles, and none writes what another does:
//! - of queries (tokens times the heads of a group), which walk chunks of keys and sum `dq`;
//! - of keys, which walk chunks of queries, one head of the group after the other, and sum `dk` and
//!   `dv`.
//!
//! Both are the same computation with the sides of the scores exchanged. Weights come from the
//! logarithms of the forward sums, so nothing is rescaled on the way. Chunks are aligned to the
//! start of their sequence, and every sum is one chain of fused multiply-adds over what a row sees,
//! in its order, and nothing else. So values depend neither on how tiles are shared among threads
//! nor on what else is in a tile.

mod cuda;
mod scores;

use std::ops::Range;

use ir::{Dim, KernelSpec, Target};

use self::scores::{Role, Scores};
use super::{Piece, Sizes, bound, i32s, paged::after_window, pieces, required, sizes};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Ty, Val},
    lower::{
        Emitted, Lower, LowerError,
        block::{Block, CHUNK, Chunk},
        cx::{Cx, refuse},
        view::{View, check_f32s, check_rank},
    },
};

/// The family.
pub(in crate::lower) struct AttentionGrad;

/// Rows of a tile, about.
const ROWS: i64 = 96;

impl AttentionGrad {
    fn sizes(spec: &KernelSpec) -> Result<Sizes, String> {
        check_f32s(spec, &[0, 1, 2, 3, 4, 5])?;
        for (i, rank) in [3, 3, 3, 3, 2, 3, 1].into_iter().enumerate() {
            check_rank(spec, i, rank)?;
        }
        i32s(required(spec, 6)?)?;
        sizes(required(spec, 0)?, (required(spec, 1)?, 1, 2), (required(spec, 2)?, 2), 1)
    }
}

impl Lower for AttentionGrad {
    fn ops(&self) -> &'static [&'static str] {
        &["attention_grad"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        AttentionGrad::sizes(spec).map(|_| ())
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        let sizes = AttentionGrad::sizes(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let e = &cx.e;
        let tokens_of_queries = (ROWS / sizes.group).max(1);
        let rows = ROWS.max(tokens_of_queries * sizes.group);
        let block = Block::new(&cx, &[sizes.key, sizes.value], rows);
        let scores = Scores::new(block, rows);
        let [q, k, v, y, lse, dy, offsets] = [0, 1, 2, 3, 4, 5, 6].map(|i| cx.operand(i));
        let [dq, dk, dv] = [0, 1, 2].map(|i| cx.result(i));
        let tokens = q.shape[0].clone();
        let grad = Grad { cx: &cx, sizes, scores, q, k, v, y, lse, dy, dq, dk, dv };
        // Tiles of queries, then those of keys, of one head after the other.
        let (of_queries, of_keys) = (tokens.ceil_div(tokens_of_queries), tokens.ceil_div(ROWS));
        let each = of_queries.clone() + of_keys;
        let tiles = Dim::from(sizes.kv_heads) * each.clone();
        let range = |index: Val, size: i64| {
            let from = e.mul_const(index, size);
            from..e.min(e.add_const(from, size), cx.size(&tokens))
        };
        let some = |piece: &Piece| e.cmp(Cmp::Gt, piece.tokens, e.i64(0));
        e.for_each(e.tile_begin(), e.tile_end(), 1, |tile| {
            let (head, index) =
                (e.div_unsigned(tile, cx.size(&each)), e.rem_unsigned(tile, cx.size(&each)));
            let of_queries = cx.size(&of_queries);
            e.either(
                e.cmp(Cmp::Lt, index, of_queries),
                || {
                    let range = range(index, tokens_of_queries);
                    pieces(&cx, &offsets, head, range.clone(), |piece| {
                        e.if_then(some(&piece), || grad.queries(&piece));
                    });
                    outside(&cx, &offsets, &range, |token| {
                        let first = e.mul_const(head, sizes.group);
                        e.for_each(e.i64(0), e.i64(sizes.group), 1, |i| {
                            grad.clear(&grad.dq, token, e.add(first, i));
                        });
                    });
                },
                || {
                    let range = range(e.sub(index, of_queries), ROWS);
                    pieces(&cx, &offsets, head, range.clone(), |piece| {
                        e.if_then(some(&piece), || grad.keys(&piece));
                    });
                    outside(&cx, &offsets, &range, |token| {
                        grad.clear(&grad.dk, token, head);
                        grad.clear(&grad.dv, token, head);
                    });
                },
            );
        });
        let scratch = grad.scores.block.scratch_bytes();
        Ok(cx.finish(tiles, scratch))
    }

    fn emit_cuda(&self, spec: &KernelSpec, target: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        let sizes = AttentionGrad::sizes(spec);
        let kernel = sizes.and_then(|sizes| cuda::kernel(spec, sizes, target));
        kernel.map(|kernel| vec![kernel]).map_err(|reason| refuse(spec, reason))
    }
}

/// The tokens of a range that are in no sequence.
fn outside(cx: &Cx<'_>, offsets: &View, range: &Range<Val>, body: impl Fn(Val)) {
    let e = &cx.e;
    let count = cx.size(&(offsets.shape[0].clone() - Dim::from(1)));
    let [first, last] = [e.i64(0), count].map(|i| bound(cx, offsets, i));
    e.for_each(range.start, e.min(range.end, first), 1, &body);
    e.for_each(e.max(range.start, last), range.end, 1, &body);
}

/// Operands and results.
struct Grad<'c> {
    cx: &'c Cx<'c>,
    sizes: Sizes,
    scores: Scores<'c>,
    q: View,
    k: View,
    v: View,
    y: View,
    lse: View,
    dy: View,
    dq: View,
    dk: View,
    dv: View,
}

impl Grad<'_> {
    /// A token and head of a tensor.
    fn row(&self, view: &View, token: Val, head: Val) -> View {
        let offset = self.cx.scale(token, &view.strides[0]);
        view.at(self.cx, self.cx.offset(offset, head, &view.strides[1]))
    }

    /// Zero for a token and head.
    fn clear(&self, view: &View, token: Val, head: Val) {
        let (cx, e, row) = (self.cx, &self.cx.e, self.row(view, token, head));
        let step = &row.strides[2];
        cx.strips(e.i64(0), cx.size(&row.shape[2]), |i, lanes| {
            row.store_strip(cx, e.zero(Ty::of(Elem::F32, lanes)), cx.scale(i, step), step);
        });
    }

    fn causal(&self) -> bool {
        self.cx.spec.attrs.str("mask") == "causal"
    }

    /// Walks the chunks of the other side that any of `rows` rows sees; each row's limits grow with
    /// its number.
    fn walk(
        &self,
        role: Role,
        rows: Val,
        limits: &dyn Fn(Val) -> (Val, Val),
        chunk: impl FnOnce(Chunk, &dyn Fn(Chunk)),
    ) {
        let e = &self.cx.e;
        let (first, end) = (limits(e.i64(0)).0, limits(e.add_const(rows, -1)).1);
        let start = e.mul_const(e.div_unsigned(first, e.i64(CHUNK)), CHUNK);
        e.for_each(start, end, CHUNK, |first| {
            let count = e.min(e.i64(CHUNK), e.sub(end, first));
            chunk(Chunk { first, count }, &|chunk| self.scores.multiply(role, rows, chunk, limits));
        });
    }

    /// `dq` of the piece's tokens and the heads of its group.
    fn queries(&self, piece: &Piece) {
        let (e, block) = (&self.cx.e, &self.scores.block);
        let group = e.i64(self.sizes.group);
        let rows = e.mul(piece.tokens, group);
        let place = |row: Val| {
            let head = e.add(e.mul(piece.kv_head, group), e.rem_unsigned(row, group));
            (e.add(piece.first, e.div_unsigned(row, group)), head)
        };
        let of = |view: &View, row: Val| {
            let (token, head) = place(row);
            self.row(view, token, head)
        };
        block.own(0, rows, |row| of(&self.q, row));
        block.own(1, rows, |row| of(&self.dy, row));
        self.scores.own_stats(rows, |row| (of(&self.lse, row), of(&self.y, row)));
        block.clear(0, rows);
        let length = e.sub(piece.end, piece.start);
        let limits = |row: Val| {
            let position = e.sub(place(row).0, piece.start);
            let end = if self.causal() { e.add_const(position, 1) } else { length };
            (after_window(self.cx, position), end)
        };
        self.walk(Role::Queries, rows, &limits, |chunk, multiply| {
            let first = e.add(piece.start, chunk.first);
            for (i, view) in [(0, &self.k), (1, &self.v)] {
                let row = |i: Val| self.row(view, e.add(first, i), piece.kv_head);
                block.other(i, chunk.count, row);
            }
            multiply(chunk);
        });
        block.finish(0, rows, self.cx.spec.attrs.float("scale"), |row| of(&self.dq, row));
    }

    /// `dk` and `dv` of the piece's tokens.
    fn keys(&self, piece: &Piece) {
        let (e, block) = (&self.cx.e, &self.scores.block);
        let rows = piece.tokens;
        let of = |view: &View, row: Val| self.row(view, e.add(piece.first, row), piece.kv_head);
        for (i, view) in [(0, &self.k), (1, &self.v)] {
            block.own(i, rows, |row| of(view, row));
            block.clear(i, rows);
        }
        let length = e.sub(piece.end, piece.start);
        let limits = |row: Val| {
            let position = e.add(e.sub(piece.first, piece.start), row);
            let first = if self.causal() { position } else { e.i64(0) };
            let end = match self.cx.spec.attrs.int("window") {
                0 => length,
                window => e.min(e.add_const(position, window), length),
            };
            (first, end)
        };
        self.walk(Role::Keys, rows, &limits, |chunk, multiply| {
            let first = e.add(piece.start, chunk.first);
            e.for_each(e.i64(0), e.i64(self.sizes.group), 1, |head| {
                let head = e.add(e.mul_const(piece.kv_head, self.sizes.group), head);
                let of = |view: &View, i: Val| self.row(view, e.add(first, i), head);
                block.other(0, chunk.count, |i| of(&self.q, i));
                block.other(1, chunk.count, |i| of(&self.dy, i));
                self.scores.other_stats(chunk.count, |i| (of(&self.lse, i), of(&self.y, i)));
                multiply(chunk);
            });
        });
        block.finish(0, rows, self.cx.spec.attrs.float("scale"), |row| of(&self.dk, row));
        block.finish(1, rows, 1.0, |row| of(&self.dv, row));
    }
}
