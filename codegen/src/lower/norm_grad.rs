//! `norm_grad`: gradients of norms, a row by x and a block of rows by weight and bias.
//!
//! A tile is a block of rows. Four rows at a time are reduced, sixteen partial sums along each as
//! in `rowwise`, and then mapped together, so that the block's sums are loaded and stored once for
//! four rows; what they add is in the order of the rows.

mod cuda;

use ir::{KernelSpec, NORM_GRAD_ROWS, Target};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, LANES, refuse},
    view::{View, check_f32s, check_rank},
};
use crate::{
    cuda::CudaKernel,
    emit::{Elem, Ty, Val},
    math,
};

/// The family.
pub(super) struct NormGrad;

/// Rows that are mapped together.
const ROWS: i64 = 4;

impl Lower for NormGrad {
    fn ops(&self) -> &'static [&'static str] {
        &["norm_grad"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check_f32s(spec, &[0, 1, 2, 3])?;
        let residual = spec.operands.get(3).is_some_and(Option::is_some).then_some((3, 2));
        let ranks = [(0, 2), (1, 1), (2, 2)].into_iter().chain(residual);
        ranks.into_iter().try_for_each(|(i, rank)| check_rank(spec, i, rank))
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let e = &cx.e;
        let grad = Grad::of(&cx);
        let rows = grad.x.shape[0].clone();
        let block = NORM_GRAD_ROWS as i64;
        e.for_each(e.tile_begin(), e.tile_end(), 1, |tile| {
            let first = e.mul_const(tile, block);
            let count = e.min(e.i64(block), e.sub(cx.size(&rows), first));
            grad.block(tile, first, count);
        });
        Ok(cx.finish(rows.ceil_div(block), 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        Ok(vec![cuda::kernel(spec)])
    }
}

/// Operands and results.
struct Grad<'c> {
    cx: &'c Cx<'c>,
    x: View,
    w: View,
    dy: View,
    /// Another gradient by x, which is added.
    residual: Option<View>,
    dx: View,
    /// dx in a narrower type.
    rounded: Option<View>,
    /// By weight and, where the norm is centred, by bias.
    sums: Vec<View>,
    /// Elements of a row.
    n: Val,
}

/// Sums two values along a row.
type Sum<'a> = dyn Fn(&dyn Fn(Val, u32) -> [Val; 2]) -> [Val; 2] + 'a;

/// A row's operands and what its reductions gave.
struct Row {
    x: View,
    dy: View,
    residual: Option<View>,
    dx: View,
    rounded: Option<View>,
    /// Mean of x and of g, where the norm is centred.
    means: Option<(Val, Val)>,
    /// One over the deviation.
    r: Val,
    /// Mean of `g · n`.
    slope: Val,
}

impl<'c> Grad<'c> {
    fn of(cx: &'c Cx<'c>) -> Grad<'c> {
        let [x, w, dy] = [0, 1, 2].map(|i| cx.operand(i));
        let sums = if cx.spec.attrs.bool("centred") { 1..3 } else { 1..2 };
        let rounded = (sums.end < cx.spec.results.len()).then(|| cx.result(sums.end));
        let (residual, sums) = (cx.optional(3), sums.map(|i| cx.result(i)).collect());
        let n = cx.size(&x.shape[1]);
        Grad { cx, x, w, dy, residual, dx: cx.result(0), rounded, sums, n }
    }
}

impl Grad<'_> {
    fn centred(&self) -> bool {
        self.cx.spec.attrs.bool("centred")
    }

    /// A strip of a row or a parameter.
    fn load(&self, view: &View, i: Val, lanes: u32) -> Val {
        let step = view.strides.last().expect("operands have an axis");
        view.load_strip(self.cx, self.cx.scale(i, step), step, lanes)
    }

    fn store(&self, view: &View, i: Val, value: Val) {
        let step = view.strides.last().expect("results have an axis");
        view.store_strip(self.cx, value, self.cx.scale(i, step), step);
    }

    fn row_of(&self, view: &View, row: Val) -> View {
        view.at(self.cx, self.cx.scale(row, &view.strides[0]))
    }

    fn block(&self, block: Val, first: Val, count: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let sums: Vec<View> = self.sums.iter().map(|s| self.row_of(s, block)).collect();
        for sums in &sums {
            cx.strips(e.i64(0), self.n, |i, lanes| {
                self.store(sums, i, e.zero(Ty::of(Elem::F32, lanes)));
            });
        }
        let whole = e.sub(count, e.rem_unsigned(count, e.i64(ROWS)));
        e.for_each(e.i64(0), whole, ROWS, |row| {
            self.rows(&sums, (0..ROWS).map(|r| e.add(first, e.add_const(row, r))));
        });
        e.for_each(whole, count, 1, |row| self.rows(&sums, std::iter::once(e.add(first, row))));
    }

    fn rows(&self, sums: &[View], rows: impl Iterator<Item = Val>) {
        let (cx, e) = (self.cx, &self.cx.e);
        let rows: Vec<Row> = rows.map(|row| self.reduce(row)).collect();
        cx.strips(e.i64(0), self.n, |i, lanes| {
            let w = self.load(&self.w, i, lanes);
            let totals: Vec<Val> = sums.iter().map(|s| self.load(s, i, lanes)).collect();
            let totals = rows.iter().fold(totals, |totals, row| self.step(row, w, i, &totals));
            for (sums, total) in sums.iter().zip(totals) {
                self.store(sums, i, total);
            }
        });
    }

    /// Writes a strip of a row's gradient, and adds to the sums.
    fn step(&self, row: &Row, w: Val, i: Val, totals: &[Val]) -> Vec<Val> {
        let (e, lanes) = (&self.cx.e, w.lanes());
        let splat = |v: Val| e.splat(v, lanes);
        let (mut x, dy) = (self.load(&row.x, i, lanes), self.load(&row.dy, i, lanes));
        let mut g = e.mul(dy, w);
        if let Some((mean, level)) = row.means {
            (x, g) = (e.sub(x, splat(mean)), e.sub(g, splat(level)));
        }
        let n = e.mul(x, splat(row.r));
        let mut dx = e.mul(e.sub(g, e.mul(n, splat(row.slope))), splat(row.r));
        if let Some(residual) = &row.residual {
            dx = e.add(dx, self.load(residual, i, lanes));
        }
        self.store(&row.dx, i, dx);
        if let Some(rounded) = &row.rounded {
            self.store(rounded, i, dx);
        }
        let adds = [e.mul(dy, n), dy];
        totals.iter().zip(adds).map(|(total, add)| e.add(*total, add)).collect()
    }

    fn reduce(&self, row: Val) -> Row {
        self.reduce_with(row, &|value| self.sum(value))
    }

    /// Reduces a row; `sum(value)` sums two values along it.
    fn reduce_with(&self, row: Val, sum: &Sum<'_>) -> Row {
        let e = &self.cx.e;
        let ([x, dy, dx], [residual, rounded]) = self.views(row);
        let count = e.cast(self.n, Elem::F32);
        let load = |i: Val, lanes: u32| {
            let w = self.load(&self.w, i, lanes);
            (self.load(&x, i, lanes), e.mul(self.load(&dy, i, lanes), w))
        };
        let root = |mean: Val| {
            let eps = e.float(Ty::Scalar(Elem::F32), self.cx.spec.attrs.float("eps"));
            math::rsqrt(e, e.add(mean, eps))
        };
        let (means, sums) = if self.centred() {
            let [x, g] = sum(&|i, lanes| {
                let (x, g) = load(i, lanes);
                [x, g]
            });
            let (mean, level) = (e.div(x, count), e.div(g, count));
            let sums = sum(&|i, lanes| {
                let (x, g) = load(i, lanes);
                let x = e.sub(x, e.splat(mean, lanes));
                [e.mul(x, x), e.mul(g, x)]
            });
            (Some((mean, level)), sums)
        } else {
            let sums = sum(&|i, lanes| {
                let (x, g) = load(i, lanes);
                [e.mul(x, x), e.mul(g, x)]
            });
            (None, sums)
        };
        let r = root(e.div(sums[0], count));
        let slope = e.mul(e.div(sums[1], count), r);
        Row { x, dy, residual, dx, rounded, means, r, slope }
    }

    /// A row's x, dy and dx, and its residual and rounded dx.
    fn views(&self, row: Val) -> ([View; 3], [Option<View>; 2]) {
        let of_row = |view: &View| self.row_of(view, row);
        let others = [&self.residual, &self.rounded].map(|v| v.as_ref().map(of_row));
        ([&self.x, &self.dy, &self.dx].map(of_row), others)
    }

    /// Sums of two values along the row.
    fn sum(&self, value: &dyn Fn(Val, u32) -> [Val; 2]) -> [Val; 2] {
        let (cx, e) = (self.cx, &self.cx.e);
        let whole = cx.strip_end(e.i64(0), self.n);
        let add = |sums: &[Val], values: [Val; 2]| {
            sums.iter().zip(values).map(|(sum, value)| e.add(*sum, value)).collect()
        };
        let init = [e.zero(Ty::Vector(Elem::F32, LANES)); 2];
        let strips =
            e.for_loop(e.i64(0), whole, LANES.into(), &init, |i, sums| add(sums, value(i, LANES)));
        let init = [strips[0], strips[1]].map(|sum| e.reduce_add(sum));
        let total = e.for_loop(whole, self.n, 1, &init, |i, sums| add(sums, value(i, 1)));
        [total[0], total[1]]
    }
}
