//! Patches of the operand as panels: sixteen output positions side by side, one line for each
//! element that they meet.

use ir::{DType, Dim};

use super::{
    PANEL, PANELS,
    axes::{Axis, Phase},
};
use crate::{
    emit::{Cmp, Elem, Ty, Val},
    lower::{cx::Cx, view::View},
};

/// Elements from one end of a channel to the other, at most: offsets within are 32 bits wide.
pub(super) const REACH: i64 = 1 << 28;

const LANES: u32 = 16;
const COORDINATES: Ty = Ty::Vector(Elem::I32, LANES);

/// Scratch of the patches of a tile.
pub(super) struct Patches<'a> {
    cx: &'a Cx<'a>,
    /// f32 `[steps][16]`.
    pub(super) panel: Val,
    /// i32 `[PANELS][axes][16]`: where windows begin in the operand.
    begins: Val,
    /// i64 `[PANELS][16]`: offset of the output in its channel, -1 where there is none.
    outs: Val,
    axes: i64,
    end: u64,
}

impl<'a> Patches<'a> {
    /// From a byte of scratch on, for panels of so many lines.
    pub(super) fn new(cx: &'a Cx<'a>, byte: u64, axes: usize, steps: i64) -> Patches<'a> {
        let axes = i64::try_from(axes).expect("three at most");
        let begins = byte + (4 * steps * PANEL).cast_unsigned();
        let outs = begins + (4 * PANELS * axes * PANEL).cast_unsigned();
        let end = outs + (8 * PANELS * PANEL).cast_unsigned();
        let [panel, begins, outs] = [byte, begins, outs].map(|byte| cx.scratch(byte));
        Patches { cx, panel, begins, outs, axes, end }
    }

    /// The end of its scratch.
    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    fn begin(&self, panel: Val, axis: usize) -> Val {
        let e = &self.cx.e;
        let axis = i64::try_from(axis).expect("three at most");
        let line = e.add_const(e.mul_const(panel, self.axes), axis);
        e.at(self.begins, Elem::I32, e.mul_const(line, PANEL))
    }

    /// Offset of an output in its channel, negative where there is none.
    pub(super) fn place(&self, panel: Val, column: Val) -> Val {
        let e = &self.cx.e;
        let at = e.add(e.mul_const(panel, PANEL), column);
        e.load_at(Ty::Scalar(Elem::I64), self.outs, at)
    }

    /// Notes where the windows of the tile's panels begin, and where their outputs go.
    pub(super) fn places(&self, axes: &[Axis], phase: &Phase, first: Val, panels: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        e.for_each(e.i64(0), panels, 1, |panel| {
            e.for_each(e.i64(0), e.i64(PANEL), 1, |lane| {
                let position = e.mul_const(e.add(first, panel), PANEL);
                let mut rest = e.add(position, lane);
                let mut out = e.i64(0);
                let mut inside = e.int(Ty::Scalar(Elem::Bool), 1);
                for (i, (axis, line)) in axes.iter().zip(&phase.lines).enumerate().rev() {
                    let mut index = rest;
                    if i > 0 {
                        let count = cx.size(&axis.count);
                        index = e.rem_unsigned(rest, count);
                        rest = e.div_unsigned(rest, count);
                    }
                    let begin = e.add(e.mul_const(index, axis.scale), line.start);
                    e.store_at(e.cast(begin, Elem::I32), self.begin(panel, i), lane);
                    let at = e.add(e.mul_const(index, axis.spread), line.phase);
                    inside = e.and(inside, e.cmp(Cmp::Lt, at, cx.size(&axis.out)));
                    out = cx.offset(out, at, &axis.out_stride);
                }
                let at = e.add(e.mul_const(panel, PANEL), lane);
                e.store_at(e.select(inside, out, e.i64(-1)), self.outs, at);
            });
        });
    }

    /// Writes the lines of one element of the window: of channel `c` of `count`, line
    /// `c · lines.1 + lines.0`; zero where a position meets padding.
    pub(super) fn gather(
        &self,
        axes: &[Axis],
        x: &View,
        panel: Val,
        shifts: &[Val],
        lines: (Val, i64),
        count: Val,
    ) {
        let (cx, e) = (self.cx, &self.cx.e);
        let every = |v: Val| e.splat(e.cast(v, Elem::I32), LANES);
        let mut inside = e.int(COORDINATES.with_elem(Elem::Bool), 1);
        let mut offsets = e.zero(COORDINATES);
        for (i, (axis, shift)) in axes.iter().zip(shifts).enumerate() {
            let at = e.add(e.load(COORDINATES, self.begin(panel, i)), every(*shift));
            let after = e.cmp(Cmp::Ge, at, e.zero(COORDINATES));
            let before = e.cmp(Cmp::Lt, at, every(cx.size(&axis.n)));
            inside = e.and(inside, e.and(after, before));
            if !axis.stride.is(0) {
                let step = every(cx.size(&axis.stride));
                offsets = e.add(offsets, e.mul(at, step));
            }
        }
        let first = e.extract(offsets, 0);
        let in_a_row = e.add(e.splat(first, LANES), e.iota(COORDINATES));
        let mut apart = e.cmp(Cmp::Ne, offsets, in_a_row);
        let masked = x.dtype == DType::F32;
        if !masked {
            apart = e.or(apart, e.xor(inside, e.int(inside.ty(), 1)));
        }
        let each = |load: &dyn Fn(&View) -> Val| {
            e.for_each(e.i64(0), count, 1, |channel| {
                let value = load(&x.at(cx, cx.scale(channel, &x.strides[1])));
                let line = e.add(e.mul_const(channel, lines.1), lines.0);
                e.store_at(value, self.panel, e.mul_const(line, PANEL));
            });
        };
        let zero = e.zero(Ty::Vector(Elem::F32, LANES));
        e.either(
            e.any(apart),
            || {
                // What is outside is read from the channel's first element, and not used.
                let safe = e.select(inside, offsets, e.zero(COORDINATES));
                let at: Vec<Val> =
                    (0..LANES).map(|lane| e.cast(e.extract(safe, lane), Elem::I64)).collect();
                each(&|x| {
                    let lanes = (0..).zip(&at);
                    let all = lanes.fold(zero, |all, (i, at)| e.insert(x.load(cx, *at), all, i));
                    e.select(inside, all, zero)
                });
            },
            || {
                let first = e.cast(first, Elem::I64);
                each(&|x| match masked {
                    true => e.load_masked(e.at(x.base, Elem::F32, first), inside, zero),
                    false => x.load_strip(cx, first, &Dim::from(1), LANES),
                });
            },
        );
    }
}
