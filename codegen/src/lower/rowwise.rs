//! Norms and softmax: every row along one axis is reduced and then mapped.
//!
//! Sixteen partial sums run along the row and are folded by halves, then the elements beyond the
//! last whole strip are added one by one: one order for a row, whatever the other rows are. On the
//! CPU `logsumexp` goes over chunks instead, by [`super::log_sum_exp`].

mod cuda;

use ir::{Dim, KernelSpec, Target, normalize_axis};

use super::{
    Emitted, Lower, LowerError,
    block::CHUNK,
    cx::{Cx, LANES, refuse},
    elementwise::maximum,
    log_sum_exp,
    space::Space,
    view::{View, check_f32s},
};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Ty, Val},
    math,
};

/// The family.
pub(super) struct Rowwise;

impl Lower for Rowwise {
    fn ops(&self) -> &'static [&'static str] {
        &["rms_norm", "layer_norm", "softmax", "l2_normalize", "logsumexp"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check_f32s(spec, &[0, 1, 2])?;
        match spec.operands.first() {
            Some(Some(x)) if x.ty.rank() > 0 => Ok(()),
            _ => Err("takes at least one axis".into()),
        }
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let rows = Rows::of(&cx)?;
        let tiles = cx.share_rows(&rows.outer.points(), &rows.n, |point| {
            rows.row(&cx, point, None).emit();
        });
        let scratch = if spec.op == "logsumexp" { 4 * CHUNK.cast_unsigned() } else { 0 };
        Ok(cx.finish(tiles, scratch))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        cuda::kernel(spec).map(|kernel| vec![kernel])
    }
}

/// The rows of a specification.
struct Rows {
    x: View,
    y: View,
    n: Dim,
    /// Steps along the rows of x and y.
    sx: Dim,
    sy: Dim,
    outer: Space,
}

impl Rows {
    fn of(cx: &Cx<'_>) -> Result<Rows, LowerError> {
        let spec = cx.spec;
        let (x, mut y) = (cx.operand(0), cx.result(0));
        let rank = x.shape.len();
        let axis = match spec.op {
            "softmax" => normalize_axis(spec.attrs.int("axis"), rank),
            _ => Some(rank - 1),
        };
        let axis = axis.ok_or_else(|| refuse(spec, "axis out of range"))?;
        if spec.op == "logsumexp" {
            y.strides.push(Dim::from(0));
        }
        let mut extents = x.shape.clone();
        let n = extents.remove(axis);
        let mut strides = [x.strides.clone(), y.strides.clone()];
        let [sx, sy] = strides.each_mut().map(|s| s.remove(axis));
        let outer = Space::new(&extents, &strides).merged();
        Ok(Rows { x, y, n, sx, sy, outer })
    }

    fn row<'a>(&self, cx: &'a Cx<'a>, point: Val, team: Option<cuda::Team>) -> Row<'a> {
        let offsets = self.outer.offsets(cx, point);
        Row {
            cx,
            x: self.x.at(cx, offsets[0]),
            y: self.y.at(cx, offsets[1]),
            n: cx.size(&self.n),
            sx: self.sx.clone(),
            sy: self.sy.clone(),
            team,
        }
    }
}

/// One row of operand and result.
struct Row<'a> {
    cx: &'a Cx<'a>,
    x: View,
    y: View,
    n: Val,
    sx: Dim,
    sy: Dim,
    /// The threads of a GPU that share the row.
    team: Option<cuda::Team>,
}

impl Row<'_> {
    fn emit(&self) {
        match self.cx.spec.op {
            "rms_norm" => self.rms_norm(),
            "layer_norm" => self.layer_norm(),
            "softmax" => self.softmax(),
            "l2_normalize" => self.l2_normalize(),
            _ => self.logsumexp(),
        }
    }

    fn load(&self, i: Val, lanes: u32) -> Val {
        self.x.load_strip(self.cx, self.cx.scale(i, &self.sx), &self.sx, lanes)
    }

    /// Folds `value(x)` over the row.
    fn fold(
        &self,
        start: f64,
        value: impl Fn(Val) -> Val,
        combine: impl Fn(Val, Val) -> Val,
        across: impl Fn(Val) -> Val,
    ) -> Val {
        if let Some(team) = &self.team {
            return team.fold(self, start, value, combine, across);
        }
        let e = &self.cx.e;
        let whole = self.cx.strip_end(e.i64(0), self.n);
        let init = e.float(Ty::Vector(Elem::F32, LANES), start);
        let strips = e.for_loop(e.i64(0), whole, LANES.into(), &[init], |i, sums| {
            vec![combine(sums[0], value(self.load(i, LANES)))]
        });
        let total = e.for_loop(whole, self.n, 1, &[across(strips[0])], |i, sums| {
            vec![combine(sums[0], value(self.load(i, 1)))]
        });
        total[0]
    }

    fn sum(&self, value: impl Fn(Val) -> Val) -> Val {
        let e = &self.cx.e;
        self.fold(0.0, value, |a, b| e.add(a, b), |v| e.reduce_add(v))
    }

    fn max(&self) -> Val {
        let e = &self.cx.e;
        let larger = |a, b| maximum(e, a, b);
        self.fold(f64::NEG_INFINITY, |x| x, larger, |v| e.fold(v, larger))
    }

    /// `y = value(i, x)`.
    fn map(&self, value: impl Fn(Val, Val) -> Val) {
        if let Some(team) = &self.team {
            return team.map(self, value);
        }
        self.cx.strips(self.cx.e.i64(0), self.n, |i, lanes| {
            let y = value(i, self.load(i, lanes));
            self.y.store_strip(self.cx, y, self.cx.scale(i, &self.sy), &self.sy);
        });
    }

    /// A parameter along the row, as many lanes as `like`.
    fn parameter(&self, view: &View, i: Val, like: Val) -> Val {
        let stride = &view.strides[0];
        view.load_strip(self.cx, self.cx.scale(i, stride), stride, like.lanes())
    }

    fn count(&self) -> Val {
        self.cx.e.cast(self.n, Elem::F32)
    }

    fn eps(&self) -> Val {
        let e = &self.cx.e;
        e.float(Ty::Scalar(Elem::F32), self.cx.spec.attrs.float("eps"))
    }

    fn rms_norm(&self) {
        let (cx, e) = (self.cx, &self.cx.e);
        let weight = cx.operand(1);
        let square = e.div(self.sum(|x| e.mul(x, x)), self.count());
        let scale = math::rsqrt(e, e.add(square, self.eps()));
        self.map(|i, x| {
            let y = e.mul(x, e.splat(scale, x.lanes()));
            e.mul(y, self.parameter(&weight, i, x))
        });
    }

    fn layer_norm(&self) {
        let (cx, e) = (self.cx, &self.cx.e);
        let (weight, bias) = (cx.operand(1), cx.optional(2));
        let mean = e.div(self.sum(|x| x), self.count());
        let centred = |x: Val| e.sub(x, e.splat(mean, x.lanes()));
        let squares = self.sum(|x| {
            let d = centred(x);
            e.mul(d, d)
        });
        let variance = e.div(squares, self.count());
        let scale = math::rsqrt(e, e.add(variance, self.eps()));
        self.map(|i, x| {
            let y = e.mul(centred(x), e.splat(scale, x.lanes()));
            let y = e.mul(y, self.parameter(&weight, i, x));
            match &bias {
                Some(bias) => e.add(y, self.parameter(bias, i, x)),
                None => y,
            }
        });
    }

    fn l2_normalize(&self) {
        let e = &self.cx.e;
        let norm = e.max(e.sqrt(self.sum(|x| e.mul(x, x))), self.eps());
        self.map(|_, x| e.div(x, e.splat(norm, x.lanes())));
    }

    fn softmax(&self) {
        let e = &self.cx.e;
        let max = self.max();
        let weight = |x: Val| math::exp(e, e.sub(x, e.splat(max, x.lanes())));
        let total = self.sum(weight);
        self.map(|_, x| e.div(weight(x), e.splat(total, x.lanes())));
    }

    fn logsumexp(&self) {
        let e = &self.cx.e;
        if self.team.is_none() {
            let total = log_sum_exp::row(self.cx, &self.x, self.n, &self.sx, self.cx.scratch(0));
            self.y.store(self.cx, total, e.i64(0));
            return;
        }
        let max = self.max();
        // Of a row of -inf, the sum is that of exp(-inf - 0).
        let finite = e.cmp(Cmp::Gt, max, e.f32(f32::NEG_INFINITY));
        let shift = e.select(finite, max, e.f32(0.0));
        let total = self.sum(|x| math::exp(e, e.sub(x, e.splat(shift, x.lanes()))));
        self.y.store(self.cx, e.add(math::log(e, total), shift), e.i64(0));
    }
}
