//! f32 products without tensor cores.
//!
//! A warp is four threads wide and eight high; a thread has two groups of four columns and one or
//! two of four rows, so that a step over k takes three or four sixteen-byte loads. In shared memory
//! a stage is k by lines; lines are exclusive-ored with bits of k where units along k are written
//! one below the other, so that neither reads nor writes meet in a bank.

use serde::{Deserialize, Serialize};

use super::{Dense, Engine, Reader, Run, Stages, Task, pipeline, thread_again};
use crate::emit::{Cmp, Emitter, Ty, Val};

/// Steps over k of a stage.
const DEPTH: i64 = 8;
/// Elements that a thread reads at once.
const UNIT: i64 = 4;
/// Columns of a warp, of which a thread has eight.
const COLUMNS: i64 = 32;

/// A block's share of the product, and how its warps divide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tile {
    /// Warps along rows and columns.
    pub warps: [i64; 2],
    /// Rows of a thread, 4 or 8.
    #[serde(rename = "thread_rows")]
    pub rows: i64,
}

impl Tile {
    /// 128 by 128.
    pub const LARGE: Tile = Tile { warps: [2, 4], rows: 8 };
    /// 64 by 64, where there are too few tiles of that size for all multiprocessors.
    pub const MEDIUM: Tile = Tile { warps: [1, 2], rows: 8 };
    /// 64 by 64, for rows that are summed up.
    pub const WIDE: Tile = Tile { warps: [2, 2], rows: 4 };
    /// 32 by 64, for few rows.
    pub const SMALL: Tile = Tile { warps: [1, 2], rows: 4 };

    fn place(self, e: &Emitter, thread: Val) -> Lane {
        let (warp, lane) = (e.shr(thread, 5), e.and(thread, e.i32(31)));
        let along = e.rem_unsigned(warp, e.i32(self.warps[0]));
        let across = e.div_unsigned(warp, e.i32(self.warps[0]));
        Lane {
            warp: [e.mul_const(along, 8 * self.rows), e.mul_const(across, COLUMNS)],
            own: [e.shl(e.shr(lane, 2), 2), e.shl(e.and(lane, e.i32(3)), 2)],
        }
    }
}

/// Where a thread is.
struct Lane {
    /// First row and column of the warp.
    warp: [Val; 2],
    /// The thread's first ones within the warp.
    own: [Val; 2],
}

impl Engine for Tile {
    fn threads(&self) -> u32 {
        u32::try_from(32 * self.warps[0] * self.warps[1]).expect("few warps")
    }

    fn resident(&self) -> u32 {
        // Sums of eight by eight and what they are made of take more than 128 registers.
        let each = if self.rows == 8 { 384 } else { 512 };
        each / self.threads()
    }

    fn tile(&self) -> [i64; 2] {
        [self.warps[0] * 8 * self.rows, self.warps[1] * COLUMNS]
    }

    fn lines(&self) -> usize {
        usize::try_from(self.rows).expect("few rows")
    }

    fn warps(&self) -> [i64; 2] {
        self.warps
    }

    fn shared_bytes(&self) -> u32 {
        let [m, n] = self.tile();
        u32::try_from(2 * DEPTH * (m + n) * 4).expect("small")
    }

    fn sums(&self, e: &Emitter, task: &Task) -> Vec<Val> {
        let [m, n] = self.tile();
        let share = (task.k, self.threads());
        let a = Reader::new(e, &task.a, (task.first[0], m), [UNIT, DEPTH], share);
        let b = Reader::new(e, &task.b, (task.first[1], n), [UNIT, DEPTH], share);
        let turns = [a.dense(), b.dense()];
        let gen_ = Gen { e, tile: *self, lane: self.place(e, e.thread()), turns };
        let zeros = vec![e.f32(0.0); self.count()];
        pipeline(e, &[(0, a), (1, b)], None, task.k, &gen_, &zeros)
    }

    fn held_bytes(&self, k: i64) -> u32 {
        u32::try_from(4 * k * self.tile()[0]).expect("small")
    }

    fn hold(&self, e: &Emitter, to: Val, row: Val, k: Val, values: &[Val]) {
        let m = self.tile()[0];
        let at = e.add(to, e.shl(e.add(e.mul_const(k, m), row), 2));
        for (i, value) in (0..).zip(values) {
            e.ptx(&format!("st.shared.f32 [$0+{}], $1;", 4 * i * m), &[at, *value]);
        }
    }

    fn more(&self, e: &Emitter, held: Val, task: &Task, sums: &[Val]) -> Vec<Val> {
        let share = (task.k, self.threads());
        let lines = (task.first[1], self.tile()[1]);
        let b = Reader::new(e, &task.b, lines, [UNIT, DEPTH], share);
        let turns = [Dense::Lines, b.dense()];
        let gen_ = Gen { e, tile: *self, lane: self.place(e, e.thread()), turns };
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
        let Lane { warp, own: lane } = self.place(e, thread_again(e));
        let top = e.add(first[0], e.add(warp[0], lane[0]));
        let left = e.add(first[1], warp[1]);
        for (line, own) in sums.chunks_exact(8).enumerate() {
            let i = i64::try_from(line).expect("few rows");
            let row = e.add_const(top, i / 4 * 32 + i % 4);
            if gated {
                let column = e.add(e.shr(left, 1), lane[1]);
                body(&Run { line, row, column, sums: &own[..4], up: Some(&own[4..]) });
                continue;
            }
            for (j, sums) in (0..).zip(own.chunks_exact(4)) {
                let column = e.add_const(e.add(left, lane[1]), 16 * j);
                body(&Run { line, row, column, sums, up: None });
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
    turns: [Dense; 2],
}

impl Gen<'_> {
    /// Lines of an operand's stage.
    fn lines(&self, side: usize) -> i64 {
        self.tile.tile()[side]
    }

    /// Where an operand's stage begins within a stage.
    fn offset(&self, side: usize) -> i64 {
        if side == 0 { 0 } else { self.left_bytes() }
    }

    /// What lines are exclusive-ored with at `k`.
    fn turn(&self, side: usize, k: Val) -> Val {
        let e = self.e;
        match self.turns[side] {
            Dense::K => e.shl(e.and(e.shr(k, 2), e.i32(1)), 4),
            Dense::Lines => e.i32(0),
            Dense::Panels => e.shl(e.and(k, e.i32(1)), 4),
        }
    }

    /// A thread's numbers of one side, four for each of its groups: at a step `k` that is known
    /// here, or at one that is a value.
    fn fragment(&self, from: Val, side: usize, (k, known): (Val, Option<i64>)) -> Vec<Val> {
        let (e, lines) = (self.e, self.lines(side));
        let turn = match known {
            Some(k) => match self.turns[side] {
                Dense::K => e.i32((k >> 2 & 1) << 4),
                Dense::Lines => e.i32(0),
                Dense::Panels => e.i32((k & 1) << 4),
            },
            None => self.turn(side, k),
        };
        let (groups, step) = if side == 0 { (self.tile.rows / 4, 32) } else { (2, 16) };
        let mut numbers = Vec::new();
        for group in 0..groups {
            // Rows of groups differ in bits that are never turned.
            let (within, beyond) = if side == 0 { (0, step * group) } else { (step * group, 0) };
            let line = e.xor(e.add_const(self.lane.own[side], within), turn);
            let line = e.add(line, self.lane.warp[side]);
            let mut at = e.add(from, e.shl(line, 2));
            let mut offset = self.offset(side) + 4 * beyond;
            match known {
                Some(k) => offset += 4 * k * lines,
                None => at = e.add(at, e.mul_const(k, 4 * lines)),
            }
            let text = format!("ld.shared.v4.f32 {{$0, $1, $2, $3}}, [$4+{offset}];");
            numbers.extend(e.ptx_values(&text, &[Emitter::f32s(1); 4], &[at]));
        }
        numbers
    }

    fn step(&self, from: [Val; 2], k: (Val, Option<i64>), sums: &[Val]) -> Vec<Val> {
        let a = self.fragment(from[0], 0, k);
        let b = self.fragment(from[1], 1, k);
        let pairs = a.iter().flat_map(|a| b.iter().map(move |b| (*a, *b)));
        pairs.zip(sums).map(|((a, b), sum)| self.e.fma(a, b, *sum)).collect()
    }
}

impl Stages for Gen<'_> {
    fn depth(&self) -> i64 {
        DEPTH
    }

    fn bytes(&self) -> i64 {
        DEPTH * (self.lines(0) + self.lines(1)) * 4
    }

    fn left_bytes(&self) -> i64 {
        DEPTH * self.lines(0) * 4
    }

    fn write(&self, side: usize, reader: &Reader<'_>, raw: &[Vec<Val>], to: Val) {
        let (e, lines, offset) = (self.e, self.lines(side), self.offset(side));
        for (unit, words) in reader.units.iter().zip(raw) {
            let line = e.xor(unit.line, self.turn(side, unit.k));
            let at = e.add(e.mul_const(unit.k, lines), line);
            let at = e.add(to, e.shl(at, 2));
            let floats = reader.floats(words);
            if reader.dense() == Dense::K {
                for (i, value) in (0..).zip(floats) {
                    let offset = offset + 4 * i * lines;
                    e.ptx(&format!("st.shared.f32 [$0+{offset}], $1;"), &[at, value]);
                }
            } else {
                let text = format!("st.shared.v4.f32 [$0+{offset}], {{$1, $2, $3, $4}};");
                e.ptx(&text, &[&[at], &floats[..]].concat());
            }
        }
    }

    fn multiply(&self, from: [Val; 2], count: Val, sums: &[Val]) -> Vec<Val> {
        let e = self.e;
        let types: Vec<Ty> = sums.iter().map(|sum| sum.ty()).collect();
        let whole = e.cmp(Cmp::Ge, count, e.i32(DEPTH));
        let all = || {
            let step = |sums: Vec<Val>, k| self.step(from, (e.i32(k), Some(k)), &sums);
            (0..DEPTH).fold(sums.to_vec(), step)
        };
        // Zeros would make `+0` of a sum that is `-0`.
        let some =
            || e.for_loop(e.i32(0), count, 1, sums, |k, sums| self.step(from, (k, None), sums));
        e.if_else(whole, &types, all, some)
    }
}
