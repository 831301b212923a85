//! Products of bf16 or f16 by `mma.sync.m16n8k16`; other operands are rounded to that type.
//!
//! Shared memory holds a stage as lines of sixteen-byte units along the axis along which the
//! operand was read: `ldmatrix` transposes where that is not k. Units are exclusive-ored with bits
//! of the line's number, as in [`super::super::sm80`], whose order over k is the same.

use super::{Dense, Engine, Reader, Run, Stages, Task, pipeline};
use crate::{
    emit::{Elem, Emitter, Ty, Val},
    kernels::gemm::PANEL,
};

const WORD: Ty = Ty::Scalar(Elem::I32);
/// Elements of a unit.
const UNIT: i64 = 8;

/// A block's share of the product, and how its warps divide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Type that is multiplied, bf16 or f16.
    pub elem: Elem,
    /// Rows; a multiple of `16 · warps[0]`.
    pub m: i64,
    /// Columns; a multiple of `16 · warps[1]`, of a gated product `32 · warps[1]`.
    pub n: i64,
    /// Steps over k of a stage, 32 or 64.
    pub k: i64,
    /// Warps along rows and columns.
    pub warps: [i64; 2],
}

impl Tile {
    /// For many rows.
    #[must_use]
    pub const fn large(elem: Elem) -> Tile {
        Tile { elem, m: 128, n: 128, k: 32, warps: [2, 4] }
    }

    /// For fewer, or where larger tiles would leave multiprocessors idle.
    #[must_use]
    pub const fn medium(elem: Elem) -> Tile {
        Tile { elem, m: 64, n: 64, k: 32, warps: [2, 2] }
    }

    /// For rows that are summed up.
    #[must_use]
    pub const fn wide(elem: Elem) -> Tile {
        Tile { elem, m: 64, n: 128, k: 32, warps: [2, 4] }
    }

    /// For few rows: little to compute, much to read.
    #[must_use]
    pub const fn small(elem: Elem) -> Tile {
        Tile { elem, m: 16, n: 64, k: 64, warps: [1, 2] }
    }

    /// The type as PTX names it.
    const fn name(self) -> &'static str {
        if matches!(self.elem, Elem::F16) { "f16" } else { "bf16" }
    }

    /// Blocks of 16 rows and of 8 columns of a warp.
    const fn blocks(self) -> [i64; 2] {
        [self.m / self.warps[0] / 16, self.n / self.warps[1] / 8]
    }

    fn place(self, e: &Emitter, thread: Val) -> Lane {
        let warp = e.shr(thread, 5);
        let along = e.rem_unsigned(warp, e.i32(self.warps[0]));
        let across = e.div_unsigned(warp, e.i32(self.warps[0]));
        let [m, n] = [self.m / self.warps[0], self.n / self.warps[1]];
        Lane {
            lane: e.and(thread, e.i32(31)),
            warp: [e.mul_const(along, m), e.mul_const(across, n)],
        }
    }
}

/// Where a thread is.
struct Lane {
    lane: Val,
    /// First row and column of the warp.
    warp: [Val; 2],
}

impl Engine for Tile {
    fn threads(&self) -> u32 {
        u32::try_from(32 * self.warps[0] * self.warps[1]).expect("few warps")
    }

    fn tile(&self) -> [i64; 2] {
        [self.m, self.n]
    }

    fn lines(&self) -> usize {
        usize::try_from(2 * self.blocks()[0]).expect("few rows")
    }

    fn warps(&self) -> [i64; 2] {
        self.warps
    }

    fn shared_bytes(&self) -> u32 {
        u32::try_from(2 * self.k * (self.m + self.n) * 2).expect("small")
    }

    fn sums(&self, e: &Emitter, task: &Task) -> Vec<Val> {
        let share = (task.k, self.threads());
        let a = Reader::new(e, &task.a, (task.first[0], self.m), [UNIT, self.k], share);
        let b = Reader::new(e, &task.b, (task.first[1], self.n), [UNIT, self.k], share);
        let dense = [a.dense(), b.dense()];
        let gen_ = Gen { e, tile: *self, lane: self.place(e, e.thread()), dense };
        let zeros = vec![e.f32(0.0); self.count()];
        pipeline(e, &[(0, a), (1, b)], None, task.k, &gen_, &zeros)
    }

    fn held_bytes(&self, k: i64) -> u32 {
        u32::try_from(2 * k * self.m).expect("small")
    }

    fn hold(&self, e: &Emitter, to: Val, row: Val, k: Val, values: &[Val]) {
        let dense = [Dense::K; 2];
        let gen_ = Gen { e, tile: *self, lane: self.place(e, e.thread()), dense };
        let (stage, k) = (e.div_unsigned(k, e.i32(self.k)), e.rem_unsigned(k, e.i32(self.k)));
        let stage = e.add(to, e.mul_const(stage, gen_.left_bytes()));
        let unit = gen_.place(0, row, e.shr(k, 3));
        let at = e.add(e.add(stage, unit), e.shl(e.and(k, e.i32(UNIT - 1)), 1));
        let text = format!("cvt.rn.{}x2.f32 $0, $2, $1;", self.name());
        for (i, pair) in (0..).zip(values.chunks_exact(2)) {
            let pair = e.ptx_pure(&text, &[WORD], pair)[0];
            e.ptx(&format!("st.shared.b32 [$0+{}], $1;", 4 * i), &[at, pair]);
        }
    }

    fn more(&self, e: &Emitter, held: Val, task: &Task, sums: &[Val]) -> Vec<Val> {
        let share = (task.k, self.threads());
        let b = Reader::new(e, &task.b, (task.first[1], self.n), [UNIT, self.k], share);
        let dense = [Dense::K, b.dense()];
        let gen_ = Gen { e, tile: *self, lane: self.place(e, e.thread()), dense };
        pipeline(e, &[(1, b)], Some(held), task.k, &gen_, sums)
    }

    fn each(
        &self,
        e: &Emitter,
        first: [Val; 2],
        sums: &[Val],
        gated: bool,
        body: &mut dyn FnMut(&Run<'_>),
    ) {
        let Lane { lane, warp } = self.place(e, e.thread());
        let n = usize::try_from(self.blocks()[1]).expect("few blocks");
        let top = e.add(e.add(first[0], warp[0]), e.shr(lane, 2));
        let left = e.add(first[1], warp[1]);
        let pair = e.shl(e.and(lane, e.i32(3)), 1);
        for (i, block) in sums.chunks_exact(4 * n).enumerate() {
            for half in 0..2 {
                let line = 2 * i + half;
                let row = e.add_const(top, 8 * i64::try_from(line).expect("few rows"));
                let own = |j: usize| &block[4 * j + 2 * half..][..2];
                if !gated {
                    for j in 0..n {
                        let at = 8 * i64::try_from(j).expect("few blocks");
                        let column = e.add_const(e.add(left, pair), at);
                        body(&Run { line, row, column, sums: own(j), up: None });
                    }
                    continue;
                }
                // Of four blocks the first two are the gate's.
                for j in (0..n).filter(|j| j % 4 < 2) {
                    let at = 16 * (j / 4) + 8 * (j % 4);
                    let column = e.add(e.shr(left, 1), pair);
                    let column = e.add_const(column, i64::try_from(at).expect("few blocks"));
                    body(&Run { line, row, column, sums: own(j), up: Some(own(j + 2)) });
                }
            }
        }
    }
}

/// Emission state.
struct Gen<'a> {
    e: &'a Emitter,
    tile: Tile,
    lane: Lane,
    /// Of the left and right operand.
    dense: [Dense; 2],
}

impl Gen<'_> {
    /// Where an operand's stage begins within a stage.
    fn offset(&self, side: usize) -> i64 {
        if side == 0 { 0 } else { self.left_bytes() }
    }

    /// Sixteen-byte units of a line in shared memory.
    fn across(&self, side: usize) -> i64 {
        match self.dense[side] {
            Dense::K => self.tile.k / UNIT,
            Dense::Lines => self.tile.tile()[side] / UNIT,
            Dense::Panels => PANEL / UNIT,
        }
    }

    /// Offset in bytes of a unit of a line.
    fn place(&self, side: usize, line: Val, unit: Val) -> Val {
        let (e, across) = (self.e, self.across(side));
        let turn = match across {
            // So many lines share the 128 bytes of all banks.
            2 => e.and(e.shr(line, 2), e.i32(1)),
            4 => e.and(e.shr(line, 1), e.i32(3)),
            _ => e.and(line, e.i32(7)),
        };
        e.shl(e.add(e.mul_const(line, across), e.xor(unit, turn)), 4)
    }

    /// Block `i` of sixteen rows at sixteen-wide step `step`.
    fn left(&self, from: Val, i: i64, step: i64) -> Vec<Val> {
        let (e, lane, first) = (self.e, self.lane.lane, self.lane.warp[0]);
        let low = e.and(lane, e.i32(7));
        let (second, high) = (e.and(e.shr(lane, 3), e.i32(1)), e.shr(lane, 4));
        if self.dense[0] == Dense::K {
            let row = e.add_const(e.add(first, e.and(lane, e.i32(15))), 16 * i);
            let unit = e.add_const(high, 2 * step);
            return self.ldmatrix("", e.add(from, self.place(0, row, unit)));
        }
        // Matrices: both halves of rows for the first eight steps, then for the others.
        let k = e.add_const(e.add(low, e.shl(high, 3)), 16 * step);
        let unit = e.add_const(e.add(e.shr(first, 3), second), 2 * i);
        self.ldmatrix(".trans", e.add(from, self.place(0, k, unit)))
    }

    /// Blocks `2j` and `2j + 1` of eight columns at step `step`.
    fn right(&self, from: Val, j: i64, step: i64) -> [[Val; 2]; 2] {
        let (e, lane, first) = (self.e, self.lane.lane, self.lane.warp[1]);
        let low = e.and(lane, e.i32(7));
        let (second, high) = (e.and(e.shr(lane, 3), e.i32(1)), e.shr(lane, 4));
        // Matrices: both halves of k for the first eight columns, then for the others.
        let k = e.add_const(e.add(low, e.shl(second, 3)), 16 * step);
        let from = e.add_const(from, self.offset(1));
        let words = match self.dense[1] {
            Dense::K => {
                let column = e.add_const(e.add(first, e.add(low, e.shl(high, 3))), 16 * j);
                let unit = e.add_const(second, 2 * step);
                self.ldmatrix("", e.add(from, self.place(1, column, unit)))
            }
            Dense::Lines => {
                let unit = e.add_const(e.add(e.shr(first, 3), high), 2 * j);
                self.ldmatrix(".trans", e.add(from, self.place(1, k, unit)))
            }
            Dense::Panels => {
                let panel = e.add_const(e.shr(first, 4), j);
                let line = e.add(e.mul_const(panel, self.tile.k), k);
                self.ldmatrix(".trans", e.add(from, self.place(1, line, high)))
            }
        };
        [[words[0], words[1]], [words[2], words[3]]]
    }

    fn ldmatrix(&self, trans: &str, at: Val) -> Vec<Val> {
        let text =
            format!("ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{$0, $1, $2, $3}}, [$4];");
        self.e.ptx_values(&text, &[WORD; 4], &[at])
    }
}

impl Stages for Gen<'_> {
    fn depth(&self) -> i64 {
        self.tile.k
    }

    fn bytes(&self) -> i64 {
        self.tile.k * (self.tile.m + self.tile.n) * 2
    }

    fn left_bytes(&self) -> i64 {
        self.tile.m * self.tile.k * 2
    }

    fn write(&self, side: usize, reader: &Reader<'_>, raw: &[Vec<Val>], to: Val) {
        let (e, offset) = (self.e, self.offset(side));
        for (unit, words) in reader.units.iter().zip(raw) {
            let (line, place) = match reader.dense() {
                Dense::K => (unit.line, e.shr(unit.k, 3)),
                Dense::Lines => (unit.k, e.shr(unit.line, 3)),
                Dense::Panels => {
                    let panel = e.mul_const(e.shr(unit.line, 4), self.tile.k);
                    (e.add(panel, unit.k), e.and(e.shr(unit.line, 3), e.i32(1)))
                }
            };
            let at = e.add(to, self.place(side, line, place));
            let pairs = reader.pairs(words, self.tile.elem);
            let text = format!("st.shared.v4.b32 [$0+{offset}], {{$1, $2, $3, $4}};");
            e.ptx(&text, &[&[at], &pairs[..]].concat());
        }
    }

    fn multiply(&self, from: [Val; 2], _: Val, sums: &[Val]) -> Vec<Val> {
        let e = self.e;
        let name = self.tile.name();
        let text = format!(
            "mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32 {{$0, $1, $2, $3}}, {{$8, $9, \
             $10, $11}}, {{$12, $13}}, {{$0, $1, $2, $3}};"
        );
        let [m, n] = self.tile.blocks();
        let mut sums = sums.to_vec();
        for step in 0..self.tile.k / 16 {
            let left: Vec<Vec<Val>> = (0..m).map(|i| self.left(from[0], i, step)).collect();
            let right: Vec<[Val; 2]> =
                (0..n / 2).flat_map(|j| self.right(from[1], j, step)).collect();
            let pairs = left.iter().flat_map(|a| right.iter().map(move |b| (a, b)));
            for ((a, b), sum) in pairs.zip(sums.chunks_exact_mut(4)) {
                let operands: Vec<Val> = a.iter().chain(b).copied().collect();
                sum.copy_from_slice(&e.ptx_update(&text, sum, &operands));
            }
        }
        sums
    }
}
