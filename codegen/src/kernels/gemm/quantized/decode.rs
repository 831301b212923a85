//! Few rows: what takes time is to read the weight, once.
//!
//! A block computes one panel, two of a gated weight; each of its warps walks the groups of a part
//! of k. Every lane copies the integers and scales that it needs itself to its own place in a ring
//! of stages, sixteen bytes a copy, so that many are in flight, no registers wait for them, and no
//! barrier is needed. On `sm_90a` the ring is filled before the grid waits for the ones before it.
//! Activations, which all blocks read, come from the caches to registers, a
//! group or two ahead. The parts meet in shared memory.

use serde::{Deserialize, Serialize};

use super::{
    super::{Draft, Gemm, PANEL, epilogue::Epilogue},
    GROUP, PARTS, groups,
    lanes::{Lane, Lanes, SCALES, WORD},
    part_groups,
};
use crate::emit::{Barrier, Cmp, Elem, Emitter, Val};

/// What a block has for few rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// Rows of y, at most: 8 or 16.
    pub m: i64,
    /// Bytes of integers that a lane has in flight: a multiple of 64.
    pub ahead_bytes: i64,
}

impl Stream {
    /// For at most eight rows.
    pub const EIGHT: Stream = Stream { m: 8, ahead_bytes: 128 };
    /// For at most sixteen.
    pub const SIXTEEN: Stream = Stream { m: 16, ahead_bytes: 128 };
}

/// Emits the kernel `symbol`.
pub(super) fn emit(symbol: &str, spec: &Gemm, stream: Stream, begins_early: bool) -> Draft {
    let rows = stream.m;
    let e = Emitter::cuda(symbol, u32::try_from(32 * PARTS).expect("few warps"));
    let e = e.with_blocks(if rows == 8 { 4 } else { 3 });
    let generator = Decode::new(&e, spec, stream);
    generator.emit(begins_early);
    let panels = generator.panels;
    let shared = PARTS * generator.ring_bytes() + (PARTS - 1) * generator.count() * 128;
    Draft {
        e,
        tile: [rows, panels * PANEL],
        blocks: None,
        shared_bytes: u32::try_from(shared).expect("few sums"),
        maps: Vec::new(),
        max_rows: None,
        early: if begins_early { vec![spec.w] } else { Vec::new() },
    }
}

/// Emission state.
pub(super) struct Decode<'a> {
    lanes: Lanes<'a>,
    e: &'a Emitter,
    spec: &'a Gemm,
    /// Panels of a block.
    panels: i64,
    /// Blocks of eight rows.
    row_blocks: i64,
    /// Stages of the ring.
    stages: i64,
    /// Groups of an iteration, by which activations are ahead.
    unroll: i64,
    rows: Val,
    lane: Val,
    warp: Val,
    /// Quotient and remainder of the lane by four.
    place: [Val; 2],
}

impl<'a> Decode<'a> {
    /// Whether rows of x can be loaded sixteen bytes at a time.
    pub(super) fn can_load(spec: &Gemm) -> bool {
        spec.k % 8 == 0 && spec.a.stride * spec.a.elem.bytes().cast_signed() % 16 == 0
    }

    fn new(e: &'a Emitter, spec: &'a Gemm, stream: Stream) -> Self {
        let lanes = Lanes::new(e, spec);
        let panels = if spec.gated { 2 } else { 1 };
        let thread = e.thread();
        let lane = e.and(thread, e.i32(31));
        let even = part_groups(spec) * PARTS == groups(spec) && part_groups(spec) % 2 == 0;
        Decode {
            stages: 1 + stream.ahead_bytes / (16 * lanes.loads() * panels),
            unroll: if even { 2 } else { 1 },
            lanes,
            e,
            spec,
            panels,
            row_blocks: stream.m / 8,
            rows: e.cast(e.dim(0), Elem::I32),
            lane,
            warp: e.shr(thread, 5),
            place: [e.shr(lane, 2), e.and(lane, e.i32(3))],
        }
    }

    /// Sums of a lane.
    fn count(&self) -> i64 {
        4 * self.panels * self.row_blocks
    }

    /// Bytes of a lane's and all others' part of a panel's group.
    fn panel_bytes(&self) -> i64 {
        512 * self.lanes.loads() + 256
    }

    fn stage_bytes(&self) -> i64 {
        self.panels * self.panel_bytes()
    }

    /// Bytes of a warp's ring.
    fn ring_bytes(&self) -> i64 {
        self.stages * self.stage_bytes()
    }

    fn emit(&self, begins_early: bool) {
        let e = self.e;
        if begins_early {
            e.launch_dependents();
        }
        let part = part_groups(self.spec);
        let first = e.mul_const(self.warp, part);
        let all = e.i32(groups(self.spec));
        let end = e.min(e.add_const(first, part), all);
        let (panels, rows) = (self.panel_addresses(), self.row_addresses());
        let ring = e.add(e.shared(), e.mul_const(self.warp, self.ring_bytes()));
        let fetch = |group: Val, stage: Val| {
            e.if_then(e.cmp(Cmp::Lt, group, end), || {
                self.fetch(&panels, group, e.add(ring, stage));
            });
            e.ptx("cp.async.commit_group;", &[]);
        };
        for s in 0..self.stages - 1 {
            fetch(e.add_const(first, s), e.i32(s * self.stage_bytes()));
        }
        // Nothing but the weight has been read.
        if begins_early {
            e.wait_for_grids();
        }
        // Groups past the last are read again, not used.
        let x = |group: Val| -> Vec<Val> {
            let group = e.min(group, e.add_const(all, -1));
            rows.iter().flat_map(|base| self.load_x(*base, group)).collect()
        };
        let turn = |at: Val| {
            let next = e.add_const(at, self.stage_bytes());
            e.select(e.cmp(Cmp::Eq, next, e.i32(self.ring_bytes())), e.i32(0), next)
        };
        let mut init = vec![e.i32(0), e.i32((self.stages - 1) * self.stage_bytes())];
        init.extend((0..self.unroll).flat_map(|i| x(e.add_const(first, i))));
        init.extend(vec![e.f32(0.0); at(self.count())]);
        let done = e.for_loop(first, end, self.unroll, &init, |start, carried| {
            let [mut reads, mut writes, ref rest @ ..] = *carried else {
                unreachable!("a ring, rows and sums")
            };
            let (rows, sums) = rest.split_at(rest.len() - at(self.count()));
            let (mut next_rows, mut sums) = (Vec::new(), sums.to_vec());
            for (i, rows) in (0..).zip(rows.chunks_exact(rows.len() / at(self.unroll))) {
                let group = e.add_const(start, i);
                e.ptx(&format!("cp.async.wait_group {};", self.stages - 2), &[]);
                fetch(e.add_const(group, self.stages - 1), writes);
                next_rows.extend(x(e.add_const(group, self.unroll)));
                sums = self.group(e.add(ring, reads), rows, &sums);
                (reads, writes) = (turn(reads), turn(writes));
            }
            [reads, writes].into_iter().chain(next_rows).chain(sums).collect()
        });
        self.finish(&done[done.len() - at(self.count())..]);
    }

    /// Where the lane's part of each panel's first group begins.
    fn panel_addresses(&self) -> Vec<Val> {
        let e = self.e;
        let panel_bytes = groups(self.spec) * self.lanes.group_bytes();
        let first = e.mul_const(e.cast(e.block('y'), Elem::I64), self.panels * panel_bytes);
        let first = e.at(e.arg(self.spec.w), Elem::I8, first);
        (0..self.panels).map(|p| e.at_const(first, Elem::I8, p * panel_bytes)).collect()
    }

    /// Where the lane's part of each row's first group begins; rows beyond the last are the last.
    fn row_addresses(&self) -> Vec<Val> {
        let (e, a) = (self.e, self.spec.a);
        let last = e.add_const(self.rows, -1);
        let row = |block: i64| {
            let row = e.min(e.add_const(self.place[0], 8 * block), last);
            let start = e.mul_const(e.cast(row, Elem::I64), a.stride);
            let within = e.cast(e.shl(self.place[1], 3), Elem::I64);
            e.at(e.arg(a.arg), a.elem, e.add(start, within))
        };
        (0..self.row_blocks).map(row).collect()
    }

    /// Begins the copies of the lane's part of a group to the stage at `to`.
    fn fetch(&self, panels: &[Val], group: Val, to: Val) {
        let e = self.e;
        let offset = e.mul_const(e.cast(group, Elem::I64), self.lanes.group_bytes());
        let own = |unit: Val, shift: u32| e.cast(e.shl(unit, shift), Elem::I64);
        for (panel, base) in (0..).zip(panels) {
            let group = e.at(*base, Elem::I8, offset);
            let integers = e.at(group, Elem::I8, own(self.lane, 4));
            let to = e.add_const(to, panel * self.panel_bytes());
            let place = e.add(to, e.shl(self.lane, 4));
            for i in 0..self.lanes.loads() {
                let (at, from) = (512 * i, SCALES + 512 * i);
                let text = format!("cp.async.cg.shared.global [$0+{at}], [$1+{from}], 16;");
                e.ptx(&text, &[place, integers]);
            }
            let scales = e.at(group, Elem::I8, own(self.place[0], 3));
            let place = e.add(to, e.shl(self.lane, 3));
            let text =
                format!("cp.async.ca.shared.global [$0+{}], [$1], 8;", 512 * self.lanes.loads());
            e.ptx(&text, &[place, scales]);
        }
    }

    /// The lane's integers of a panel in a stage, and its scales.
    fn read(&self, stage: Val, panel: i64) -> (Vec<Val>, [Val; 2]) {
        let e = self.e;
        let first = panel * self.panel_bytes();
        let place = e.add(stage, e.shl(self.lane, 4));
        let load = |i: i64| {
            let text = format!("ld.shared.v4.b32 {{$0, $1, $2, $3}}, [$4+{}];", first + 512 * i);
            e.ptx_values(&text, &[WORD; 4], &[place])
        };
        let words = (0..self.lanes.loads()).flat_map(load).collect();
        let place = e.add(stage, e.shl(self.lane, 3));
        let at = first + 512 * self.lanes.loads();
        let text = format!("ld.shared.v2.b32 {{$0, $1}}, [$2+{at}];");
        let scales = e.ptx_values(&text, &[WORD; 2], &[place]);
        (words, [scales[0], scales[1]])
    }

    /// Eight k of each block, of x's own type; zeros where the row has ended.
    fn load_x(&self, base: Val, group: Val) -> Vec<Val> {
        let (e, a) = (self.e, self.spec.a);
        let from = e.at(base, a.elem, e.mul_const(e.cast(group, Elem::I64), GROUP));
        let bytes = a.elem.bytes().cast_signed();
        let mut words = Vec::new();
        for block in 0..2 {
            for i in 0..bytes / 2 {
                let at = block * 32 * bytes + 16 * i;
                let load = format!("ld.global.nc.v4.b32 {{$0, $1, $2, $3}}, [$4+{at}];");
                words.extend(if self.spec.k % GROUP == 0 {
                    e.ptx_values(&load, &[WORD; 4], &[from])
                } else {
                    let first = e.add(e.mul_const(group, GROUP), e.shl(self.place[1], 3));
                    let left = e.sub(e.i32(self.spec.k - 32 * block), first);
                    // The predicate first: a result may be in the register of an operand.
                    let text = format!(
                        "{{\n.reg .pred some;\nsetp.gt.s32 some, $5, 0;\nmov.b32 $0, 0;\nmov.b32 \
                         $1, 0;\nmov.b32 $2, 0;\nmov.b32 $3, 0;\n@some {load}\n}}"
                    );
                    e.ptx_values(&text, &[WORD; 4], &[from, left])
                });
            }
        }
        words
    }

    /// Adds the group in a stage to the sums.
    fn group(&self, stage: Val, x: &[Val], sums: &[Val]) -> Vec<Val> {
        let mut sums = sums.to_vec();
        let rows = at(self.row_blocks);
        let x: Vec<Vec<Val>> = x.chunks_exact(x.len() / rows).map(|x| self.right(x)).collect();
        for (panel, sums) in (0..).zip(sums.chunks_exact_mut(4 * rows)) {
            let (words, scales) = self.read(stage, panel);
            let lane = Lane { words: &words, scales };
            for block in 0..2 {
                let (left, scales) = (self.lanes.left(lane, block), self.lanes.scales(lane, block));
                for (x, sums) in x.iter().zip(sums.chunks_exact_mut(4)) {
                    self.lanes.block(&left, &x[4 * block..][..4], scales, sums);
                }
            }
        }
        sums
    }

    /// Words of the right operands of a group's four products.
    fn right(&self, x: &[Val]) -> Vec<Val> {
        if self.spec.a.elem != Elem::F32 {
            return x.to_vec();
        }
        let e = self.e;
        let floats: Vec<Val> = x.iter().map(|v| e.bitcast(*v, Emitter::f32s(1))).collect();
        floats.chunks_exact(2).map(|pair| self.lanes.round(pair)).collect()
    }

    /// Adds the parts and writes y.
    fn finish(&self, sums: &[Val]) {
        let e = self.e;
        let own = e.add_const(e.shared(), PARTS * self.ring_bytes());
        let own = e.add(own, e.shl(self.lane, 2));
        let bytes = self.count() * 128;
        let others = e.cmp(Cmp::Gt, self.warp, e.i32(0));
        e.if_then(others, || {
            let to = e.add(own, e.mul_const(e.add_const(self.warp, -1), bytes));
            for (i, sum) in sums.iter().enumerate() {
                e.ptx(&format!("st.shared.f32 [$0+{}], $1;", 128 * i), &[to, *sum]);
            }
        });
        e.barrier(Barrier::Block);
        e.if_then(e.cmp(Cmp::Eq, self.warp, e.i32(0)), || {
            let mut totals: Vec<Val> = sums.iter().map(|sum| e.add(e.f32(0.0), *sum)).collect();
            for part in 0..PARTS - 1 {
                for (i, total) in (0..).zip(&mut totals) {
                    let text = format!("ld.shared.f32 $0, [$1+{}];", part * bytes + 128 * i);
                    let sum = e.ptx_values(&text, &[Emitter::f32s(1)], &[own])[0];
                    *total = e.add(*total, sum);
                }
            }
            self.store(&totals);
        });
    }

    fn store(&self, totals: &[Val]) {
        let (e, spec) = (self.e, self.spec);
        let epilogue = Epilogue { e, spec, rows: self.rows, whole: spec.n % PANEL == 0 };
        let column = e.shl(e.add(e.shl(e.block('y'), 3), self.place[0]), 1);
        let rows = at(self.row_blocks);
        for block in 0..rows {
            let sums: Vec<&[Val]> =
                totals.chunks_exact(4 * rows).map(|sums| &sums[4 * block..][..4]).collect();
            for i in 0..2 {
                let row = e.add_const(e.shl(self.place[1], 1), (8 * block + i) as i64);
                epilogue.store_panels(row, column, &self.lanes.pairs(&sums, i));
            }
        }
    }
}

fn at(i: i64) -> usize {
    usize::try_from(i).expect("small")
}
