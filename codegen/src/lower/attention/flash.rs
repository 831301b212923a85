//! The core: attention of a few rows over the keys of one sequence, with a running softmax.
//!
//! Milakov & Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135. What is computed
//! for a row, whatever other rows are in the tile:
//!
//! - keys in chunks of [`CHUNK`], from the sequence's start: a score is one chain of fused
//!   multiply-adds over the elements of the key, from zero;
//! - per chunk, the greatest score so far `m`, `alpha = exp(m_before - m)`, weights `exp(s - m)`;
//!   sixteen partial sums of weights folded by halves, added to `alpha` times the sum so far;
//! - every element of the result is one chain of fused multiply-adds over the keys of the chunk,
//!   starting from `alpha` times what it was.
//!
//! Keys and values of eight bits enter products without their scales: a score is multiplied by its
//! key's scale before anything else, and a weight by its value's scale after it has joined the sum
//! of weights. Numbers of e4m3 enter as their 256th parts, which costs an instruction less, and
//! scales make up for it.
//!
//! A key that a row does not see has weight zero and its value, whatever it is, is not added; a
//! chunk of such keys has `alpha` one. Both leave every bit as it was, which is why a tile may walk
//! more chunks than a row needs.

use ir::DType;

use super::{GROUP, Sizes};
use crate::{
    emit::{Cmp, Elem, Emitter, Ty, Val},
    lower::{
        cx::Cx,
        e4m3,
        view::{View, memory_elem},
    },
    math,
};

/// Keys of a chunk.
pub(super) const CHUNK: i64 = 64;

/// Rows of the widest register tile.
const TILE_ROWS: i64 = 6;

/// Sixteen scores, or elements of a value.
const VECTOR: Ty = Ty::Vector(Elem::F32, 16);

const SCALAR: Ty = Ty::Scalar(Elem::F32);

/// Sixteen keys, transposed: element `d` of all of them is the vector at `base + d · step`.
pub(super) struct Panel {
    pub(super) base: Val,
    pub(super) dtype: DType,
    pub(super) step: Val,
}

/// Where queries, keys and values are. Tokens and keys are numbered by the implementation; keys
/// from the start of the sequence.
pub(super) trait Source {
    /// The query of a token and head, and the distance of its elements.
    fn query(&self, token: Val, head: Val) -> (View, ir::Dim);
    /// The dense result of a token and head.
    fn output(&self, token: Val, head: Val) -> View;
    /// Where the logarithm of the sum of exponentials of a token and head goes, if anywhere.
    fn log_sum(&self, _token: Val, _head: Val) -> Option<View> {
        None
    }
    /// Keys from the first up to, not including, the second are visible to the token.
    fn visible(&self, token: Val) -> (Val, Val);
    /// Makes panels of `count` keys from `first` on.
    fn prepare(&self, first: Val, count: Val);
    /// The panel of the sixteen keys from `key` on, which is number `group` of its chunk.
    fn panel(&self, key: Val, group: Val) -> Panel;
    /// The value of `key`, fifteen more after it, and the distance between them.
    fn values(&self, key: Val) -> (View, Val);
    /// Asks for part `part` of `parts` of the sixteen keys from `key` on, to be read soon.
    fn prefetch_keys(&self, _key: Val, _part: Val, _parts: i64) {}
    /// The same of their values.
    fn prefetch_values(&self, _key: Val, _part: Val, _parts: i64) {}
    /// What products with the sixteen keys from `key` on are multiplied by, and with their values,
    /// where those are of eight bits.
    fn key_scales(&self, key: Val) -> Option<Val>;
    fn value_scales(&self, key: Val) -> Option<Val>;
    /// What is added to the scores of sixteen keys from `key` on; lanes from `count` on are not
    /// read.
    fn bias(&self, token: Val, head: Val, key: Val, count: Val) -> Option<Val>;
}

/// Emission state of the core.
pub(super) struct Flash<'c> {
    cx: &'c Cx<'c>,
    pub(super) sizes: Sizes,
    rows: i64,
    /// f32 `[rows][CHUNK]`: scores, then weights.
    scores: Val,
    /// f32 `[rows][value size, up to sixteen]`.
    sums: Val,
    /// f32 `[rows]` each.
    max: Val,
    total: Val,
    alpha: Val,
}

/// One call's rows: tokens times heads of the group.
struct Rows<'a> {
    source: &'a dyn Source,
    first: Val,
    kv_head: Val,
    count: Val,
}

/// Keys of the chunk at hand.
#[derive(Clone, Copy)]
struct Chunk {
    first: Val,
    count: Val,
    groups: Val,
    /// The last key of all chunks.
    last: Val,
}

impl<'c> Flash<'c> {
    pub(super) fn new(cx: &'c Cx<'c>, sizes: Sizes, tokens: i64) -> Flash<'c> {
        let rows = tokens * sizes.group;
        let mut byte = 0;
        let mut take = |floats: i64| {
            let at = cx.scratch(byte);
            byte += (4 * floats).cast_unsigned().next_multiple_of(64);
            at
        };
        Flash {
            cx,
            sizes,
            rows,
            scores: take(rows * CHUNK),
            sums: take(rows * Flash::width(sizes)),
            max: take(rows),
            total: take(rows),
            alpha: take(rows),
        }
    }

    pub(super) fn scratch_bytes(&self) -> u64 {
        let bytes = |floats: i64| (4 * floats).cast_unsigned().next_multiple_of(64);
        bytes(self.rows * CHUNK)
            + bytes(self.rows * Flash::width(self.sizes))
            + 3 * bytes(self.rows)
    }

    /// Floats of a row of sums.
    fn width(sizes: Sizes) -> i64 {
        sizes.value.cast_unsigned().next_multiple_of(16).cast_signed()
    }

    fn row_of(&self, base: Val, row: Val, width: i64) -> Val {
        self.cx.e.at(base, Elem::F32, self.cx.e.mul_const(row, width))
    }

    /// Attends with `tokens` tokens from `first` on, all heads of the group.
    pub(super) fn attend(&self, source: &dyn Source, first: Val, tokens: Val, kv_head: Val) {
        let e = &self.cx.e;
        let count = e.mul_const(tokens, self.sizes.group);
        let rows = Rows { source, first, kv_head, count };
        self.start(&rows);
        // Keys that any of the tokens sees, then those that all of them see.
        let init = [e.i64(i64::MAX), e.i64(0), e.i64(0), e.i64(i64::MAX)];
        let range = e.for_loop(e.i64(0), tokens, 1, &init, |token, range| {
            let (lo, hi) = source.visible(e.add(first, token));
            vec![e.min(range[0], lo), e.max(range[1], hi), e.max(range[2], lo), e.min(range[3], hi)]
        });
        let start = e.mul_const(e.div_unsigned(range[0], e.i64(CHUNK)), CHUNK);
        e.for_each(start, range[1], CHUNK, |key| {
            let count = e.min(e.i64(CHUNK), e.sub(range[1], key));
            let groups = e.div_ceil_const(count, GROUP);
            let chunk = Chunk { first: key, count, groups, last: e.add_const(range[1], -1) };
            source.prepare(key, count);
            self.tiles(&rows, |first, height| self.score(&rows, chunk, first, height));
            e.for_each(e.i64(0), rows.count, 1, |row| self.weigh(&rows, chunk, row));
            let begun = e.cmp(Cmp::Ge, key, range[2]);
            let goes_on = e.cmp(Cmp::Le, e.add(key, count), range[3]);
            let tiles = |how: Seen| {
                self.tiles(&rows, |first, height| self.add_values(&rows, chunk, first, height, how))
            };
            e.either(e.and(begun, goes_on), || tiles(Seen::ByAll), || tiles(Seen::BySome));
        });
        e.for_each(e.i64(0), rows.count, 1, |row| self.finish(&rows, row));
    }

    fn start(&self, rows: &Rows<'_>) {
        let e = &self.cx.e;
        let width = Flash::width(self.sizes);
        e.for_each(e.i64(0), rows.count, 1, |row| {
            e.store_at(e.f32(f32::NEG_INFINITY), self.max, row);
            e.store_at(e.f32(0.0), self.total, row);
            let sums = self.row_of(self.sums, row, width);
            e.for_each(e.i64(0), e.i64(width), 16, |i| e.store_at(e.zero(VECTOR), sums, i));
        });
    }

    /// Walks the rows in register tiles of 6, 4, 2 or 1; a short tile repeats its last row.
    fn tiles(&self, rows: &Rows<'_>, body: impl Fn(Val, i64)) {
        let e = &self.cx.e;
        e.for_each(e.i64(0), rows.count, TILE_ROWS, |first| {
            let left = e.sub(rows.count, first);
            let at_least = |n: i64| e.cmp(Cmp::Ge, left, e.i64(n));
            e.either(
                at_least(5),
                || body(first, 6),
                || {
                    e.either(
                        at_least(3),
                        || body(first, 4),
                        || e.either(at_least(2), || body(first, 2), || body(first, 1)),
                    );
                },
            );
        });
    }

    fn tile_rows(&self, rows: &Rows<'_>, first: Val, height: i64) -> Vec<Val> {
        let e = &self.cx.e;
        let last = e.add_const(rows.count, -1);
        (0..height).map(|r| e.min(e.add_const(first, r), last)).collect()
    }

    /// Token and query head of a row.
    fn place(&self, rows: &Rows<'_>, row: Val) -> (Val, Val) {
        let e = &self.cx.e;
        let group = e.i64(self.sizes.group);
        let token = e.add(rows.first, e.div_unsigned(row, group));
        let head = e.add(e.mul(rows.kv_head, group), e.rem_unsigned(row, group));
        (token, head)
    }

    /// Whether a register tile of this height reads ahead: the first one of a token alone, whose
    /// time is that of reading keys and values.
    fn prefetches(&self, height: i64) -> bool {
        height
            == match self.sizes.group {
                1 | 2 => self.sizes.group,
                3 | 4 => 4,
                _ => 6,
            }
    }

    /// Vectors that a tile of this height keeps in registers beside each other.
    fn at_once(height: i64) -> i64 {
        (4 / height).max(1)
    }

    /// Raw scores of a register tile.
    fn score(&self, rows: &Rows<'_>, chunk: Chunk, first: Val, height: i64) {
        let (cx, e) = (self.cx, &self.cx.e);
        let tile = self.tile_rows(rows, first, height);
        let queries: Vec<(View, ir::Dim)> = tile
            .iter()
            .map(|row| {
                let (token, head) = self.place(rows, *row);
                rows.source.query(token, head)
            })
            .collect();
        let lines: Vec<Val> =
            tile.iter().map(|row| self.row_of(self.scores, *row, CHUNK)).collect();
        let groups = |group: Val, count: i64| {
            let panels: Vec<Panel> = (0..count)
                .map(|i| {
                    let group = e.add_const(group, i);
                    rows.source.panel(e.add(chunk.first, e.mul_const(group, GROUP)), group)
                })
                .collect();
            let init = vec![e.zero(VECTOR); panels.len() * queries.len()];
            let size = e.i64(self.sizes.key);
            let dots = e.for_loop(e.i64(0), size, 1, &init, |d, dots| {
                let keys: Vec<Val> = panels
                    .iter()
                    .map(|p| {
                        let ty = Ty::Vector(memory_elem(p.dtype), 16);
                        factor(e, e.load_at(ty, p.base, e.mul(d, p.step)), p.dtype)
                    })
                    .collect();
                let queries = queries.iter().map(|(q, step)| q.load(cx, cx.scale(d, step)));
                let queries: Vec<Val> = queries.map(|q| e.splat(q, 16)).collect();
                if self.prefetches(height) {
                    for i in 0..count {
                        let slot = e.mul_const(e.add_const(group, i), GROUP);
                        let key = e.add(chunk.first, slot);
                        rows.source.prefetch_values(key, d, self.sizes.key);
                    }
                }
                products(e, &queries, &keys, dots)
            });
            let places = lines.iter().flat_map(|line| (0..count).map(move |i| (*line, i)));
            for (dot, (line, i)) in dots.into_iter().zip(places) {
                e.store_at(dot, line, e.mul_const(e.add_const(group, i), GROUP));
            }
        };
        let at_once = Flash::at_once(height);
        let whole = e.sub(chunk.groups, e.rem_unsigned(chunk.groups, e.i64(at_once)));
        e.for_each(e.i64(0), whole, at_once, |group| groups(group, at_once));
        if at_once > 1 {
            e.for_each(whole, chunk.groups, 1, |group| groups(group, 1));
        }
    }

    /// From raw scores to weights: scale, cap, bias, mask, running maximum and sum.
    fn weigh(&self, rows: &Rows<'_>, chunk: Chunk, row: Val) {
        let e = &self.cx.e;
        let attrs = &self.cx.spec.attrs;
        let (token, head) = self.place(rows, row);
        let (lo, hi) = rows.source.visible(token);
        let line = self.row_of(self.scores, row, CHUNK);
        let lowest = e.float(VECTOR, f64::NEG_INFINITY);
        let int = Ty::Vector(Elem::I32, 16);
        let lanes = |v: Val| e.splat(e.cast(v, Elem::I32), 16);
        let (lo, hi) = (lanes(e.sub(lo, chunk.first)), lanes(e.sub(hi, chunk.first)));
        let keys = e.for_loop(e.i64(0), chunk.groups, 1, &[lowest], |group, max| {
            let slot = e.mul_const(group, GROUP);
            let key = e.add(chunk.first, slot);
            let mut score = e.load_at(VECTOR, line, slot);
            if let Some(scales) = rows.source.key_scales(key) {
                score = e.mul(score, scales);
            }
            score = e.mul(score, e.float(VECTOR, attrs.float("scale")));
            let cap = attrs.float("softcap");
            if cap > 0.0 {
                let inner = math::tanh(e, e.mul(score, e.float(VECTOR, 1.0 / cap)));
                score = e.mul(inner, e.float(VECTOR, cap));
            }
            let count = e.sub(chunk.count, slot);
            if let Some(bias) = rows.source.bias(token, head, key, count) {
                let hidden = e.cmp(Cmp::Eq, bias, lowest);
                score = e.select(hidden, lowest, e.add(score, bias));
            }
            let key = e.add(e.iota(int), lanes(slot));
            let seen = e.and(e.cmp(Cmp::Ge, key, lo), e.cmp(Cmp::Lt, key, hi));
            score = e.select(seen, score, lowest);
            e.store_at(score, line, slot);
            vec![e.max(max[0], score)]
        });
        let before = e.load_at(SCALAR, self.max, row);
        let max = e.max(before, e.reduce_max(keys[0]));
        // While a row has seen no key, its weights are those of exp(-inf - 0).
        let some = e.cmp(Cmp::Gt, max, e.f32(f32::NEG_INFINITY));
        let shift = e.select(some, max, e.f32(0.0));
        let alpha = math::exp(e, e.sub(before, shift));
        let weights = e.for_loop(e.i64(0), chunk.groups, 1, &[e.zero(VECTOR)], |group, sum| {
            let slot = e.mul_const(group, GROUP);
            let score = e.load_at(VECTOR, line, slot);
            let weight = math::exp(e, e.sub(score, e.splat(shift, 16)));
            let scales = rows.source.value_scales(e.add(chunk.first, slot));
            let scaled = scales.map_or(weight, |scales| e.mul(weight, scales));
            e.store_at(scaled, line, slot);
            vec![e.add(sum[0], weight)]
        });
        let total = e.mul(e.load_at(SCALAR, self.total, row), alpha);
        e.store_at(e.add(total, e.reduce_add(weights[0])), self.total, row);
        e.store_at(max, self.max, row);
        e.store_at(alpha, self.alpha, row);
    }

    /// Adds the chunk's weighted values to the sums of a register tile.
    fn add_values(&self, rows: &Rows<'_>, chunk: Chunk, first: Val, height: i64, seen: Seen) {
        let e = &self.cx.e;
        let tile = self.tile_rows(rows, first, height);
        let limits = match seen {
            Seen::ByAll => None,
            Seen::BySome => Some(Limits::of(self, rows, chunk, &tile)),
        };
        let width = Flash::width(self.sizes);
        let weights: Vec<Val> =
            tile.iter().map(|row| self.row_of(self.scores, *row, CHUNK)).collect();
        let sums: Vec<Val> = tile.iter().map(|row| self.row_of(self.sums, *row, width)).collect();
        let alphas: Vec<Val> = tile.iter().map(|row| e.load_at(SCALAR, self.alpha, *row)).collect();
        // `count` vectors of so many lanes, from a column on.
        let columns = |column: Val, count: i64, lanes: i64| {
            let wide = u32::try_from(lanes).expect("at most sixteen");
            let at = |i: i64| e.add_const(column, i * lanes);
            let init: Vec<Val> = sums
                .iter()
                .zip(&alphas)
                .flat_map(|(sums, alpha)| {
                    let alpha = e.splat(*alpha, wide);
                    (0..count)
                        .map(move |i| e.mul(e.load_at(Emitter::f32s(wide), *sums, at(i)), alpha))
                })
                .collect();
            let done = e.for_loop(e.i64(0), chunk.groups, 1, &init, |group, sums| {
                let slot = e.mul_const(group, GROUP);
                let (values, step) = rows.source.values(e.add(chunk.first, slot));
                let keys = e.min(e.i64(GROUP), e.sub(chunk.count, slot));
                let next = e.add_const(e.add(chunk.first, slot), CHUNK);
                let next =
                    e.min(next, e.mul_const(e.div_unsigned(chunk.last, e.i64(GROUP)), GROUP));
                let (pass, passes) =
                    (e.div_unsigned(column, e.i64(16 * count)), self.sizes.value / (16 * count));
                // The sums after the value of a key of the group, and the key's place in the chunk.
                let add = |key: Val, sums: &[Val]| {
                    if self.prefetches(height) && lanes == 16 && passes > 0 {
                        let part = e.add(e.mul_const(pass, GROUP), key);
                        rows.source.prefetch_keys(next, part, passes * GROUP);
                    }
                    let elem = memory_elem(values.dtype);
                    let row = e.at(values.base, elem, e.mul(key, step));
                    let row: Vec<Val> = (0..count)
                        .map(|i| {
                            let raw = e.load_at(Ty::of(elem, wide), row, at(i));
                            factor(e, raw, values.dtype)
                        })
                        .collect();
                    let key = e.add(slot, key);
                    let weights = weights.iter().map(|w| e.load_at(SCALAR, *w, key));
                    let weights: Vec<Val> = weights.map(|w| e.splat(w, wide)).collect();
                    (products(e, &weights, &row, sums), key)
                };
                match &limits {
                    None => e.for_loop(e.i64(0), keys, 1, sums, |key, sums| add(key, sums).0),
                    Some(limits) => limits.walk(e, slot, keys, sums, add),
                }
            });
            let places = sums.iter().flat_map(|line| (0..count).map(move |i| (*line, at(i))));
            for (sum, (line, column)) in done.into_iter().zip(places) {
                e.store_at(sum, line, column);
            }
        };
        self.columns(Flash::at_once(height), columns);
    }

    /// Walks the elements of a value: `count` vectors of sixteen at once, what is left of those one
    /// by one, then the rest by powers of two.
    fn columns(&self, count: i64, body: impl Fn(Val, i64, i64)) {
        let e = &self.cx.e;
        let size = self.sizes.value;
        let step = 16 * count;
        let whole = size / step * step;
        if whole > 0 {
            e.for_each(e.i64(0), e.i64(whole), step, |column| body(column, count, 16));
        }
        let mut column = whole;
        for lanes in [16, 8, 4, 2, 1] {
            while size - column >= lanes {
                body(e.i64(column), 1, lanes);
                column += lanes;
            }
        }
    }

    fn finish(&self, rows: &Rows<'_>, row: Val) {
        let e = &self.cx.e;
        let (token, head) = self.place(rows, row);
        let output = rows.source.output(token, head);
        let sums = self.row_of(self.sums, row, Flash::width(self.sizes));
        let total = e.load_at(SCALAR, self.total, row);
        if let Some(log_sum) = rows.source.log_sum(token, head) {
            let max = e.load_at(SCALAR, self.max, row);
            log_sum.store(self.cx, e.add(math::log(e, total), max), e.i64(0));
        }
        let none = e.cmp(Cmp::Eq, total, e.f32(0.0));
        let scale = e.select(none, e.f32(0.0), e.div(e.f32(1.0), total));
        self.columns(1, |column, _, lanes| {
            let wide = u32::try_from(lanes).expect("at most sixteen");
            let sum = e.load_at(Emitter::f32s(wide), sums, column);
            let value = e.mul(sum, e.splat(scale, wide));
            // A chunk of unseen keys may turn -0 to +0; adding zero does it always.
            let value = e.add(value, e.zero(value.ty()));
            output.store_strip(self.cx, value, column, &ir::Dim::from(1));
        });
    }
}

/// Which rows of a call see the keys of a chunk.
#[derive(Clone, Copy)]
enum Seen {
    ByAll,
    BySome,
}

/// Keys of a chunk, counted from its first, that the rows of a register tile see: each row from the
/// first number up to, not including, the second.
struct Limits(Vec<(Val, Val)>);

impl Limits {
    fn of(flash: &Flash<'_>, rows: &Rows<'_>, chunk: Chunk, tile: &[Val]) -> Limits {
        let e = &flash.cx.e;
        let limits = tile.iter().map(|row| {
            let (token, _) = flash.place(rows, *row);
            let (lo, hi) = rows.source.visible(token);
            (e.sub(lo, chunk.first), e.sub(hi, chunk.first))
        });
        Limits(limits.collect())
    }

    /// Adds the values of `keys` keys from `slot` on, to every row those of the keys that it sees.
    /// Between the keys that only some rows see are, most often, some that all do.
    fn walk(
        &self,
        e: &Emitter,
        slot: Val,
        keys: Val,
        sums: &[Val],
        add: impl Fn(Val, &[Val]) -> (Vec<Val>, Val),
    ) -> Vec<Val> {
        let fold = |pick: fn(&(Val, Val)) -> Val, of: &dyn Fn(Val, Val) -> Val| {
            let all = self.0.iter().map(pick).reduce(of);
            e.sub(all.expect("a tile has rows"), slot)
        };
        let (min, max) = (|a, b| e.min(a, b), |a, b| e.max(a, b));
        let within = |from: Val, at: Val| e.max(from, e.min(at, keys));
        let first = within(e.i64(0), fold(|l| l.0, &min));
        let all = within(first, fold(|l| l.0, &max));
        let some = within(all, fold(|l| l.1, &min));
        let end = within(some, fold(|l| l.1, &max));
        let careful = |key: Val, sums: &[Val]| -> Vec<Val> {
            let (added, key) = add(key, sums);
            let each = added.len() / self.0.len();
            let seen = self.0.iter().map(|(lo, hi)| {
                let seen = e.and(e.cmp(Cmp::Ge, key, *lo), e.cmp(Cmp::Lt, key, *hi));
                std::iter::repeat_n(seen, each)
            });
            let pairs = seen.flatten().zip(added.iter().zip(sums));
            pairs.map(|(seen, (added, sum))| e.select(seen, *added, *sum)).collect()
        };
        let sums = e.for_loop(first, all, 1, sums, careful);
        let sums = e.for_loop(all, some, 1, &sums, |key, sums| add(key, sums).0);
        e.for_loop(some, end, 1, &sums, careful)
    }
}

/// Keys or values as they enter products.
fn factor(e: &Emitter, raw: Val, dtype: DType) -> Val {
    if dtype == DType::F8E4M3 { e4m3::parts(e, raw) } else { e.cast(raw, Elem::F32) }
}

/// `sums[i][j] + left[i] · right[j]`.
fn products(e: &Emitter, left: &[Val], right: &[Val], sums: &[Val]) -> Vec<Val> {
    let pairs = left.iter().flat_map(|l| right.iter().map(move |r| (*l, *r)));
    pairs.zip(sums).map(|((l, r), sum)| e.fma(l, r, *sum)).collect()
}
