//! Pooling over the segments of packed tokens.

use ir::{DType, KernelSpec, Target};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, refuse},
    flat,
    view::{View, check_f32s, check_rank},
};
use crate::{
    cuda::CudaKernel,
    emit::{Elem, Emitter, Val},
};

/// The family.
pub(super) struct Segment;

/// Columns of a tile.
const COLUMNS: i64 = 256;

impl Lower for Segment {
    fn ops(&self) -> &'static [&'static str] {
        &["segment_mean", "segment_first"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check_f32s(spec, &[0])?;
        check_rank(spec, 0, 2)?;
        check_rank(spec, 1, 1)?;
        match &spec.operands[1] {
            Some(offsets) if offsets.ty.dtype == DType::I32 => Ok(()),
            _ => Err("cu_seqlens must be i32".into()),
        }
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let e = &cx.e;
        let y = cx.result(0);
        let columns = y.shape[1].clone();
        let parts = columns.ceil_div(COLUMNS);
        let tiles = y.shape[0].clone() * parts.clone();
        e.for_each(e.tile_begin(), e.tile_end(), 1, |tile| {
            let parts = cx.size(&parts);
            let segment = e.div_unsigned(tile, parts);
            let first = e.mul_const(e.rem_unsigned(tile, parts), COLUMNS);
            let last = e.min(e.add_const(first, COLUMNS), cx.size(&columns));
            let segment = Pooled::of(&cx, segment);
            cx.strips(first, last, |i, lanes| segment.columns(&cx, i, lanes));
        });
        Ok(cx.finish(tiles, 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::cuda(spec, flat::THREADS);
        let e = &cx.e;
        let y = cx.result(0);
        let columns = y.shape[1].clone();
        let grid = cx.each_thread(&(y.shape[0].clone() * columns.clone()), |point| {
            let columns = cx.size(&columns);
            let segment = Pooled::of(&cx, e.div_unsigned(point, columns));
            segment.columns(&cx, e.rem_unsigned(point, columns), 1);
        });
        Ok(vec![cx.finish_cuda(grid, 0, &[], |_| false)])
    }
}

/// A segment, and where its result goes.
struct Pooled {
    x: View,
    y: View,
    start: Val,
    /// Rows that are summed, and what the sum is divided by.
    count: Val,
    divisor: Val,
}

impl Pooled {
    fn of(cx: &Cx<'_>, segment: Val) -> Pooled {
        let e = &cx.e;
        let (x, offsets, y) = (cx.operand(0), cx.operand(1), cx.result(0));
        let bound = |segment| {
            let offset = cx.scale(segment, &offsets.strides[0]);
            e.cast(offsets.load(cx, offset), Elem::I64)
        };
        let (start, end) = (bound(segment), bound(e.add_const(segment, 1)));
        let rows = e.max(e.sub(end, start), e.i64(0));
        let mean = cx.spec.op == "segment_mean";
        let count = if mean { rows } else { e.min(rows, e.i64(1)) };
        let divisor = e.cast(e.max(count, e.i64(1)), Elem::F32);
        let y = y.at(cx, cx.scale(segment, &y.strides[0]));
        Pooled { x, y, start, count, divisor }
    }

    /// So many columns of the result from `i` on.
    fn columns(&self, cx: &Cx<'_>, i: Val, lanes: u32) {
        let (e, Pooled { x, y, .. }) = (&cx.e, self);
        let from = x.at(cx, cx.scale(i, &x.strides[1]));
        let zero = e.zero(Emitter::f32s(lanes));
        let sums = e.for_loop(e.i64(0), self.count, 1, &[zero], |row, sums| {
            let offset = cx.scale(e.add(self.start, row), &x.strides[0]);
            vec![e.add(sums[0], from.load_strip(cx, offset, &x.strides[1], lanes))]
        });
        let value = e.div(sums[0], e.splat(self.divisor, lanes));
        y.store_strip(cx, value, cx.scale(i, &y.strides[1]), &y.strides[1]);
    }
}
