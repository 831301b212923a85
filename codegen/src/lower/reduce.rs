//! Reductions over any axes, and running sums.
//!
//! Where the reduced axis is dense, sixteen partial results run along it and are folded by halves;
//! where the axis that stays is dense, sixteen results are computed at once, each element by
//! element.

mod cuda;

use ir::{DType, Dim, KernelSpec, Target, normalize_axis};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, LANES, refuse},
    elementwise::{divide, literal, maximum, minimum},
    space::Space,
    view::{View, computable, register_elem},
};
use crate::{
    cuda::CudaKernel,
    emit::{Emitter, Val},
};

/// `reduce_*`.
pub(super) struct Reduce;

/// `cumsum`.
pub(super) struct Cumsum;

fn check(spec: &KernelSpec) -> Result<(), String> {
    let dtype = spec.results[0].ty.dtype;
    if computable(dtype) && dtype != DType::Bool {
        Ok(())
    } else {
        Err(format!("no arithmetic on {dtype}"))
    }
}

impl Lower for Reduce {
    fn ops(&self) -> &'static [&'static str] {
        &[
            "reduce_sum",
            "reduce_sum_square",
            "reduce_mean",
            "reduce_max",
            "reduce_min",
            "reduce_prod",
        ]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check(spec)
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let Reduction { x, y, fold, kept, gone } = Reduction::of(&cx);
        let dense = |s: &Space| s.strides[0].last().is_some_and(|s| s.is(1));
        let tiles = if dense(&kept) && !dense(&gone) {
            columns(&cx, &x, &y, &fold, kept, &gone)
        } else {
            rows(&cx, &x, &y, &fold, &kept, gone)
        };
        Ok(cx.finish(tiles, 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        Ok(vec![cuda::kernel(spec)])
    }
}

/// A specification's parts.
struct Reduction<'a> {
    x: View,
    y: View,
    fold: Fold<'a>,
    /// Axes that stay, and those that are folded, with strides of x and y.
    kept: Space,
    gone: Space,
}

impl<'a> Reduction<'a> {
    fn of(cx: &Cx<'a>) -> Reduction<'a> {
        let spec = cx.spec;
        let (x, y) = (cx.operand(0), cx.result(0));
        let rank = x.shape.len();
        let reduced = |axis: &usize| {
            spec.attrs.ints("axes").iter().any(|a| normalize_axis(*a, rank) == Some(*axis))
        };
        // Strides of the result along the operand's axes.
        let mut next = 0;
        let mut result_strides = Vec::new();
        for axis in 0..rank {
            if reduced(&axis) {
                next += usize::from(spec.attrs.bool("keep"));
                result_strides.push(Dim::from(0));
            } else {
                result_strides.push(y.strides[next].clone());
                next += 1;
            }
        }
        let part = |keep: bool| {
            let axes: Vec<usize> = (0..rank).filter(|a| reduced(a) != keep).collect();
            let pick = |from: &[Dim]| axes.iter().map(|a| from[*a].clone()).collect::<Vec<_>>();
            let strides = [pick(&x.strides), pick(&result_strides)];
            Space::new(&pick(&x.shape), &strides).merged()
        };
        let (kept, gone) = (part(true), part(false));
        let fold = Fold { op: spec.op, dtype: x.dtype, count: gone.points() };
        Reduction { x, y, fold, kept, gone }
    }
}

/// What is folded.
struct Fold<'a> {
    op: &'a str,
    dtype: DType,
    count: Dim,
}

impl Fold<'_> {
    fn start(&self, e: &Emitter, lanes: u32) -> Val {
        let (lo, hi) = self.dtype.int_range().unwrap_or((0, 0));
        let (float, int) = match self.op {
            "reduce_max" => (f64::NEG_INFINITY, lo),
            "reduce_min" => (f64::INFINITY, hi),
            "reduce_prod" => (1.0, 1),
            _ => (0.0, 0),
        };
        literal(e, self.dtype, lanes, float, int)
    }

    /// What an element counts as.
    fn term(&self, e: &Emitter, x: Val) -> Val {
        if self.op == "reduce_sum_square" { e.mul(x, x) } else { x }
    }

    fn combine(&self, e: &Emitter, a: Val, b: Val) -> Val {
        match self.op {
            "reduce_max" => maximum(e, a, b),
            "reduce_min" => minimum(e, a, b),
            "reduce_prod" => e.mul(a, b),
            _ => e.add(a, b),
        }
    }

    /// Lanes into one, by halves.
    fn across(&self, e: &Emitter, v: Val) -> Val {
        e.fold(v, |a, b| self.combine(e, a, b))
    }

    fn finish(&self, cx: &Cx<'_>, v: Val) -> Val {
        if self.op != "reduce_mean" {
            return v;
        }
        let e = &cx.e;
        let count = e.cast(cx.size(&self.count), register_elem(self.dtype));
        let count = e.splat(count, v.lanes());
        if self.dtype.is_float() { e.div(v, count) } else { divide(e, v, count) }
    }
}

/// One result a row: partial results along the innermost reduced axis.
fn rows(cx: &Cx<'_>, x: &View, y: &View, fold: &Fold<'_>, kept: &Space, gone: Space) -> Dim {
    let e = &cx.e;
    let each = gone.points();
    let (outer, n, steps) = gone.split_inner();
    cx.share_rows(&kept.points(), &each, |point| {
        let at = kept.offsets(cx, point);
        let n = cx.size(&n);
        let whole = cx.strip_end(e.i64(0), n);
        let init = [fold.start(e, LANES), fold.start(e, 1)];
        let turns = cx.size(&outer.points());
        let sums = e.for_loop(e.i64(0), turns, 1, &init, |turn, sums| {
            let x = x.at(cx, e.add(at[0], outer.offsets(cx, turn)[0]));
            let load = |i: Val, lanes: u32| {
                fold.term(e, x.load_strip(cx, cx.scale(i, &steps[0]), &steps[0], lanes))
            };
            let strips = e.for_loop(e.i64(0), whole, LANES.into(), &sums[..1], |i, sums| {
                vec![fold.combine(e, sums[0], load(i, LANES))]
            });
            let rest = e.for_loop(whole, n, 1, &sums[1..], |i, sums| {
                vec![fold.combine(e, sums[0], load(i, 1))]
            });
            vec![strips[0], rest[0]]
        });
        let total = fold.combine(e, fold.across(e, sums[0]), sums[1]);
        y.store(cx, fold.finish(cx, total), at[1]);
    })
}

/// Sixteen results at once along the innermost axis that stays.
fn columns(cx: &Cx<'_>, x: &View, y: &View, fold: &Fold<'_>, kept: Space, gone: &Space) -> Dim {
    let e = &cx.e;
    let (outer, n, steps) = kept.split_inner();
    let strips = n.ceil_div(64);
    let work = gone.points() * Dim::from(64);
    cx.share_rows(&(outer.points() * strips.clone()), &work, |part| {
        let strips = cx.size(&strips);
        let at = outer.offsets(cx, e.div_unsigned(part, strips));
        let first = e.mul_const(e.rem_unsigned(part, strips), 64);
        let end = e.min(e.add_const(first, 64), cx.size(&n));
        cx.strips(first, end, |i, lanes| {
            let from = x.at(cx, cx.offset(at[0], i, &steps[0]));
            let count = cx.size(&gone.points());
            let sums = e.for_loop(e.i64(0), count, 1, &[fold.start(e, lanes)], |turn, sums| {
                let offset = gone.offsets(cx, turn)[0];
                let value = fold.term(e, from.load_strip(cx, offset, &steps[0], lanes));
                vec![fold.combine(e, sums[0], value)]
            });
            let offset = cx.offset(at[1], i, &steps[1]);
            y.store_strip(cx, fold.finish(cx, sums[0]), offset, &steps[1]);
        });
    })
}

impl Lower for Cumsum {
    fn ops(&self) -> &'static [&'static str] {
        &["cumsum"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check(spec)
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let tiles = running(&cx)?;
        Ok(cx.finish(tiles, 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::cuda(spec, cuda::ROW_THREADS);
        let rows = running(&cx)?;
        Ok(vec![cx.finish_flat(&rows)])
    }
}

/// Running sums of every row; returns the number of tiles.
fn running(cx: &Cx<'_>) -> Result<Dim, LowerError> {
    let (e, spec) = (&cx.e, cx.spec);
    let (x, y) = (cx.operand(0), cx.result(0));
    let axis = normalize_axis(spec.attrs.int("axis"), x.shape.len())
        .ok_or_else(|| refuse(spec, "axis out of range"))?;
    let mut extents = x.shape.clone();
    let n = extents.remove(axis);
    let mut strides = [x.strides.clone(), y.strides.clone()];
    let [sx, sy] = strides.each_mut().map(|s| s.remove(axis));
    let outer = Space::new(&extents, &strides).merged();
    Ok(cx.share_rows(&outer.points(), &n, |point| {
        let at = outer.offsets(cx, point);
        let (x, y) = (x.at(cx, at[0]), y.at(cx, at[1]));
        let zero = literal(e, x.dtype, 1, 0.0, 0);
        let _ = e.for_loop(e.i64(0), cx.size(&n), 1, &[zero], |i, sums| {
            let sum = e.add(sums[0], x.load(cx, cx.scale(i, &sx)));
            y.store(cx, sum, cx.scale(i, &sy));
            vec![sum]
        });
    }))
}
