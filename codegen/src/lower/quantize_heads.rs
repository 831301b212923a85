//! `quantize_heads`: rows of keys or values in eight bits and a scale.

use ir::{DType, Dim, KernelSpec, Target};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, LANES, refuse},
    e4m3,
    elementwise::maximum,
    flat,
    quantize::{inverse, lanes_max},
    space::Space,
    view::View,
};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Emitter, Val},
};

/// The family.
pub(super) struct QuantizeHeads;

impl Lower for QuantizeHeads {
    fn ops(&self) -> &'static [&'static str] {
        &["quantize_heads"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        let Some(Some(x)) = spec.operands.first() else { return Err("takes x".into()) };
        if x.ty.dtype != DType::F32 || x.ty.shape.last().and_then(Dim::as_const).is_none() {
            return Err(format!("{x}: takes f32 with a constant last axis"));
        }
        match spec.results.iter().find(|y| !y.is_contiguous()) {
            Some(y) => Err(format!("{y} must be contiguous")),
            None => Ok(()),
        }
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let (x, q, scales) = (cx.operand(0), cx.result(0), cx.result(1));
        let (width, lead) = x.shape.split_last().expect("supported");
        let step = x.strides[lead.len()].clone();
        let outer = Space::new(lead, &[x.strides[..lead.len()].to_vec()]).merged();
        let size = width.as_const().expect("supported");
        let tiles = cx.share_rows(&outer.points(), width, |row| {
            let from = x.at(&cx, outer.offsets(&cx, row)[0]);
            let to = q.at(&cx, cx.scale(row, width));
            let one = Dim::from(1);
            let scale = quantize(&cx, size, (&from, &step), (&to, &one));
            scales.store(&cx, scale, row);
        });
        Ok(cx.finish(tiles, 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        Ok(vec![warps(spec)])
    }
}

/// Quantises a row of `size` floats that are so far apart, and gives its scale.
pub(super) fn quantize(
    cx: &Cx<'_>,
    size: i64,
    (from, step): (&View, &Dim),
    (to, place): (&View, &Dim),
) -> Val {
    let e = &cx.e;
    let load = |i: Val, lanes: u32| from.load_strip(cx, cx.scale(i, step), step, lanes);
    let most = |first: i64, end: i64, lanes: u32| {
        let zero = e.zero(Emitter::f32s(lanes));
        let most = e.for_loop(e.i64(first), e.i64(end), lanes.into(), &[zero], |i, most| {
            vec![maximum(e, most[0], e.abs(load(i, lanes)))]
        });
        lanes_max(e, most[0])
    };
    let whole = size - size % i64::from(LANES);
    let most = maximum(e, most(0, whole, LANES), most(whole, size, 1));
    let row = Row::new(e, to.dtype, most);
    let to = to.clone().bits();
    cx.strips(e.i64(0), e.i64(size), |i, lanes| {
        to.store_strip(cx, row.codes(e, load(i, lanes)), cx.scale(i, place), place);
    });
    row.scale
}

/// What the elements of a row have in common.
pub(super) struct Row {
    dtype: DType,
    inverse: Val,
    pub(super) scale: Val,
}

impl Row {
    /// Of a row whose largest size is `most`, to be i8 or f8e4m3.
    pub(super) fn new(e: &Emitter, dtype: DType, most: Val) -> Row {
        let limit = if dtype == DType::F8E4M3 { e4m3::LARGEST } else { 127.0 };
        let inverse = inverse(e, e.f32(limit), most);
        Row { dtype, inverse, scale: e.div(most, e.f32(limit)) }
    }

    /// The nearest code to `x · inverse`; zero where a NaN or an infinity made the scale not
    /// finite.
    pub(super) fn codes(&self, e: &Emitter, x: Val) -> Val {
        let v = e.mul(x, e.splat(self.inverse, x.lanes()));
        let v = e.select(e.cmp(Cmp::Eq, v, v), v, e.zero(v.ty()));
        if self.dtype == DType::F8E4M3 {
            return e4m3::codes(e, v);
        }
        e.cast(e.cast(e.round_even(v), Elem::I32), Elem::I8)
    }
}

/// On a GPU a warp has a row.
fn warps(spec: &KernelSpec) -> CudaKernel {
    let cx = Cx::cuda(spec, flat::THREADS);
    let e = &cx.e;
    let (x, q, scales) = (cx.operand(0), cx.result(0), cx.result(1));
    let (width, lead) = x.shape.split_last().expect("supported");
    let step = x.strides[lead.len()].clone();
    let outer = Space::new(lead, &[x.strides[..lead.len()].to_vec()]).merged();
    let grid = cx.each_thread(&(outer.points() * Dim::from(32)), |point| {
        let row = e.div_unsigned(point, e.i64(32));
        let from = x.at(&cx, outer.offsets(&cx, row)[0]);
        let to = q.at(&cx, cx.scale(row, width)).bits();
        let load = |i: Val| from.load(&cx, cx.scale(i, &step));
        let (lane, end) = (e.rem_unsigned(point, e.i64(32)), cx.size(width));
        let most = e.for_loop(lane, end, 32, &[e.f32(0.0)], |i, most| {
            vec![maximum(e, most[0], e.abs(load(i)))]
        });
        let common = Row::new(e, q.dtype, cx.fold_warp(most[0], |a, b| maximum(e, a, b)));
        e.if_then(e.cmp(Cmp::Eq, lane, e.i64(0)), || scales.store(&cx, common.scale, row));
        e.for_each(lane, end, 32, |i| {
            to.store(&cx, common.codes(e, load(i)), i);
        });
    });
    cx.finish_cuda(grid, 0, &[], |_| false)
}
