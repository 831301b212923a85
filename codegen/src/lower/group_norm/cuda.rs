//! `group_norm` on a GPU: a block of threads for each group.
//!
//! Threads take what is a block's width apart; lanes of a strip, lanes of a warp and warps are then
//! folded in one order.

use ir::{Dim, KernelSpec};

use crate::{
    cuda::CudaKernel,
    emit::{Elem, Ty, Val},
    lower::{cx::Cx, space::Space, team::WARP_WORDS, view::View},
    math,
};

const THREADS: u32 = 512;

pub(super) fn kernel(spec: &KernelSpec) -> CudaKernel {
    let cx = Cx::cuda(spec, THREADS);
    let e = &cx.e;
    let (x, y) = (cx.operand(0), cx.result(0));
    let groups = spec.attrs.int("groups").max(1);
    let each = x.shape[1].as_const().expect("supported") / groups;
    let extents: Vec<Dim> = [Dim::from(each)].iter().chain(&x.shape[2..]).cloned().collect();
    let strides = [&x, &y].map(|v| v.strides[1..].to_vec());
    let space = Space::new(&extents, &strides).merged();
    let of_channel = x.shape[2..].iter().fold(Dim::from(1), |n, d| n * d.clone());
    let (outer, inner, steps) = space.clone().split_inner();
    let leads: Vec<&Dim> = [&x, &y]
        .iter()
        .flat_map(|v| &v.strides[..2])
        .chain(outer.strides.iter().flatten())
        .chain([&of_channel])
        .collect();
    let dense = steps.iter().all(|s| s.is(1));
    let lanes = if dense && Cx::in_strips(&inner, &leads, 4) { 4 } else { 1 };
    let row = e.cast(e.block('x'), Elem::I64);
    let item = e.div_unsigned(row, e.i64(groups));
    let channel = e.mul_const(e.rem_unsigned(row, e.i64(groups)), each);
    let at = |view: &View| {
        let offset = cx.scale(item, &view.strides[0]);
        view.at(&cx, cx.offset(offset, channel, &view.strides[1]))
    };
    let count = cx.size(&(of_channel.clone() * Dim::from(each)));
    let group = Group { cx: &cx, x: at(&x), y: at(&y), space: &space, steps, count, lanes };
    group.emit(channel, cx.size(&of_channel));
    let rows = x.shape[0].clone() * Dim::from(groups);
    let shared = u32::try_from(2 * WARP_WORDS).expect("small");
    cx.finish_cuda([rows, 1.into(), 1.into()], shared, &[], |arg| {
        lanes > 1 && (arg == 0 || arg == 3)
    })
}

struct Group<'c> {
    cx: &'c Cx<'c>,
    x: View,
    y: View,
    /// The group's channels and the axes behind them.
    space: &'c Space,
    steps: Vec<Dim>,
    /// Elements.
    count: Val,
    lanes: u32,
}

impl Group<'_> {
    fn emit(&self, channel: Val, of_channel: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let count = e.cast(self.count, Elem::F32);
        let mean = e.div(self.sum(0, |x| x), count);
        let centred = |x: Val| e.sub(x, e.splat(mean, x.lanes()));
        let squares = self.sum(1, |x| {
            let d = centred(x);
            e.mul(d, d)
        });
        let eps = e.float(Ty::Scalar(Elem::F32), cx.spec.attrs.float("eps"));
        let scale = math::rsqrt(e, e.add(e.div(squares, count), eps));
        let parameters = [1, 2].map(|i| cx.operand(i));
        let _ = self.strips(&[], |i, at, _| {
            let channel = e.add(channel, e.div_unsigned(i, of_channel));
            let every = |v: Val| e.splat(v, self.lanes);
            let [weight, bias] =
                parameters.each_ref().map(|p| every(p.load(cx, cx.scale(channel, &p.strides[0]))));
            let unit = e.mul(centred(self.load(at)), every(scale));
            let value = e.add(e.mul(unit, weight), bias);
            self.y.store_strip(cx, value, at[1], &self.steps[1]);
            Vec::new()
        });
    }

    fn load(&self, at: &[Val]) -> Val {
        self.x.load_strip(self.cx, at[0], &self.steps[0], self.lanes)
    }

    /// `body(index, offsets in x and y, values)` for this thread's strips.
    fn strips(&self, init: &[Val], body: impl FnOnce(Val, &[Val], &[Val]) -> Vec<Val>) -> Vec<Val> {
        let e = &self.cx.e;
        let first = e.cast(e.mul_const(e.thread(), self.lanes.into()), Elem::I64);
        let step = i64::from(THREADS * self.lanes);
        e.for_loop(first, self.count, step, init, |i, values| {
            body(i, &self.space.offsets(self.cx, i), values)
        })
    }

    /// Sums `value(x)` over the group: sum number `index` of the kernel.
    fn sum(&self, index: i64, value: impl Fn(Val) -> Val) -> Val {
        let (cx, e) = (self.cx, &self.cx.e);
        let init = [e.zero(Ty::of(Elem::F32, self.lanes))];
        let sums = self.strips(&init, |_, at, sums| vec![e.add(sums[0], value(self.load(at)))]);
        let place = e.add_const(e.shared(), index * WARP_WORDS);
        cx.fold_block(e.reduce_add(sums[0]), place, |a, b| e.add(a, b))
    }
}
