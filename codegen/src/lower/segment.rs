//! Pooling over the segments of packed tokens.

use ir::{DType, KernelSpec, Target};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, refuse},
    view::{check_f32s, check_rank},
};
use crate::emit::{Elem, Emitter};

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
        let (x, offsets, y) = (cx.operand(0), cx.operand(1), cx.result(0));
        let columns = y.shape[1].clone();
        let parts = columns.ceil_div(COLUMNS);
        let tiles = y.shape[0].clone() * parts.clone();
        e.for_each(e.tile_begin(), e.tile_end(), 1, |tile| {
            let parts = cx.size(&parts);
            let segment = e.div_unsigned(tile, parts);
            let first = e.mul_const(e.rem_unsigned(tile, parts), COLUMNS);
            let last = e.min(e.add_const(first, COLUMNS), cx.size(&columns));
            let bound = |segment| {
                let offset = cx.scale(segment, &offsets.strides[0]);
                e.cast(offsets.load(&cx, offset), Elem::I64)
            };
            let (start, end) = (bound(segment), bound(e.add_const(segment, 1)));
            let rows = e.max(e.sub(end, start), e.i64(0));
            let mean = spec.op == "segment_mean";
            let count = if mean { rows } else { e.min(rows, e.i64(1)) };
            let divisor = e.cast(e.max(count, e.i64(1)), Elem::F32);
            let y = y.at(&cx, cx.scale(segment, &y.strides[0]));
            cx.strips(first, last, |i, lanes| {
                let from = x.at(&cx, cx.scale(i, &x.strides[1]));
                let zero = e.zero(Emitter::f32s(lanes));
                let sums = e.for_loop(e.i64(0), count, 1, &[zero], |row, sums| {
                    let offset = cx.scale(e.add(start, row), &x.strides[0]);
                    vec![e.add(sums[0], from.load_strip(&cx, offset, &x.strides[1], lanes))]
                });
                let value = e.div(sums[0], e.splat(divisor, lanes));
                y.store_strip(&cx, value, cx.scale(i, &y.strides[1]), &y.strides[1]);
            });
        });
        Ok(cx.finish(tiles, 0))
    }
}
