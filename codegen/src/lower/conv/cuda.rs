//! Convolutions on a GPU: products of weight and patches in shared memory.
//!
//! A block of threads has 64 output channels and 128 output positions, counted over the batch, and
//! goes through k sixteen steps at a time; what the next sixteen read is on its way while these are
//! multiplied. A thread has eight channels of four positions, each one chain of fused multiply-adds
//! from zero in the order of k that the CPU has.

use ir::{Dim, KernelSpec};

use super::{
    Shape,
    axes::{Axis, Phase},
};
use crate::{
    cuda::CudaKernel,
    emit::{Barrier, Cmp, Elem, Ty, Val},
    lower::{cx::Cx, view::View},
};

const THREADS: u32 = 256;
/// Output channels and positions of a block, and steps of k that are in shared memory.
const ROWS: i64 = 64;
const COLUMNS: i64 = 128;
const DEPTH: i64 = 16;
/// Channels and positions of a thread.
const OWN_ROWS: i64 = 8;
const OWN_COLUMNS: i64 = 4;
/// Words from one step of the weight to the next: a multiple of four, and of no more than that.
const PITCH: i64 = ROWS + 4;
/// Where the patches begin.
const PATCHES: i64 = 4 * PITCH * DEPTH;
const BYTES: i64 = PATCHES + 4 * COLUMNS * DEPTH;

const F32: Ty = Ty::Scalar(Elem::F32);

pub(super) fn kernel(spec: &KernelSpec, shape: &Shape) -> CudaKernel {
    let cx = Cx::cuda(spec, THREADS);
    let e = &cx.e;
    let (x, y) = (cx.operand(0), cx.result(0));
    let axes = Axis::all(shape, &x, &y);
    let positions = axes.iter().fold(Dim::from(1), |n, axis| n * axis.count.clone());
    let all = positions * y.shape[0].clone();
    let phases: i64 = axes.iter().map(|axis| axis.phases).product();
    let z = e.cast(e.block('z'), Elem::I64);
    let phase = Phase::new(&cx, &axes, e.rem_unsigned(z, e.i64(phases)));
    let group = e.div_unsigned(z, e.i64(phases));
    let grid = [
        all.ceil_div(COLUMNS),
        Dim::from((shape.outputs + ROWS - 1) / ROWS),
        Dim::from(shape.groups * phases),
    ];
    let (w, bias) = (cx.operand(1), cx.optional(2));
    let first_row = e.mul_const(e.block('y'), ROWS);
    let first = e.mul_const(e.cast(e.block('x'), Elem::I64), COLUMNS);
    let conv = Conv { cx: &cx, shape, axes: &axes, phase: &phase, group, x, w, y };
    let sums = conv.multiply(first_row, first, cx.size(&all));
    conv.store(&sums, bias.as_ref(), first_row, first, cx.size(&all));
    cx.finish_cuda(grid, u32::try_from(BYTES).expect("small"), &[], |_| false)
}

struct Conv<'c> {
    cx: &'c Cx<'c>,
    shape: &'c Shape,
    axes: &'c [Axis],
    phase: &'c Phase,
    group: Val,
    x: View,
    w: View,
    y: View,
}

/// A step of k, i32 all: the channel, the element of the window, and its shift along each axis.
struct Step {
    channel: Val,
    tap: Val,
    shifts: Vec<Val>,
}

/// An output position: its item of the batch, i64, and its index along each axis, i32.
struct Place {
    item: Val,
    indices: Vec<Val>,
}

impl Conv<'_> {
    fn int(&self, value: Val) -> Val {
        self.cx.e.cast(value, Elem::I32)
    }

    fn place(&self, position: Val) -> Place {
        let (cx, e) = (self.cx, &self.cx.e);
        let mut rest = position;
        let mut indices: Vec<Val> = self
            .axes
            .iter()
            .rev()
            .map(|axis| {
                let count = cx.size(&axis.count);
                let index = self.int(e.rem_unsigned(rest, count));
                rest = e.div_unsigned(rest, count);
                index
            })
            .collect();
        indices.reverse();
        Place { item: rest, indices }
    }

    /// Elements of the window that the phase meets, i32.
    fn taps(&self) -> Val {
        let e = &self.cx.e;
        if !self.shape.transposed {
            return e.i32(self.shape.taps);
        }
        let lines = self.phase.lines.iter();
        lines.fold(e.i32(1), |n, line| e.mul(n, self.int(line.taps)))
    }

    fn step(&self, k: Val) -> Step {
        let (e, shape) = (&self.cx.e, self.shape);
        let split = |count: i64| (e.div_unsigned(k, e.i32(count)), e.rem_unsigned(k, e.i32(count)));
        let (channel, number) = if shape.transposed {
            let (number, channel) = split(shape.inputs);
            (channel, number)
        } else {
            split(shape.taps)
        };
        let mut rest = number;
        let lines = self.axes.iter().zip(&self.phase.lines).enumerate().rev();
        let mut along: Vec<(Val, Val)> = lines
            .map(|(i, (axis, line))| {
                let mut j = rest;
                if i > 0 {
                    let taps = match shape.transposed {
                        // A phase may meet nothing, which is no divisor.
                        true => e.max(self.int(line.taps), e.i32(1)),
                        false => e.i32(axis.kernel),
                    };
                    j = e.rem_unsigned(rest, taps);
                    rest = e.div_unsigned(rest, taps);
                }
                (j, e.add(self.int(line.k0), e.mul_const(j, axis.k_step)))
            })
            .collect();
        along.reverse();
        let tap = match shape.transposed {
            false => number,
            true => along
                .iter()
                .zip(self.axes)
                .fold(e.i32(0), |tap, ((_, k), axis)| e.add(e.mul_const(tap, axis.kernel), *k)),
        };
        let shifts = along.iter().zip(self.axes).map(|((j, _), axis)| e.mul_const(*j, axis.shift));
        Step { channel, tap, shifts: shifts.collect() }
    }

    /// The weight of an output channel in a step; zero beyond the last of either.
    fn weight(&self, row: Val, k: Val, steps: Val) -> Val {
        let (cx, e, shape) = (self.cx, &self.cx.e, self.shape);
        let inside = e.and(e.cmp(Cmp::Lt, row, e.i32(shape.outputs)), e.cmp(Cmp::Lt, k, steps));
        let load = || {
            let wide = |v: Val| e.cast(v, Elem::I64);
            let at = if shape.transposed {
                let Step { channel, tap, .. } = self.step(k);
                let channel = e.add(e.mul_const(self.group, shape.inputs), wide(channel));
                let line = e.add(e.mul_const(channel, shape.outputs), wide(row));
                e.add(e.mul_const(line, shape.taps), wide(tap))
            } else {
                let line = e.add(e.mul_const(self.group, shape.outputs), wide(row));
                e.add(e.mul_const(line, shape.inputs * shape.taps), wide(k))
            };
            vec![self.w.load(cx, at)]
        };
        e.if_else(inside, &[F32], load, || vec![e.f32(0.0)])[0]
    }

    /// What a position meets in a step; zero where that is padding. `begins` are the coordinates at
    /// which its window begins, i32, and `x` the group's channels of its item.
    fn patch(&self, x: &View, begins: &[Val], k: Val, within: Val) -> Val {
        let (cx, e) = (self.cx, &self.cx.e);
        let Step { channel, shifts, .. } = self.step(k);
        let (mut inside, mut offset) = (within, e.i32(0));
        for ((axis, begin), shift) in self.axes.iter().zip(begins).zip(shifts) {
            let at = e.add(*begin, shift);
            let after = e.cmp(Cmp::Ge, at, e.i32(0));
            let before = e.cmp(Cmp::Lt, at, self.int(cx.size(&axis.n)));
            inside = e.and(inside, e.and(after, before));
            if !axis.stride.is(0) {
                offset = e.add(offset, e.mul(at, self.int(cx.size(&axis.stride))));
            }
        }
        let load = || {
            let at = e.cast(offset, Elem::I64);
            vec![x.load(cx, cx.offset(at, e.cast(channel, Elem::I64), &self.x.strides[1]))]
        };
        e.if_else(inside, &[F32], load, || vec![e.f32(0.0)])[0]
    }

    /// A thread's sums, by channel and then by position.
    fn multiply(&self, first_row: Val, first: Val, all: Val) -> Vec<Val> {
        let (cx, e, shape) = (self.cx, &self.cx.e, self.shape);
        let thread = e.thread();
        let column = e.and(thread, e.i32(COLUMNS - 1));
        let depth = e.shr(thread, COLUMNS.trailing_zeros());
        let position = e.add(first, e.cast(column, Elem::I64));
        let is_output = e.cmp(Cmp::Lt, position, all);
        let place = self.place(position);
        let begins: Vec<Val> = (self.axes.iter().zip(&self.phase.lines))
            .zip(&place.indices)
            .map(|((axis, line), index)| {
                e.add(e.mul_const(*index, axis.scale), self.int(line.start))
            })
            .collect();
        let inputs = e.mul_const(self.group, shape.inputs);
        let from = cx.scale(place.item, &self.x.strides[0]);
        let x = self.x.at(cx, cx.offset(from, inputs, &self.x.strides[1]));
        let steps = e.mul_const(self.taps(), shape.inputs);
        // Eight steps of four channels by a warp: the weight is read in pieces of eight, and lies
        // in different banks.
        let (step, row) = (e.and(thread, e.i32(7)), e.shr(thread, 3));
        let weights: Vec<(i64, i64)> =
            [0, 32].into_iter().flat_map(|row| [(row, 0), (row, 8)]).collect();
        let each = DEPTH * COLUMNS / i64::from(THREADS);
        let apart = DEPTH / each;
        let fetch = |k: Val| -> Vec<Val> {
            let weights = weights.iter().map(|(rows, depth)| {
                let row = e.add(first_row, e.add_const(row, *rows));
                self.weight(row, e.add(k, e.add_const(step, *depth)), steps)
            });
            let patches = (0..each).map(|i| {
                let k = e.add(k, e.add_const(depth, apart * i));
                let within = e.and(is_output, e.cmp(Cmp::Lt, k, steps));
                self.patch(&x, &begins, k, within)
            });
            weights.chain(patches).collect()
        };
        let shared = e.shared();
        let word = |at: Val| e.add(shared, e.shl(at, 2));
        let weight_to = word(e.add(e.mul_const(step, PITCH), row));
        let patch_to = word(thread);
        let weight_from = e.add(shared, e.mul_const(cx.warp(), 4 * OWN_ROWS));
        let patch_from = word(cx.lane());
        let count = usize::try_from(OWN_ROWS * OWN_COLUMNS).expect("few");
        let init: Vec<Val> = fetch(e.i32(0)).into_iter().chain(vec![e.f32(0.0); count]).collect();
        let staged = init.len() - count;
        let state = e.for_loop(e.i32(0), steps, DEPTH, &init, |k, state| {
            e.barrier(Barrier::Block);
            for ((rows, depth), value) in weights.iter().zip(state) {
                e.store_shared(*value, weight_to, 4 * (depth * PITCH + rows));
            }
            for (i, value) in (0..).zip(&state[weights.len()..staged]) {
                e.store_shared(*value, patch_to, PATCHES + 4 * apart * COLUMNS * i);
            }
            e.barrier(Barrier::Block);
            let next = fetch(e.add_const(k, DEPTH));
            let sums = (0..DEPTH).fold(state[staged..].to_vec(), |sums, step| {
                let four =
                    |i: i64| e.load_shared_four(Elem::F32, weight_from, 4 * (step * PITCH + 4 * i));
                let rows = [four(0), four(1)].concat();
                let columns: Vec<Val> = (0..OWN_COLUMNS)
                    .map(|j| {
                        let byte = PATCHES + 4 * (step * COLUMNS + 32 * j);
                        e.load_shared(Elem::F32, patch_from, byte)
                    })
                    .collect();
                let pairs = rows.iter().flat_map(|w| columns.iter().map(move |x| (*w, *x)));
                pairs.zip(sums).map(|((w, x), sum)| e.fma(w, x, sum)).collect()
            });
            next.into_iter().chain(sums).collect()
        });
        state[staged..].to_vec()
    }

    fn store(&self, sums: &[Val], bias: Option<&View>, first_row: Val, first: Val, all: Val) {
        let (cx, e, shape) = (self.cx, &self.cx.e, self.shape);
        let own = e.add(first_row, e.mul_const(cx.warp(), OWN_ROWS));
        for j in 0..OWN_COLUMNS {
            let column = e.cast(e.add_const(cx.lane(), 32 * j), Elem::I64);
            let position = e.add(first, column);
            let place = self.place(position);
            let mut inside = e.cmp(Cmp::Lt, position, all);
            let mut at = cx.scale(place.item, &self.y.strides[0]);
            for ((axis, line), index) in self.axes.iter().zip(&self.phase.lines).zip(&place.indices)
            {
                let index = e.mul_const(e.cast(*index, Elem::I64), axis.spread);
                let index = e.add(index, line.phase);
                inside = e.and(inside, e.cmp(Cmp::Lt, index, cx.size(&axis.out)));
                at = cx.offset(at, index, &axis.out_stride);
            }
            e.if_then(inside, || {
                for i in 0..OWN_ROWS {
                    let row = e.add_const(own, i);
                    e.if_then(e.cmp(Cmp::Lt, row, e.i32(shape.outputs)), || {
                        let channel = e.mul_const(self.group, shape.outputs);
                        let channel = e.add(channel, e.cast(row, Elem::I64));
                        let number = usize::try_from(i * OWN_COLUMNS + j).expect("few");
                        let value = match bias {
                            Some(b) => {
                                let bias = b.load(cx, cx.scale(channel, &b.strides[0]));
                                e.add(sums[number], bias)
                            }
                            None => sums[number],
                        };
                        let to = cx.offset(at, channel, &self.y.strides[1]);
                        self.y.store(cx, value, to);
                    });
                }
            });
        }
    }
}
