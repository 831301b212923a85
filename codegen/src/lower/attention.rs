//! `attention`, `attention_lse`, `paged_attention` and `attention_grad`.
//!
//! The first three go through one [`flash`] core, in chunks of keys aligned to the start of their
//! sequence and in one order, so a row's result is the same bits whichever operator, cache layout,
//! batch, chunking of the prompt or number of threads it is computed with, as long as its keys and
//! values are.
//!
//! A tile is a key/value head and a block of tokens, heads first: threads get whole heads where
//! there are enough of them, and the rows of a tile share what is read of keys and values.

mod cuda;
mod dense;
mod flash;
mod grad;
mod paged;

use std::ops::Range;

use ir::{DType, Dim, KernelSpec, Layout, Target};

use self::{dense::Dense, flash::Flash, paged::Paged};
use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, refuse, stored_bytes},
    view::{View, check_f32s, check_rank, strides},
};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Val},
};

pub(super) use grad::AttentionGrad;

/// `attention`, packed or batched, and `attention_lse`.
pub(super) struct Attention;

/// `paged_attention`.
pub(super) struct PagedAttention;

/// Rows (tokens times query heads of a group) of a tile, about. Transposing keys is worth more
/// rows.
const DENSE_ROWS: i64 = 48;
const PAGED_ROWS: i64 = 24;

/// Keys of a group, which a vector of scores covers.
const GROUP: i64 = 16;

/// Constant sizes of an application.
#[derive(Clone, Copy)]
struct Sizes {
    /// Elements of a key.
    key: i64,
    /// Elements of a value.
    value: i64,
    kv_heads: i64,
    /// Query heads that read one key/value head.
    group: i64,
}

/// Finds the sizes; `axes` are the axis of query heads, and those of key heads, key and value size.
fn sizes(
    q: &Layout,
    k: (&Layout, usize, usize),
    v: (&Layout, usize),
    heads: usize,
) -> Result<Sizes, String> {
    let get = |layout: &Layout, axis: usize| {
        let size = layout.ty.shape.get(axis).and_then(Dim::as_const).filter(|s| *s > 0);
        size.ok_or_else(|| format!("{layout}: heads and their sizes must be positive constants"))
    };
    let (heads, kv_heads) = (get(q, heads)?, get(k.0, k.1)?);
    if heads % kv_heads != 0 {
        return Err(format!("{heads} query heads over {kv_heads} key/value heads"));
    }
    Ok(Sizes { key: get(k.0, k.2)?, value: get(v.0, v.1)?, kv_heads, group: heads / kv_heads })
}

/// Asserts that an axis is dense.
fn dense(layout: &Layout, axis: usize) -> Result<(), String> {
    let stride = &strides(layout)[axis];
    if stride.is(1) || layout.ty.shape[axis].is(1) {
        Ok(())
    } else {
        Err(format!("{layout}: axis {axis} must be dense"))
    }
}

fn required(spec: &KernelSpec, i: usize) -> Result<&Layout, String> {
    let layout = spec.operands.get(i).and_then(Option::as_ref);
    layout.ok_or_else(|| format!("operand {i} is missing"))
}

fn i32s(layout: &Layout) -> Result<(), String> {
    if layout.ty.dtype == DType::I32 { Ok(()) } else { Err(format!("{layout} must be i32")) }
}

impl Attention {
    fn sizes(spec: &KernelSpec) -> Result<Sizes, String> {
        check_f32s(spec, &[0, 1, 2, 4])?;
        let (q, k, v) = (required(spec, 0)?, required(spec, 1)?, required(spec, 2)?);
        let rank = q.ty.rank();
        if !(3..=4).contains(&rank) || k.ty.rank() != rank || v.ty.rank() != rank {
            return Err(format!("takes q, k, v of rank 3 or 4, got {q}, {k}, {v}"));
        }
        dense(v, rank - 1)?;
        dense(&spec.results[0], rank - 1)?;
        if rank == 3 {
            i32s(required(spec, 3)?)?;
        }
        if let Some(Some(bias)) = spec.operands.get(4)
            && bias.ty.dtype != DType::F32
        {
            return Err(format!("bias {bias} must be f32"));
        }
        sizes(q, (k, 1, rank - 1), (v, rank - 1), 1)
    }
}

impl Lower for Attention {
    fn ops(&self) -> &'static [&'static str] {
        &["attention", "attention_lse"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        Attention::sizes(spec).map(|_| ())
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        let sizes = Attention::sizes(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let per_tile = (DENSE_ROWS / sizes.group).max(1);
        let flash = Flash::new(&cx, sizes, per_tile);
        let (tiles, scratch) = if cx.operand(0).shape.len() == 3 {
            packed(&cx, &flash, per_tile)
        } else {
            batched(&cx, &flash, per_tile)
        };
        Ok(cx.finish(tiles, scratch))
    }

    fn emit_cuda(&self, spec: &KernelSpec, target: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        let kernels = Attention::sizes(spec).and_then(|sizes| cuda::kernels(spec, sizes, target));
        kernels.map_err(|reason| refuse(spec, reason))
    }
}

fn packed(cx: &Cx<'_>, flash: &Flash<'_>, per_tile: i64) -> (Dim, u64) {
    let panels = cx.scratch(flash.scratch_bytes());
    let [q, k, v, offsets] = [0, 1, 2, 3].map(|i| cx.operand(i));
    let y = cx.result(0);
    let lse = (cx.spec.results.len() > 1).then(|| cx.result(1));
    let head = |view: &View, head: Val| view.at(cx, cx.scale(head, &view.strides[1]));
    let tiles = segments(cx, flash, &offsets, per_tile, |piece| {
        let at = |view: &View, token: Val| view.at(cx, cx.scale(token, &view.strides[0]));
        let (k, v) = (head(&k, piece.kv_head), head(&v, piece.kv_head));
        let dense = Dense {
            cx,
            sizes: flash.sizes,
            q: (
                at(&q, piece.start),
                [q.strides[0].clone(), q.strides[1].clone(), q.strides[2].clone()],
            ),
            y: (at(&y, piece.start), [y.strides[0].clone(), y.strides[1].clone()]),
            lse: lse.as_ref().map(|lse| {
                (at(lse, piece.start), [lse.strides[0].clone(), lse.strides[1].clone()])
            }),
            k: (at(&k, piece.start), [k.strides[0].clone(), k.strides[2].clone()]),
            v: (at(&v, piece.start), v.strides[0].clone()),
            bias: None,
            keys: cx.e.sub(piece.end, piece.start),
            shift: cx.e.i64(0),
            panels,
        };
        let first = cx.e.sub(piece.first, piece.start);
        flash.attend(&dense, first, piece.tokens, piece.kv_head);
    });
    (tiles, flash.scratch_bytes() + dense::panel_bytes(flash.sizes))
}

fn batched(cx: &Cx<'_>, flash: &Flash<'_>, per_tile: i64) -> (Dim, u64) {
    let e = &cx.e;
    let panels = cx.scratch(flash.scratch_bytes());
    let [q, k, v] = [0, 1, 2].map(|i| cx.operand(i));
    let (bias, y) = (cx.optional(4), cx.result(0));
    let (queries, keys) = (q.shape[2].clone(), k.shape[2].clone());
    let blocks = queries.ceil_div(per_tile);
    let heads = Dim::from(flash.sizes.kv_heads);
    let tiles = q.shape[0].clone() * heads * blocks.clone();
    e.for_each(e.tile_begin(), e.tile_end(), 1, |tile| {
        let block = e.rem_unsigned(tile, cx.size(&blocks));
        let rest = e.div_unsigned(tile, cx.size(&blocks));
        let kv_head = e.rem_unsigned(rest, e.i64(flash.sizes.kv_heads));
        let batch = e.div_unsigned(rest, e.i64(flash.sizes.kv_heads));
        let entry = |view: &View| view.at(cx, cx.scale(batch, &view.strides[0]));
        let head = |view: &View| entry(view).at(cx, cx.scale(kv_head, &view.strides[1]));
        let (k, v) = (head(&k), head(&v));
        let bias = bias.as_ref().map(|bias| {
            let all = super::space::broadcast_strides(&bias.shape, &bias.strides, 4);
            let view = bias.at(cx, cx.scale(batch, &all[0]));
            (view, [all[1].clone(), all[2].clone(), all[3].clone()])
        });
        let dense = Dense {
            cx,
            sizes: flash.sizes,
            q: (entry(&q), [q.strides[2].clone(), q.strides[1].clone(), q.strides[3].clone()]),
            y: (entry(&y), [y.strides[2].clone(), y.strides[1].clone()]),
            lse: None,
            k: (k.clone(), [k.strides[2].clone(), k.strides[3].clone()]),
            v: (v.clone(), v.strides[2].clone()),
            bias,
            keys: cx.size(&keys),
            shift: cx.size(&(keys.clone() - queries.clone())),
            panels,
        };
        let first = e.mul_const(block, per_tile);
        let tokens = e.min(e.i64(per_tile), e.sub(cx.size(&queries), first));
        flash.attend(&dense, first, tokens, kv_head);
    });
    (tiles, flash.scratch_bytes() + dense::panel_bytes(flash.sizes))
}

impl PagedAttention {
    fn sizes(spec: &KernelSpec) -> Result<Sizes, String> {
        let (q, k, v) = (required(spec, 0)?, required(spec, 1)?, required(spec, 2)?);
        if (q.ty.rank(), k.ty.rank(), v.ty.rank()) != (3, 4, 4) {
            return Err(format!("takes [T, H, D] and paged memories, got {q}, {k}, {v}"));
        }
        let of_eight_bits = matches!(k.ty.dtype, DType::I8 | DType::F8E4M3);
        if of_eight_bits && k.ty.dtype == v.ty.dtype {
            check_f32s(spec, &[0, 6, 7])?;
            for i in 6..8 {
                check_rank(spec, i, 3)?;
                dense(required(spec, i)?, 2)?;
            }
        } else {
            check_f32s(spec, &[0, 1, 2])?;
        }
        for (layout, axis) in [(k, 3), (v, 3), (&spec.results[0], 2)] {
            dense(layout, axis)?;
        }
        for i in 3..6 {
            i32s(required(spec, i)?)?;
        }
        match k.ty.shape[3].as_const() {
            Some(n) if n > 0 && n % GROUP == 0 => {}
            _ => return Err(format!("{k}: the block size must be a constant multiple of {GROUP}")),
        }
        sizes(q, (k, 1, 2), (v, 3), 1)
    }
}

impl Lower for PagedAttention {
    fn ops(&self) -> &'static [&'static str] {
        &["paged_attention"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        PagedAttention::sizes(spec).map(|_| ())
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        let sizes = PagedAttention::sizes(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let per_tile = (PAGED_ROWS / sizes.group).max(1);
        let flash = Flash::new(&cx, sizes, per_tile);
        let [q, k, v, tables, offsets, positions] = [0, 1, 2, 3, 4, 5].map(|i| cx.operand(i));
        let [k_scales, v_scales] = [6, 7].map(|i| cx.optional(i));
        let y = cx.result(0);
        let tiles = segments(&cx, &flash, &offsets, per_tile, |piece| {
            let head = |view: &View| view.at(&cx, cx.scale(piece.kv_head, &view.strides[1]));
            let paged = Paged {
                cx: &cx,
                q: q.clone(),
                y: y.clone(),
                k: head(&k),
                v: head(&v),
                k_scales: k_scales.as_ref().map(head),
                v_scales: v_scales.as_ref().map(head),
                table: tables.at(&cx, cx.scale(piece.segment, &tables.strides[0])),
                positions: positions.clone(),
            };
            flash.attend(&paged, piece.first, piece.tokens, piece.kv_head);
        });
        let scratch = flash.scratch_bytes();
        Ok(cx.finish(tiles, scratch))
    }

    fn emit_cuda(&self, spec: &KernelSpec, target: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        let sizes = PagedAttention::sizes(spec);
        let kernels = sizes.and_then(|sizes| cuda::kernels(spec, sizes, target));
        kernels.map_err(|reason| refuse(spec, reason))
    }

    fn flops(&self, spec: &KernelSpec) -> Dim {
        // How many keys there are is known when it runs only; at most, all that a table has room
        // for.
        let axis = |i: usize, axis: usize| {
            spec.operands[i].as_ref().map_or(Dim::from(0), |l| l.ty.shape[axis].clone())
        };
        spec.results[0].ty.elements() * axis(3, 1) * axis(1, 3) * Dim::from(4)
    }

    fn bytes(&self, spec: &KernelSpec) -> Dim {
        let tables = spec.operands[3].as_ref().map_or(Dim::from(0), |l| l.ty.elements());
        let block = |i: usize| {
            let layout = spec.operands[i].as_ref();
            layout.map_or(Dim::from(0), |l| {
                let block = l.ty.shape[1..].iter().fold(Dim::from(1), |n, d| n * d.clone());
                block * Dim::from(l.ty.dtype.size())
            })
        };
        let rows = spec.operands[0].as_ref().map_or(Dim::from(0), stored_bytes);
        let blocks = [1, 2, 6, 7].into_iter().filter(|i| *i < spec.operands.len());
        let blocks = blocks.fold(Dim::from(0), |sum, i| sum + block(i));
        tables * blocks + rows + stored_bytes(&spec.results[0])
    }
}

/// Tokens of one sequence in a tile.
struct Piece {
    kv_head: Val,
    segment: Val,
    /// First token of the sequence, and the one past its last.
    start: Val,
    end: Val,
    /// First token of the piece.
    first: Val,
    tokens: Val,
}

/// Splits packed tokens into tiles and each of those at the ends of sequences; tokens behind the
/// last sequence are left alone. Returns the number of tiles.
fn segments(
    cx: &Cx<'_>,
    flash: &Flash<'_>,
    offsets: &View,
    per_tile: i64,
    body: impl FnOnce(Piece),
) -> Dim {
    let e = &cx.e;
    let tokens = cx.result(0).shape[0].clone();
    let blocks = tokens.ceil_div(per_tile);
    let tiles = Dim::from(flash.sizes.kv_heads) * blocks.clone();
    e.for_each(e.tile_begin(), e.tile_end(), 1, |tile| {
        let blocks = cx.size(&blocks);
        let kv_head = e.div_unsigned(tile, blocks);
        let from = e.mul_const(e.rem_unsigned(tile, blocks), per_tile);
        let to = e.min(e.add_const(from, per_tile), cx.size(&tokens));
        pieces(cx, offsets, kv_head, from..to, body);
    });
    tiles
}

/// The first token of sequence `i`.
fn bound(cx: &Cx<'_>, offsets: &View, i: Val) -> Val {
    cx.e.cast(offsets.load(cx, cx.scale(i, &offsets.strides[0])), Elem::I64)
}

/// Splits a range of packed tokens at the ends of sequences.
fn pieces(cx: &Cx<'_>, offsets: &View, kv_head: Val, range: Range<Val>, body: impl FnOnce(Piece)) {
    let e = &cx.e;
    let (from, to) = (range.start, range.end);
    let count = cx.size(&(offsets.shape[0].clone() - Dim::from(1)));
    let bound = |i: Val| bound(cx, offsets, i);
    // Sequences that end before the range, and those that begin before its end.
    let zero = e.i64(0);
    let range = e.for_loop(zero, count, 1, &[zero, zero], |i, found| {
        let one = |hit: Val| e.cast(hit, Elem::I64);
        let ended = one(e.cmp(Cmp::Le, bound(e.add_const(i, 1)), from));
        let begun = one(e.cmp(Cmp::Lt, bound(i), to));
        vec![e.add(found[0], ended), e.add(found[1], begun)]
    });
    e.for_each(range[0], range[1], 1, |segment| {
        let (start, end) = (bound(segment), bound(e.add_const(segment, 1)));
        let first = e.max(start, from);
        let tokens = e.sub(e.min(end, to), first);
        body(Piece { kv_head, segment, start, end, first, tokens });
    });
}
