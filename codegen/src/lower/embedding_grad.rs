//! `embedding_grad`: rows added to the rows of a table that ids name.
//!
//! A tile is a strip of columns: a call clears its columns of the whole table and then walks the
//! tokens in order, so that no two calls write to one place and every sum has one order.

mod cuda;

use ir::{DType, Dim, KernelSpec, Target};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, refuse, stored_bytes},
    view::{check_f32s, check_rank},
};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Ty},
};

/// The family.
pub(super) struct EmbeddingGrad;

/// Columns of a tile.
const COLUMNS: i64 = 64;

impl Lower for EmbeddingGrad {
    fn ops(&self) -> &'static [&'static str] {
        &["embedding_grad"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check_f32s(spec, &[0])?;
        check_rank(spec, 0, 2)?;
        check_rank(spec, 1, 1)?;
        match spec.operands[1].as_ref().map(|ids| ids.ty.dtype) {
            Some(DType::I32 | DType::I64) => Ok(()),
            other => Err(format!("ids are {other:?}, not i32 or i64")),
        }
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let e = &cx.e;
        let (dy, ids, table) = (cx.operand(0), cx.operand(1), cx.result(0));
        let (first, end) = cx.share(&dy.shape[1], COLUMNS);
        let rows = cx.size(&table.shape[0]);
        let step = &table.strides[1];
        e.for_each(e.i64(0), rows, 1, |row| {
            let row = table.at(&cx, cx.scale(row, &table.strides[0]));
            cx.strips(first, end, |i, lanes| {
                let zero = e.zero(Ty::of(Elem::F32, lanes));
                row.store_strip(&cx, zero, cx.scale(i, step), step);
            });
        });
        e.for_each(e.i64(0), cx.size(&dy.shape[0]), 1, |token| {
            let id = e.cast(ids.load(&cx, cx.scale(token, &ids.strides[0])), Elem::I64);
            let id = e.select(e.cmp(Cmp::Lt, id, e.i64(0)), e.add(id, rows), id);
            let inside = e.and(e.cmp(Cmp::Ge, id, e.i64(0)), e.cmp(Cmp::Lt, id, rows));
            e.if_then(inside, || {
                let from = dy.at(&cx, cx.scale(token, &dy.strides[0]));
                let to = table.at(&cx, cx.scale(id, &table.strides[0]));
                cx.strips(first, end, |i, lanes| {
                    let own = &dy.strides[1];
                    let add = from.load_strip(&cx, cx.scale(i, own), own, lanes);
                    let sum = to.load_strip(&cx, cx.scale(i, step), step, lanes);
                    to.store_strip(&cx, e.add(sum, add), cx.scale(i, step), step);
                });
            });
        });
        Ok(cx.finish(dy.shape[1].ceil_div(COLUMNS), 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        Ok(vec![cuda::kernel(spec)])
    }

    fn bytes(&self, spec: &KernelSpec) -> Dim {
        let given = spec.operands.iter().flatten();
        let read = given.fold(Dim::from(0), |sum, layout| sum + stored_bytes(layout));
        let rows = spec.operands[0].as_ref().map_or(Dim::from(0), |l| l.ty.elements());
        read + stored_bytes(&spec.results[0]) + rows * Dim::from(8)
    }
}
