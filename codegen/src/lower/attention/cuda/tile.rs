//! Which rows a block has, and where they and their keys lie.
//!
//! Rows are those of a sequence's tokens, heads of a group within a token. Tile `j` of sequence `s`
//! whose first row is number `r` of all is block `s + r / ROWS + j`, rounded down: no two tiles
//! have one block, and there are at most as many as sequences and full tiles together. Blocks in
//! between have nothing to do.

use ir::Dim;

use super::{Sizes, WORD};
use crate::{
    emit::{Cmp, Elem, Val},
    lower::{
        cx::Cx,
        view::{View, strides},
    },
};

/// How an operator's tokens are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lower::attention) enum Numbering {
    /// `[T, H, D]`, sequences by their offsets, which are this operand.
    Packed(usize),
    /// As packed, keys in blocks, positions given.
    Paged,
    /// `[B, H, M, D]`.
    Batched,
}

/// The tiles of an operator on a grid.
pub(in crate::lower::attention) struct Tiles<'a> {
    pub(in crate::lower::attention) cx: &'a Cx<'a>,
    pub(in crate::lower::attention) sizes: Sizes,
    pub(in crate::lower::attention) numbering: Numbering,
    /// Rows of a tile.
    pub(in crate::lower::attention) rows: i64,
}

/// Rows of one sequence. Numbers of tokens are those of the sequence's part of the launch.
#[derive(Clone, Copy)]
pub(in crate::lower::attention) struct Tile {
    /// The sequence, or entry of the batch, i64.
    pub(in crate::lower::attention) segment: Val,
    /// The sequence's first token of all, i64; zero of a batch.
    pub(in crate::lower::attention) start: Val,
    /// Tokens of the sequence, i32.
    pub(in crate::lower::attention) tokens: Val,
    /// First row, and how many there are: none if not positive. i32.
    pub(in crate::lower::attention) first: Val,
    pub(in crate::lower::attention) rows: Val,
    /// Key/value head, i64.
    pub(in crate::lower::attention) head: Val,
}

/// Keys from the first number up to, not including, the second, i32: those that any row of a tile
/// sees, and those that all do.
#[derive(Clone, Copy)]
pub(in crate::lower::attention) struct Seen {
    pub(in crate::lower::attention) any: [Val; 2],
    pub(in crate::lower::attention) all: [Val; 2],
}

/// A row of a tile.
#[derive(Clone, Copy)]
pub(in crate::lower::attention) struct Row {
    /// Token of the sequence and query head; those of the tile's first row where there is none.
    pub(in crate::lower::attention) token: Val,
    pub(in crate::lower::attention) head: Val,
    pub(in crate::lower::attention) exists: Val,
    /// Keys that it sees, i32.
    pub(in crate::lower::attention) from: Val,
    pub(in crate::lower::attention) to: Val,
}

impl Tiles<'_> {
    /// Blocks along x.
    pub(in crate::lower::attention) fn count(&self) -> Dim {
        let shape = &self.cx.spec.operands[0].as_ref().expect("queries").ty.shape;
        let group = Dim::from(self.sizes.group);
        match self.numbering {
            Numbering::Batched => shape[0].clone() * (shape[2].clone() * group).ceil_div(self.rows),
            Numbering::Packed(_) | Numbering::Paged => {
                self.segments() + (shape[0].clone() * group).ceil_div(self.rows)
            }
        }
    }

    fn offsets(&self) -> View {
        match self.numbering {
            Numbering::Packed(operand) => self.cx.operand(operand),
            Numbering::Paged => self.cx.operand(4),
            Numbering::Batched => unreachable!("a batch has no offsets"),
        }
    }

    fn segments(&self) -> Dim {
        self.offsets().shape[0].clone() - Dim::from(1)
    }

    /// The tile of block `x` of key/value head `head`, both i32.
    pub(in crate::lower::attention) fn find(&self, x: Val, head: Val) -> Tile {
        let (cx, e) = (self.cx, &self.cx.e);
        let head = e.cast(head, Elem::I64);
        let group = self.sizes.group;
        if self.numbering == Numbering::Batched {
            let tokens = e.cast(cx.size(&cx.operand(0).shape[2]), Elem::I32);
            let all = e.mul_const(tokens, group);
            let each = e.div_ceil_const(all, self.rows);
            let segment = e.cast(e.div_unsigned(x, each), Elem::I64);
            let first = e.mul_const(e.rem_unsigned(x, each), self.rows);
            let rows = e.min(e.i32(self.rows), e.sub(all, first));
            return Tile { segment, start: e.i64(0), tokens, first, rows, head };
        }
        let offsets = self.offsets();
        let count = e.cast(cx.size(&self.segments()), Elem::I32);
        let bound = |i: Val| {
            let i = e.cast(i, Elem::I64);
            offsets.load(cx, cx.scale(i, &offsets.strides[0]))
        };
        let slot = |i: Val, bound: Val| {
            e.add(i, e.div_unsigned(e.mul_const(bound, group), e.i32(self.rows)))
        };
        // Sequences that end before this block, counted by a warp.
        let lane = e.and(e.thread(), e.i32(31));
        let found = e.for_loop(lane, count, 32, &[e.i32(0)], |i, found| {
            let next = e.add_const(i, 1);
            let before = e.cmp(Cmp::Le, slot(next, bound(next)), x);
            vec![e.add(found[0], e.cast(before, Elem::I32))]
        });
        let segment = self.over_warp(found[0], |a, b| e.add(a, b));
        let exists = e.cmp(Cmp::Lt, segment, count);
        let segment = e.min(segment, e.add_const(count, -1));
        let (start, end) = (bound(segment), bound(e.add_const(segment, 1)));
        let tokens = e.sub(end, start);
        let first = e.mul_const(e.sub(x, slot(segment, start)), self.rows);
        let rows = e.min(e.i32(self.rows), e.sub(e.mul_const(tokens, group), first));
        let rows = e.select(exists, rows, e.i32(0));
        let (segment, start) = (e.cast(segment, Elem::I64), e.cast(start, Elem::I64));
        Tile { segment, start, tokens, first, rows, head }
    }

    /// Combines a value of each lane of a warp.
    fn over_warp(&self, value: Val, combine: impl Fn(Val, Val) -> Val) -> Val {
        let e = &self.cx.e;
        [1, 2, 4, 8, 16].into_iter().fold(value, |v, mask| combine(v, e.shuffle_xor(v, mask)))
    }

    /// Keys that a token sees: the first one and the one past the last, i32.
    pub(in crate::lower::attention) fn visible(&self, tile: Tile, token: Val) -> [Val; 2] {
        let (cx, e) = (self.cx, &self.cx.e);
        let (position, keys) = match self.numbering {
            Numbering::Packed(_) => (token, tile.tokens),
            Numbering::Batched => {
                let keys = e.cast(cx.size(&cx.operand(1).shape[2]), Elem::I32);
                (e.add(token, e.sub(keys, tile.tokens)), keys)
            }
            Numbering::Paged => {
                let (positions, tables) = (cx.operand(5), cx.operand(3));
                let at = e.add(tile.start, e.cast(token, Elem::I64));
                // A sequence has no more keys than its table has room for.
                let room = tables.shape[1].clone() * cx.operand(1).shape[3].clone();
                let position = positions.load(cx, cx.scale(at, &positions.strides[0]));
                (position, e.cast(cx.size(&room), Elem::I32))
            }
        };
        let from = match cx.spec.attrs.int("window") {
            0 => e.i32(0),
            window => e.max(e.add_const(position, 1 - window), e.i32(0)),
        };
        let to = if cx.spec.attrs.str("mask") == "causal" {
            e.max(e.min(e.add_const(position, 1), keys), e.i32(0))
        } else {
            keys
        };
        [from, to]
    }

    /// Keys that the rows of a tile see.
    pub(in crate::lower::attention) fn seen(&self, tile: Tile) -> Seen {
        let e = &self.cx.e;
        let group = e.i32(self.sizes.group);
        let first = e.div_unsigned(tile.first, group);
        let last = e.div_unsigned(e.add_const(e.add(tile.first, tile.rows), -1), group);
        if self.numbering != Numbering::Paged {
            let [first, last] = [first, last].map(|token| self.visible(tile, token));
            return Seen { any: [first[0], last[1]], all: [last[0], first[1]] };
        }
        let lane = e.and(e.thread(), e.i32(31));
        let most = e.int(WORD, i32::MAX.into());
        let init = [most, e.i32(0), e.i32(0), most];
        let (from, end) = (e.add(first, lane), e.add_const(last, 1));
        let found = e.for_loop(from, end, 32, &init, |token, found| {
            let [from, to] = self.visible(tile, token);
            let any = [e.min(found[0], from), e.max(found[1], to)];
            let all = [e.max(found[2], from), e.min(found[3], to)];
            any.into_iter().chain(all).collect()
        });
        let least = |value: Val| self.over_warp(value, |a, b| e.min(a, b));
        let most = |value: Val| self.over_warp(value, |a, b| e.max(a, b));
        Seen { any: [least(found[0]), most(found[1])], all: [most(found[2]), least(found[3])] }
    }

    /// Row `index` of a tile.
    pub(in crate::lower::attention) fn row(&self, tile: Tile, index: Val) -> Row {
        let e = &self.cx.e;
        let group = e.i32(self.sizes.group);
        let exists = e.cmp(Cmp::Lt, index, tile.rows);
        let index = e.add(tile.first, e.select(exists, index, e.i32(0)));
        let token = e.div_unsigned(index, group);
        let within = e.cast(e.rem_unsigned(index, group), Elem::I64);
        let head = e.add(e.mul_const(tile.head, self.sizes.group), within);
        let [from, to] = self.visible(tile, token);
        Row { token, head, exists, from, to }
    }

    /// Where a row of queries or results, or of one of their heads' numbers, begins.
    pub(in crate::lower::attention) fn place(&self, view: &View, tile: Tile, row: Row) -> View {
        self.at(view, tile, row.token, row.head)
    }

    /// Where a token's row of a head begins.
    pub(in crate::lower::attention) fn at(
        &self,
        view: &View,
        tile: Tile,
        token: Val,
        head: Val,
    ) -> View {
        let (cx, e) = (self.cx, &self.cx.e);
        let token = e.add(tile.start, e.cast(token, Elem::I64));
        let [by_token, by_head] = self.axes();
        let at = cx.offset(cx.scale(token, &view.strides[by_token]), head, &view.strides[by_head]);
        let at = match self.numbering {
            Numbering::Batched => cx.offset(at, tile.segment, &view.strides[0]),
            Numbering::Packed(_) | Numbering::Paged => at,
        };
        view.at(cx, at)
    }

    /// Axes of tokens and heads.
    const fn axes(&self) -> [usize; 2] {
        match self.numbering {
            Numbering::Batched => [2, 1],
            Numbering::Packed(_) | Numbering::Paged => [0, 1],
        }
    }
}

/// Whether all of an operand's strides but those of one are multiples of `unit` elements.
pub(in crate::lower::attention) fn aligned(layout: &ir::Layout, unit: i64) -> bool {
    let whole = |s: &Dim| s.is(1) || s.as_const().is_some_and(|s| s % unit == 0);
    strides(layout).iter().all(whole)
}
