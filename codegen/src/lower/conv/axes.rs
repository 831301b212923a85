//! Along one axis: which output positions a tile has, and which elements of the window and of the
//! operand each of them meets.

use ir::Dim;

use super::Shape;
use crate::{
    emit::{Cmp, Val},
    lower::{cx::Cx, space::flatten, view::View},
};

/// An axis that windows slide over.
///
/// Position `q` of a phase `f` is output `q · spread + f`, and meets element `k0 + j · k_step` of
/// the window at `q · scale + start + j · shift` of the operand; `k0` and `start` belong to the
/// phase.
pub(super) struct Axis {
    /// Positions of a phase, of which the last may lie outside the output.
    pub(super) count: Dim,
    pub(super) phases: i64,
    pub(super) spread: i64,
    pub(super) scale: i64,
    pub(super) shift: i64,
    pub(super) kernel: i64,
    pub(super) k_step: i64,
    dilation: i64,
    pad: i64,
    /// Extents and strides of operand and output.
    pub(super) n: Dim,
    pub(super) stride: Dim,
    pub(super) out: Dim,
    pub(super) out_stride: Dim,
}

impl Axis {
    pub(super) fn all(shape: &Shape, x: &View, y: &View) -> Vec<Axis> {
        let axis = |(i, w): (usize, &ir::Window)| {
            let (n, stride) = (x.shape[i + 2].clone(), x.strides[i + 2].clone());
            let (out, out_stride) = (y.shape[i + 2].clone(), y.strides[i + 2].clone());
            let common = gcd(w.stride, w.dilation);
            let transposed = shape.transposed;
            Axis {
                count: if transposed { out.ceil_div(w.stride) } else { out.clone() },
                phases: if transposed { w.stride } else { 1 },
                spread: if transposed { w.stride } else { 1 },
                scale: if transposed { 1 } else { w.stride },
                shift: if transposed { -w.dilation / common } else { w.dilation },
                kernel: w.kernel,
                k_step: if transposed { w.stride / common } else { 1 },
                dilation: w.dilation,
                pad: w.pads[0],
                n,
                stride,
                out,
                out_stride,
            }
        };
        shape.windows.iter().enumerate().map(axis).collect()
    }
}

/// Whether neighbouring outputs of a channel are neighbours in memory.
pub(super) fn dense(axes: &[Axis]) -> bool {
    let (extents, strides): (Vec<_>, Vec<_>) =
        axes.iter().map(|a| (a.out.clone(), a.out_stride.clone())).unzip();
    flatten(&extents, &strides).is_some_and(|(n, stride)| stride.is(1) || n.is(1))
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What a phase fixes, by axis.
pub(super) struct Phase {
    pub(super) lines: Vec<Line>,
}

/// Along one axis.
pub(super) struct Line {
    pub(super) phase: Val,
    /// Where position zero begins in the operand.
    pub(super) start: Val,
    /// The first element of the window.
    pub(super) k0: Val,
    /// How many elements of it are met.
    pub(super) taps: Val,
}

/// What is done with an element of a window, given its number and its shifts.
type Body<'a> = Box<dyn FnOnce(Val, &[Val]) + 'a>;

impl Phase {
    /// The phase of that number.
    pub(super) fn new(cx: &Cx<'_>, axes: &[Axis], phase: Val) -> Phase {
        let e = &cx.e;
        let mut rest = phase;
        let mut lines: Vec<Line> = axes
            .iter()
            .rev()
            .map(|axis| {
                if axis.phases == 1 && axis.spread == axis.k_step && axis.shift > 0 {
                    let [phase, start] = [0, -axis.pad].map(|v| e.i64(v));
                    return Line { phase, start, k0: e.i64(0), taps: e.i64(axis.kernel) };
                }
                let phases = e.i64(axis.phases);
                let phase = e.rem_unsigned(rest, phases);
                rest = e.div_unsigned(rest, phases);
                Line::of_phase(cx, axis, phase)
            })
            .collect();
        lines.reverse();
        Phase { lines }
    }

    /// `body(number of the element in the window, its shift along each axis)` for every element
    /// that the phase meets.
    pub(super) fn each_tap(&self, cx: &Cx<'_>, axes: &[Axis], body: impl FnOnce(Val, &[Val])) {
        self.nest(cx, axes, cx.e.i64(0), Vec::new(), Box::new(body));
    }

    fn nest(&self, cx: &Cx<'_>, axes: &[Axis], tap: Val, shifts: Vec<Val>, body: Body<'_>) {
        let e = &cx.e;
        let Some(axis) = axes.get(shifts.len()) else { return body(tap, &shifts) };
        let line = &self.lines[shifts.len()];
        e.for_each(e.i64(0), line.taps, 1, |j| {
            let k = e.add(line.k0, e.mul_const(j, axis.k_step));
            let tap = e.add(e.mul_const(tap, axis.kernel), k);
            let mut shifts = shifts;
            shifts.push(e.mul_const(j, axis.shift));
            self.nest(cx, axes, tap, shifts, body);
        });
    }
}

impl Line {
    /// Of a transposed convolution: element `k` of the window reaches output `o` from
    /// `(o + pad - k · dilation) / stride`, where that is whole.
    fn of_phase(cx: &Cx<'_>, axis: &Axis, phase: Val) -> Line {
        let e = &cx.e;
        let from = |k: Val| e.sub(e.add_const(phase, axis.pad), e.mul_const(k, axis.dilation));
        let kernel = e.i64(axis.kernel);
        let k0 = e.for_loop(e.i64(0), e.i64(axis.k_step), 1, &[kernel], |k, first| {
            let rest = e.rem(from(k), e.i64(axis.spread));
            let fits = e.cmp(Cmp::Eq, rest, e.i64(0));
            vec![e.select(fits, e.min(k, first[0]), first[0])]
        });
        let left = e.max(e.sub(kernel, k0[0]), e.i64(0));
        let taps = e.div_ceil_const(left, axis.k_step);
        Line { phase, start: e.div(from(k0[0]), e.i64(axis.spread)), k0: k0[0], taps }
    }
}
