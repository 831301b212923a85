//! A tile's way through the chunks of its keys.

mod store;
mod totals;
mod weights;

use super::{
    super::{
        CHUNK, WARPS, WORD,
        chunk::{Block, Chunks, padded, place, stage_bytes},
        tile::{Row, Seen, Tile, Tiles},
        walk::Walk,
    },
    LARGE, SMALL, column, parts,
};
pub(super) use store::store_pair;
use weights::Weights;

use crate::{
    emit::{Barrier, Cmp, Elem, Ty, Val},
    lower::{cx::Cx, view::memory_elem},
};

/// How a tile is divided among the warps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Sixteen rows a warp, and all keys of a chunk.
    Large,
    /// The same, of two warpgroups, which multiply by `wgmma`.
    Wide,
    /// All warps have the sixteen rows; scores are divided by keys, values by their elements.
    Small,
}

/// Emission state of a tile.
pub(super) struct Pass<'a> {
    pub(super) cx: &'a Cx<'a>,
    pub(super) tiles: &'a Tiles<'a>,
    pub(super) chunks: &'a Chunks<'a>,
    pub(super) tile: Tile,
    /// Keys that some row sees end here.
    keys: Val,
    /// Keys that all rows see.
    all: [Val; 2],
    form: Form,
    /// The rows' part of shared memory.
    pub(super) area: Val,
    pub(super) thread: Val,
    pub(super) lane: Val,
    pub(super) warp: Val,
    /// The rows of a lane.
    rows: [Row; 2],
}

/// Where the warp's blocks of sixteen elements of values are.
struct Columns {
    block: Block,
    /// Whether the block is there, if that is not certain.
    exists: Option<Val>,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        cx: &'a Cx<'a>,
        tiles: &'a Tiles<'a>,
        chunks: &'a Chunks<'a>,
        (tile, seen): (Tile, Seen),
        (form, area): (Form, Val),
    ) -> Pass<'a> {
        let e = &cx.e;
        let thread = e.thread();
        let (lane, warp) = (e.and(thread, e.i32(31)), e.shr(thread, 5));
        let first = match form {
            Form::Large => e.shl(e.and(warp, e.i32(WARPS - 1)), 4),
            Form::Wide => e.shl(warp, 4),
            Form::Small => e.i32(0),
        };
        let first = e.add(first, e.shr(lane, 2));
        let rows = [0, 8].map(|below| tiles.row(tile, e.add_const(first, below)));
        let (keys, all) = (seen.any[1], seen.all);
        Pass { cx, tiles, chunks, tile, keys, all, form, area, thread, lane, warp, rows }
    }

    fn warps(&self) -> i64 {
        WARPS * parts(self.tiles.sizes)
    }

    /// Blocks of sixteen elements of values, of all warps.
    pub(super) fn all_blocks(&self) -> i64 {
        padded(self.tiles.sizes.value) / 16
    }

    /// Those of a warp.
    fn blocks(&self) -> i64 {
        let among = match self.form {
            Form::Large | Form::Wide => parts(self.tiles.sizes),
            Form::Small => self.warps(),
        };
        (self.all_blocks() + among - 1) / among
    }

    fn columns(&self, i: i64) -> Columns {
        let (e, all) = (&self.cx.e, self.all_blocks());
        let certain = |block: Block| Columns { block, exists: None };
        let block = match self.form {
            Form::Large | Form::Wide if parts(self.tiles.sizes) == 1 => {
                return certain(Block::Known(i));
            }
            Form::Large | Form::Wide => {
                let part = e.shr(self.warp, WARPS.trailing_zeros());
                let each = self.blocks();
                let first = e.mul_const(part, each);
                if each % 4 == 0 && all % each == 0 {
                    return certain(Block::Behind(first, i));
                }
                e.add_const(first, i)
            }
            Form::Small => {
                let behind = i * self.warps();
                if all % self.warps() == 0 {
                    return certain(Block::Any(self.warp, behind));
                }
                e.add_const(self.warp, behind)
            }
        };
        let exists = e.cmp(Cmp::Lt, block, e.i32(all));
        let block = Block::Any(e.min(block, e.i32(all - 1)), 0);
        Columns { block, exists: Some(exists) }
    }

    /// Groups of sixteen keys of a chunk that the warp has.
    fn groups(&self) -> Vec<Val> {
        let e = &self.cx.e;
        match self.form {
            Form::Large | Form::Wide => (0..CHUNK / 16).map(|i| e.i32(i)).collect(),
            Form::Small => vec![e.and(self.warp, e.i32(WARPS - 1))],
        }
    }

    /// Largest scores, and sums: four a block of eight elements of the values, then four whose rows
    /// have the sum of weights.
    pub(super) fn run(&self, walk: Walk) -> (Vec<Val>, Vec<Val>) {
        let e = &self.cx.e;
        let (chunks, stages) = (self.chunks, self.chunks.stages);
        let bytes = stage_bytes(self.tiles.sizes, self.chunks.codes());
        let ahead = usize::try_from(stages).expect("few stages");
        let mut queue = vec![walk.first(e)];
        for _ in 0..stages {
            queue.push(walk.next(e, queue[queue.len() - 1]));
        }
        let valid = |chunk: Val| e.cmp(Cmp::Lt, chunk, walk.hi);
        let commit = || e.ptx("cp.async.commit_group;", &[]);
        let find = |chunk: Val| chunks.entries(self.tile, e.min(chunk, walk.hi), self.keys);
        let keys = |chunk: Val, entries: &[Val], stage: Val| {
            e.if_then(valid(chunk), || {
                chunks.fetch_keys(self.tile, chunk, self.keys, entries, stage);
            });
            commit();
        };
        let values = |chunk: Val, entries: &[Val], stage: Val| {
            e.if_then(valid(chunk), || {
                chunks.fetch_values(self.tile, chunk, self.keys, entries, stage);
            });
            commit();
        };
        let mut entries = Vec::new();
        for (stage, chunk) in queue.iter().take(ahead).enumerate() {
            let at = e.i32(i64::try_from(stage).expect("few stages") * bytes);
            entries = find(*chunk);
            keys(*chunk, &entries, at);
            if stage + 1 < ahead {
                values(*chunk, &entries, at);
            }
        }
        self.queries();
        let sums = usize::try_from(8 * self.blocks() + 4).expect("small");
        let folds = walk.only.is_none();
        let mut init = vec![e.i32(0)];
        init.extend(&queue[..=ahead]);
        let first_entry = init.len();
        init.extend(&entries);
        let first_state = init.len();
        let empty = |to: &mut Vec<Val>, sums: usize| {
            to.extend([e.f32(f32::NEG_INFINITY); 2]);
            to.extend(vec![e.f32(0.0); sums]);
        };
        empty(&mut init, sums);
        let apart = self.apart(sums);
        if folds {
            empty(&mut init, sums - apart);
            self.clear_total(apart);
        }
        let wait = format!("cp.async.wait_group {};", 2 * stages - 2);
        let done = e.for_loop(e.i32(0), walk.count(e), 1, &init, |_, carried| {
            let (stage, queue) = (carried[0], &carried[1..first_entry]);
            let entries = &carried[first_entry..first_state];
            let (state, total) = carried[first_state..].split_at(2 + sums);
            let start = e.cmp(Cmp::Eq, stage, e.i32(0));
            let before = e.select(start, e.i32((stages - 1) * bytes), e.add_const(stage, -bytes));
            let end = e.cmp(Cmp::Eq, stage, e.i32((stages - 1) * bytes));
            let next_stage = e.select(end, e.i32(0), e.add_const(stage, bytes));
            e.ptx(&wait, &[]);
            e.barrier(Barrier::Block);
            values(queue[ahead - 1], entries, before);
            let entries = find(queue[ahead]);
            if chunks.codes() {
                chunks.widen_keys(stage);
                e.barrier(Barrier::Block);
            }
            let scores = self.scores(stage);
            let (state, weights) = self.weigh(queue[0], stage, scores, state);
            e.ptx(&wait, &[]);
            e.barrier(Barrier::Block);
            keys(queue[ahead], &entries, stage);
            if chunks.codes() {
                chunks.widen_values(stage);
                e.barrier(Barrier::Block);
            }
            let sums_now = self.add_values(stage, &weights, &state[2..]);
            let mut state = state[..2].to_vec();
            state.extend(sums_now);
            if folds {
                state.extend(total);
                state = self.fold(walk.ends(e, queue[0], queue[1]), &state, sums);
            }
            let mut next = vec![next_stage];
            next.extend(&queue[1..]);
            next.push(walk.next(e, queue[ahead]));
            next.extend(entries);
            next.extend(state);
            next
        });
        let state = &done[first_state..];
        if !folds {
            return (state[..2].to_vec(), state[2..].to_vec());
        }
        let total = &state[2 + sums..];
        let mut all = self.total(apart);
        all.extend(&total[2..]);
        (total[..2].to_vec(), all)
    }

    /// Rounds the queries of the tile into shared memory.
    fn queries(&self) {
        let e = &self.cx.e;
        let units = padded(self.tiles.sizes.key) / 8;
        let threads = i64::from(e.threads());
        let rows = if self.form == Form::Large { LARGE } else { SMALL };
        let one = |unit: Val| {
            let index = e.div_unsigned(unit, e.i32(units));
            let unit = e.rem_unsigned(unit, e.i32(units));
            self.query(index, unit, e.add(self.area, place(e, index, unit, units)));
        };
        let count = rows * units;
        for i in 0..(count + threads - 1) / threads {
            let unit = e.add_const(self.thread, i * threads);
            if (i + 1) * threads > count {
                e.if_then(e.cmp(Cmp::Lt, unit, e.i32(count)), || one(unit));
            } else {
                one(unit);
            }
        }
    }

    /// Rounds unit `unit` of row `index` of the tile to shared memory at `to`.
    pub(super) fn query(&self, index: Val, unit: Val, to: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let q = cx.operand(0);
        let (size, elem) = (self.tiles.sizes.key, memory_elem(q.dtype));
        let row = self.tiles.row(self.tile, index);
        let from = self.tiles.place(&q, self.tile, row);
        let inside = e.and(row.exists, e.cmp(Cmp::Lt, unit, e.i32(size / 8)));
        let column = column(e, e.shl(e.min(unit, e.i32(size / 8 - 1)), 3));
        let values = e.load_whole(Ty::Vector(elem, 8), e.at(from.base, elem, column));
        let values = e.cast(values, Elem::F32);
        let values = e.select(inside, values, e.zero(values.ty()));
        let mut operands = vec![to];
        let word = |i: u32| self.round([e.extract(values, 2 * i), e.extract(values, 2 * i + 1)]);
        operands.extend((0..4).map(word));
        e.ptx("st.shared.v4.b32 [$0], {$1, $2, $3, $4};", &operands);
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

    /// Products of queries and the warp's keys: four a block of eight keys.
    fn scores(&self, stage: Val) -> Vec<Val> {
        let e = &self.cx.e;
        let groups = self.groups();
        let mut scores = vec![e.f32(0.0); 8 * groups.len()];
        let row = match self.form {
            Form::Large | Form::Wide => e.shl(e.and(self.warp, e.i32(WARPS - 1)), 4),
            Form::Small => e.i32(0),
        };
        let size = padded(self.tiles.sizes.key);
        for step in 0..size / 16 {
            let left = self.chunks.left_fragment(self.thread, self.area, row, (size / 8, step));
            for (j, group) in groups.iter().enumerate() {
                let right = self.chunks.key_fragment(self.thread, stage, *group, step);
                for (half, right) in right.into_iter().enumerate() {
                    self.multiply(&left, right, &mut scores[8 * j + 4 * half..][..4]);
                }
            }
        }
        scores
    }

    /// Adds the products of weights and values, and the weights themselves.
    fn add_values(&self, stage: Val, weights: &Weights, sums: &[Val]) -> Vec<Val> {
        let e = &self.cx.e;
        let mut sums = sums.to_vec();
        let total = sums.len() - 4;
        for step in 0..CHUNK / 16 {
            let index = usize::try_from(step).expect("small");
            let shared =
                |at: Val| self.chunks.left_fragment(self.thread, at, e.i32(0), (CHUNK / 8, step));
            let (left, plain) = match self.form {
                Form::Large | Form::Wide => (weights.of_values[index], weights.plain[index]),
                Form::Small => {
                    let left = shared(self.weights_at());
                    let apart = self.chunks.codes();
                    (left, if apart { shared(self.plain_at()) } else { left })
                }
            };
            for j in 0..self.blocks() {
                let block = self.columns(j).block;
                let right = self.chunks.value_fragment(self.thread, stage, block, step);
                for (half, right) in right.into_iter().enumerate() {
                    let block = 2 * usize::try_from(j).expect("small") + half;
                    self.multiply(&left, right, &mut sums[4 * block..][..4]);
                }
            }
            self.multiply(&plain, [self.chunks.ones(); 2], &mut sums[total..]);
        }
        sums
    }
}
