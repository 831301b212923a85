//! Windows that slide over the last axes, one channel at a time: poolings, and convolutions that
//! join no channels.
//!
//! Along the innermost axis, sixteen windows at once where all of their elements are inside, one by
//! one at the borders. Elements of a window are taken in row-major order either way, and padding is
//! not visited.

use ir::{Dim, Window};

use super::{
    cx::{Cx, LANES},
    view::View,
};
use crate::emit::{Elem, Ty, Val};

/// Windows over `x: [N, C, ..]` that give `y: [N, C · multiplier, ..]`.
pub(super) struct Slide<'a> {
    pub(super) cx: &'a Cx<'a>,
    pub(super) windows: &'a [Window],
    pub(super) x: View,
    pub(super) y: View,
    /// Channels of y for each of x.
    pub(super) multiplier: i64,
}

/// A row of y along the innermost axis.
pub(super) struct Row<'a> {
    slide: &'a Slide<'a>,
    /// The channel of y.
    pub(super) channel: Val,
    x: View,
    y: View,
    /// Indices along the other axes that windows slide over.
    at: Vec<Val>,
    /// Along the innermost axis, where a thread of a GPU has one window.
    column: Option<Val>,
}

/// What is made of a window.
pub(super) struct Fold<Step, Finish> {
    /// What it starts from.
    pub(super) start: f64,
    /// `step(value so far, number of the element in the window, element)`.
    pub(super) step: Step,
    /// `finish(value, indices of the window)`, of which the last is that of the first lane; `None`
    /// stands for one whose elements are all inside along the innermost axis.
    pub(super) finish: Finish,
}

impl<'a> Slide<'a> {
    /// Runs `body` for this call's rows; returns the number of tiles. On a GPU a thread has one
    /// window of a row, and neighbours have neighbouring ones.
    pub(super) fn rows(&'a self, body: impl FnOnce(&Row<'a>)) -> Dim {
        let (cx, e) = (self.cx, &self.cx.e);
        let (inner, lead) = self.y.shape.split_last().expect("an axis of windows");
        let count = lead.iter().fold(Dim::from(1), |n, d| n * d.clone());
        let taps: i64 = self.windows.iter().map(|w| w.kernel).product();
        let work = inner.clone() * Dim::from(taps);
        let points = if e.is_device() { count * inner.clone() } else { count };
        cx.share_rows(&points, &work, |point| {
            let column = e.is_device().then(|| e.rem_unsigned(point, cx.size(inner)));
            let mut rest = match column {
                Some(_) => e.div_unsigned(point, cx.size(inner)),
                None => point,
            };
            let mut at: Vec<Val> = lead[1..]
                .iter()
                .rev()
                .map(|extent| {
                    let extent = cx.size(extent);
                    let index = e.rem_unsigned(rest, extent);
                    rest = e.div_unsigned(rest, extent);
                    index
                })
                .collect();
            at.push(rest);
            at.reverse();
            let from = e.div_unsigned(at[1], e.i64(self.multiplier));
            let x = cx.offset(cx.scale(at[0], &self.x.strides[0]), from, &self.x.strides[1]);
            let offset = |sum, (index, stride): (&Val, &Dim)| cx.offset(sum, *index, stride);
            let y = at.iter().zip(&self.y.strides).fold(e.i64(0), offset);
            body(&Row {
                slide: self,
                channel: at[1],
                x: self.x.at(cx, x),
                y: self.y.at(cx, y),
                at: at.split_off(2),
                column,
            });
        })
    }

    /// The elements of window `o` along an axis that are inside: from, up to.
    pub(super) fn inside(&self, axis: usize, o: Val) -> (Val, Val) {
        let w = self.windows[axis];
        let before = self.before(axis, o);
        let first = self.cx.e.max(before, self.cx.e.i64(0));
        let first = self.cx.e.div_ceil_const(first, w.dilation);
        let extent = self.cx.size(&self.x.shape[axis + 2]);
        (first, self.cx.e.max(first, self.up_to(axis, self.cx.e.add(extent, before))))
    }

    /// The elements of window `o` along an axis that lie before the end of the padding.
    pub(super) fn padded(&self, axis: usize, o: Val) -> Val {
        let e = &self.cx.e;
        let end = e.add(self.cx.size(&self.x.shape[axis + 2]), self.before(axis, o));
        self.up_to(axis, e.add_const(end, self.windows[axis].pads[1]))
    }

    /// How far before the axis window `o` begins.
    fn before(&self, axis: usize, o: Val) -> Val {
        let (e, w) = (&self.cx.e, self.windows[axis]);
        e.sub(e.i64(w.pads[0]), e.mul_const(o, w.stride))
    }

    fn up_to(&self, axis: usize, distance: Val) -> Val {
        let (e, w) = (&self.cx.e, self.windows[axis]);
        let count = e.div_ceil_const(e.max(distance, e.i64(0)), w.dilation);
        e.min(count, e.i64(w.kernel))
    }
}

impl Row<'_> {
    /// Folds every window of the row.
    pub(super) fn fold<Step, Finish>(&self, fold: &Fold<Step, Finish>)
    where
        Step: Fn(Val, Val, Val) -> Val,
        Finish: Fn(Val, &[Val], Option<Val>) -> Val,
    {
        if let Some(column) = self.column {
            return self.window(fold, column, None);
        }
        let (cx, e) = (self.slide.cx, &self.slide.cx.e);
        let last = self.slide.windows.len() - 1;
        let w = self.slide.windows[last];
        let [n, count] = [&self.slide.x, &self.slide.y].map(|v| cx.size(&v.shape[last + 2]));
        // Windows before `begin` and from `end` on have padding in them.
        let begin = e.min(e.i64((w.pads[0] + w.stride - 1) / w.stride), count);
        let room = e.add_const(n, w.pads[0] - w.extent() + w.stride);
        let end = e.div_unsigned(e.max(room, e.i64(0)), e.i64(w.stride));
        let end = e.max(begin, e.min(end, count));
        let whole = cx.strip_end(begin, end);
        e.for_each(e.i64(0), begin, 1, |column| self.window(fold, column, None));
        e.for_each(begin, whole, LANES.into(), |column| self.window(fold, column, Some(LANES)));
        e.for_each(whole, end, 1, |column| self.window(fold, column, Some(1)));
        e.for_each(end, count, 1, |column| self.window(fold, column, None));
    }

    /// So many windows from `column` on that have no padding along the innermost axis, or one that
    /// may.
    fn window<Step, Finish>(&self, fold: &Fold<Step, Finish>, column: Val, inside: Option<u32>)
    where
        Step: Fn(Val, Val, Val) -> Val,
        Finish: Fn(Val, &[Val], Option<Val>) -> Val,
    {
        let (slide, cx, e) = (self.slide, self.slide.cx, &self.slide.cx.e);
        let last = slide.windows.len() - 1;
        let mut ranges: Vec<(Val, Val)> =
            self.at.iter().enumerate().map(|(axis, o)| slide.inside(axis, *o)).collect();
        ranges.push(match inside {
            Some(_) => (e.i64(0), e.i64(slide.windows[last].kernel)),
            None => slide.inside(last, column),
        });
        let at: Vec<Val> = self.at.iter().copied().chain([column]).collect();
        let lanes = inside.unwrap_or(1);
        let start = e.splat(e.float(Ty::Scalar(Elem::F32), fold.start), lanes);
        let nest = Nest { row: self, step: &fold.step, ranges: &ranges, at: &at };
        let value = nest.axis(0, e.i64(0), e.i64(0), start);
        let value = (fold.finish)(value, &at[..last], inside.is_none().then_some(column));
        let step = &slide.y.strides[last + 2];
        self.y.store_strip(cx, value, cx.scale(column, step), step);
    }
}

/// The loops over the elements of a window.
struct Nest<'a, Step> {
    row: &'a Row<'a>,
    step: &'a Step,
    ranges: &'a [(Val, Val)],
    at: &'a [Val],
}

impl<Step: Fn(Val, Val, Val) -> Val> Nest<'_, Step> {
    fn axis(&self, axis: usize, tap: Val, offset: Val, value: Val) -> Val {
        let (slide, e) = (self.row.slide, &self.row.slide.cx.e);
        let Some(w) = slide.windows.get(axis) else {
            let stride = slide.x.strides[axis + 1].clone();
            let stride = stride * Dim::from(slide.windows[axis - 1].stride);
            let x = self.row.x.load_strip(slide.cx, offset, &stride, value.lanes());
            return (self.step)(value, tap, x);
        };
        let (first, end) = self.ranges[axis];
        let begin = e.sub(e.mul_const(self.at[axis], w.stride), e.i64(w.pads[0]));
        let values = e.for_loop(first, end, 1, &[value], |k, values| {
            let place = e.add(begin, e.mul_const(k, w.dilation));
            let offset = slide.cx.offset(offset, place, &slide.x.strides[axis + 2]);
            let tap = e.add(e.mul_const(tap, w.kernel), k);
            vec![self.axis(axis + 1, tap, offset, values[0])]
        });
        values[0]
    }
}
