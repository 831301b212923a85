//! `pack`: a matrix to panels of sixteen columns.
//!
//! A weight that stays is packed at compile time; this is for one that training has just updated,
//! or that is a gradient's factor.

use ir::{DType, Dim, KernelSpec, Target};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, refuse},
    flat,
    pack::{ROWS, Rows, pack_rows},
    space::Space,
    view::{View, memory_elem, register_elem},
};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Ty, Val},
};

/// The family.
pub(super) struct PackWeight;

impl Lower for PackWeight {
    fn ops(&self) -> &'static [&'static str] {
        &["pack"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        let [Some(w)] = spec.operands.as_slice() else { return Err("takes a matrix".into()) };
        if !matches!(w.ty.dtype, DType::F32 | DType::Bf16 | DType::F16) {
            return Err(format!("packs f32, bf16 and f16, not {}", w.ty.dtype));
        }
        if !spec.results.iter().all(ir::Layout::is_contiguous) {
            return Err("writes panels one behind the other".into());
        }
        Ok(())
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let e = &cx.e;
        let (w, y) = (cx.operand(0), cx.result(0));
        let lead = w.shape.len() - 2;
        let (rows, columns) = (&w.shape[lead], &w.shape[lead + 1]);
        let batch = [&w, &y].map(|view| view.strides[..lead].to_vec());
        let batch = Space::new(&w.shape[..lead], &batch).merged();
        let panels = columns.ceil_div(ROWS);
        let tiles = batch.points() * panels.clone();
        e.for_each(e.tile_begin(), e.tile_end(), 1, |tile| {
            let at = batch.offsets(&cx, e.div_unsigned(tile, cx.size(&panels)));
            let panel = e.rem_unsigned(tile, cx.size(&panels));
            let first = e.mul_const(panel, ROWS);
            let count = e.min(e.i64(ROWS), e.sub(cx.size(columns), first));
            let from = w.at(&cx, cx.offset(at[0], first, &w.strides[lead + 1]));
            let to = y.at(&cx, cx.offset(at[1], panel, &y.strides[lead]));
            move_panel(&cx, &from, &to, count);
            e.if_then(e.cmp(Cmp::Lt, count, e.i64(ROWS)), || {
                e.for_each(e.i64(0), cx.size(rows), 1, |row| {
                    e.for_each(count, e.i64(ROWS), 1, |column| {
                        let zero = e.zero(Ty::Scalar(memory_elem(to.dtype)));
                        e.store_at(zero, to.base, e.add(e.mul_const(row, ROWS), column));
                    });
                });
            });
        });
        Ok(cx.finish(tiles, 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        Ok(vec![threads(spec)])
    }
}

/// On a GPU a thread moves one element of a panel.
fn threads(spec: &KernelSpec) -> CudaKernel {
    let cx = Cx::cuda(spec, flat::THREADS);
    let e = &cx.e;
    let (w, y) = (cx.operand(0).bits(), cx.result(0).bits());
    let lead = w.shape.len() - 2;
    let (rows, columns) = (&w.shape[lead], &w.shape[lead + 1]);
    let batch = Space::new(&w.shape[..lead], &[w.strides[..lead].to_vec()]).merged();
    let panels = columns.ceil_div(ROWS);
    let each = panels.clone() * rows.clone() * Dim::from(ROWS);
    let grid = cx.each_thread(&(batch.points() * each), |point| {
        let line = e.div_unsigned(point, e.i64(ROWS));
        let row = e.rem_unsigned(line, cx.size(rows));
        let panel = e.div_unsigned(line, cx.size(rows));
        let from = batch.offsets(&cx, e.div_unsigned(panel, cx.size(&panels)))[0];
        let panel = e.rem_unsigned(panel, cx.size(&panels));
        let lane = e.rem_unsigned(point, e.i64(ROWS));
        let column = e.add(e.mul_const(panel, ROWS), lane);
        let from = cx.offset(from, row, &w.strides[lead]);
        let from = cx.offset(from, column, &w.strides[lead + 1]);
        let inside = e.cmp(Cmp::Lt, column, cx.size(columns));
        let zero = e.zero(Ty::Scalar(register_elem(w.dtype)));
        let value = e.if_else(inside, &[zero.ty()], || vec![w.load(&cx, from)], || vec![zero]);
        y.store(&cx, value[0], point);
    });
    cx.finish_cuda(grid, 0, &[], |_| false)
}

/// Writes `count` columns of a matrix side by side; what stands beside them is undefined.
fn move_panel(cx: &Cx<'_>, from: &View, to: &View, count: Val) {
    let e = &cx.e;
    let lead = from.shape.len() - 2;
    let [row, column] = [&from.strides[lead], &from.strides[lead + 1]];
    let steps = cx.size(&from.shape[lead]);
    let elem = memory_elem(from.dtype);
    if elem == Elem::F32 {
        // The columns are the rows of what `pack_rows` takes.
        let columns = Rows { base: from.base, elem, row: column, column: row };
        pack_rows(cx, &columns, count, steps, to.base);
        return;
    }
    e.for_each(e.i64(0), steps, 1, |step| {
        let (from, line) = (from.at(cx, cx.scale(step, row)), e.mul_const(step, ROWS));
        e.for_each(e.i64(0), count, 1, |lane| {
            let value = e.load_at(Ty::Scalar(elem), from.base, cx.scale(lane, column));
            e.store_at(value, to.base, e.add(line, lane));
        });
    });
}
