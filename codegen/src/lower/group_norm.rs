//! `group_norm`: every group is read for its mean, for its variance, and to be mapped.
//!
//! Sixteen partial sums run along the innermost axis of all channels of a group and are folded by
//! halves; what is left of each run beyond whole strips is summed one by one, and added last.

mod cuda;

use ir::{Dim, KernelSpec, Target};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, LANES, refuse},
    space::Space,
    view::{View, check_f32s},
};
use crate::{
    cuda::CudaKernel,
    emit::{Elem, Emitter, Ty, Val},
    math,
};

/// The family.
pub(super) struct GroupNorm;

impl Lower for GroupNorm {
    fn ops(&self) -> &'static [&'static str] {
        &["group_norm"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check_f32s(spec, &[0, 1, 2])?;
        match spec.operands.first() {
            Some(Some(x)) if x.ty.rank() >= 2 && x.ty.shape[1].as_const().is_some() => Ok(()),
            _ => Err("takes [N, C, ..] with a constant C".into()),
        }
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let e = &cx.e;
        let (x, y) = (cx.operand(0), cx.result(0));
        let groups = spec.attrs.int("groups").max(1);
        let each = x.shape[1].as_const().expect("supported") / groups;
        let strides = [&x, &y].map(|v| v.strides[2..].to_vec());
        let space = Space::new(&x.shape[2..], &strides).merged();
        let count = space.points() * Dim::from(each);
        let (outer, n, steps) = space.split_inner();
        let rows = x.shape[0].clone() * Dim::from(groups);
        let tiles = cx.share_rows(&rows, &count, |row| {
            let item = e.div_unsigned(row, e.i64(groups));
            let channel = e.mul_const(e.rem_unsigned(row, e.i64(groups)), each);
            let at = |view: &View| {
                let offset = cx.scale(item, &view.strides[0]);
                view.at(&cx, cx.offset(offset, channel, &view.strides[1]))
            };
            let (x, y) = (at(&x), at(&y));
            let group = Group {
                cx: &cx,
                x,
                y,
                channel,
                channels: e.i64(each),
                outer: &outer,
                n: &n,
                steps: &steps,
            };
            group.emit(cx.size(&count));
        });
        Ok(cx.finish(tiles, 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        Ok(vec![cuda::kernel(spec)])
    }
}

/// The channels of a group, from the first on.
struct Group<'a> {
    cx: &'a Cx<'a>,
    x: View,
    y: View,
    channel: Val,
    channels: Val,
    /// Axes behind the channels, without the innermost one.
    outer: &'a Space,
    n: &'a Dim,
    /// Steps of x and y along it.
    steps: &'a [Dim],
}

impl Group<'_> {
    fn emit(&self, count: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let count = e.cast(count, Elem::F32);
        let mean = e.div(self.sum(|x| x), count);
        let centred = |x: Val| e.sub(x, e.splat(mean, x.lanes()));
        let squares = self.sum(|x| {
            let d = centred(x);
            e.mul(d, d)
        });
        let eps = e.float(Ty::Scalar(Elem::F32), cx.spec.attrs.float("eps"));
        let scale = math::rsqrt(e, e.add(e.div(squares, count), eps));
        let parameters = [1, 2].map(|i| cx.operand(i));
        e.for_each(e.i64(0), self.channels, 1, |c| {
            let channel = e.add(self.channel, c);
            let [weight, bias] =
                parameters.each_ref().map(|p| p.load(cx, cx.scale(channel, &p.strides[0])));
            e.for_each(e.i64(0), cx.size(&self.outer.points()), 1, |turn| {
                let at = self.outer.offsets(cx, turn);
                let y = self.y.at(cx, cx.offset(at[1], c, &self.y.strides[1]));
                cx.strips(e.i64(0), cx.size(self.n), |i, lanes| {
                    let every = |v: Val| e.splat(v, lanes);
                    let unit = e.mul(centred(self.load(at[0], c, i, lanes)), every(scale));
                    let value = e.add(e.mul(unit, every(weight)), every(bias));
                    y.store_strip(cx, value, cx.scale(i, &self.steps[1]), &self.steps[1]);
                });
            });
        });
    }

    fn load(&self, at: Val, channel: Val, i: Val, lanes: u32) -> Val {
        let cx = self.cx;
        let offset = cx.offset(at, channel, &self.x.strides[1]);
        self.x.load_strip(cx, cx.offset(offset, i, &self.steps[0]), &self.steps[0], lanes)
    }

    /// Sums `value(x)` over the group.
    fn sum(&self, value: impl Fn(Val) -> Val) -> Val {
        let (cx, e) = (self.cx, &self.cx.e);
        let init = [e.zero(Emitter::f32s(LANES)), e.zero(Emitter::f32s(1))];
        let n = cx.size(self.n);
        let whole = cx.strip_end(e.i64(0), n);
        let turns = cx.size(&self.outer.points());
        let sums = e.for_loop(e.i64(0), self.channels, 1, &init, |c, sums| {
            e.for_loop(e.i64(0), turns, 1, sums, |turn, sums| {
                let at = self.outer.offsets(cx, turn)[0];
                let add = |i: Val, lanes: u32, sum: Val| {
                    vec![e.add(sum, value(self.load(at, c, i, lanes)))]
                };
                let strips = e.for_loop(e.i64(0), whole, LANES.into(), &sums[..1], |i, sums| {
                    add(i, LANES, sums[0])
                });
                let rest = e.for_loop(whole, n, 1, &sums[1..], |i, sums| add(i, 1, sums[0]));
                vec![strips[0], rest[0]]
            })
        });
        e.add(e.reduce_add(sums[0]), sums[1])
    }
}
