//! Batched products of two run-time matrices, in any layout.
//!
//! A tile is a few panels of sixteen columns and a block of rows of one matrix of the batch. For
//! more than a few rows both are packed as they are read, a block of k at a time (Goto & van de
//! Geijn 2008, doi:10.1145/1356052.1356053): rows for all panels of the tile, panels for all rows.
//! Every output is one chain of fused multiply-adds over k from zero, as in
//! [`crate::kernels::matmul`].

mod block;
mod cuda;
mod packing;

use ir::{Dim, KernelSpec, Target};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, refuse},
    gemm,
    space::{Space, broadcast_strides},
    view::{View, check_f32s},
};
use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Ty, Val},
};

pub(super) use block::{Block, Lhs};

/// The family.
pub(super) struct Matmul;

/// Rows of a tile.
const ROW_BLOCK: i64 = 96;
/// Steps of k in a block.
const K_BLOCK: i64 = 256;
/// Rows for which nothing is worth packing. Read in place, lines are as far apart as rows of the
/// matrix, and with a power of two between them few stay in the first cache.
const FEW_ROWS: i64 = 12;
/// Panels of a tile, at most: rows are packed once for all of them.
const PANELS_PER_TILE: i64 = 8;
/// Columns of a panel.
const PANEL: i64 = 16;
/// Rows of the widest register tile.
const TILE_ROWS: i64 = 6;

const VECTOR: Ty = Ty::Vector(Elem::F32, 16);

impl Lower for Matmul {
    fn ops(&self) -> &'static [&'static str] {
        &["matmul"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check_f32s(spec, &[0, 1])?;
        match spec.operands.as_slice() {
            [Some(a), Some(b)] if a.ty.rank() >= 2 && b.ty.rank() >= 2 => Ok(()),
            _ => Err("takes two matrices".into()),
        }
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let e = &cx.e;
        let (a, b, y) = (cx.operand(0), cx.operand(1), cx.result(0));
        let lead = y.shape.len() - 2;
        let (rows, columns) = (y.shape[lead].clone(), y.shape[lead + 1].clone());
        let k = a.shape[a.shape.len() - 1].clone();
        let spread = |v: &View| {
            let own = v.shape.len() - 2;
            broadcast_strides(&v.shape[..own], &v.strides[..own], lead)
        };
        let strides = [spread(&a), spread(&b), spread(&y)];
        let batch = Space::new(&y.shape[..lead], &strides).merged();
        let group = panels_per_tile(&columns);
        let (groups, blocks) = (columns.ceil_div(PANEL * group), rows.ceil_div(ROW_BLOCK));
        let each = groups * blocks.clone();
        let tiles = batch.points() * each.clone();
        let product = Product {
            cx: &cx,
            k: cx.size(&k),
            panels: cx.scratch(0),
            lhs: cx.scratch((4 * K_BLOCK * group * PANEL).cast_unsigned()),
            sums: cx.scratch((4 * K_BLOCK * (group * PANEL + ROW_BLOCK)).cast_unsigned()),
        };
        e.for_each(e.tile_begin(), e.tile_end(), 1, |tile| {
            let each = cx.size(&each);
            let at = batch.offsets(&cx, e.div_unsigned(tile, each));
            let rest = e.rem_unsigned(tile, each);
            let columns_at = e.div_unsigned(rest, cx.size(&blocks));
            let block = e.rem_unsigned(rest, cx.size(&blocks));
            let row = e.mul_const(block, ROW_BLOCK);
            let column = e.mul_const(columns_at, PANEL * group);
            let axes = |v: &View| {
                let n = v.strides.len();
                [v.strides[n - 2].clone(), v.strides[n - 1].clone()]
            };
            let part = Part {
                a: a.at(&cx, cx.offset(at[0], row, &axes(&a)[0])),
                a_axes: axes(&a),
                b: b.at(&cx, cx.offset(at[1], column, &axes(&b)[1])),
                b_axes: axes(&b),
                y: y.at(&cx, cx.offset(cx.offset(at[2], row, &axes(&y)[0]), column, &axes(&y)[1])),
                y_axes: axes(&y),
                rows: e.min(e.i64(ROW_BLOCK), e.sub(cx.size(&rows), row)),
                columns: e.min(e.i64(PANEL * group), e.sub(cx.size(&columns), column)),
            };
            product.emit(&part);
        });
        let scratch = 4 * (K_BLOCK * (group * PANEL + ROW_BLOCK) + group * ROW_BLOCK * PANEL);
        Ok(cx.finish(tiles, scratch.cast_unsigned()))
    }

    fn emit_cuda(&self, spec: &KernelSpec, target: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let product = cuda::product(spec).map_err(|reason| refuse(spec, reason))?;
        gemm::kernels(spec, &product, target)
    }
}

/// Panels of a tile: fewer where that would leave few tiles.
fn panels_per_tile(columns: &Dim) -> i64 {
    let panels = columns.ceil_div(PANEL).as_const();
    panels.map_or(PANELS_PER_TILE, |panels| (panels / 4).clamp(1, PANELS_PER_TILE))
}

/// Emission state.
struct Product<'a> {
    cx: &'a Cx<'a>,
    k: Val,
    /// f32 `[panels][K_BLOCK][16]`.
    panels: Val,
    /// f32 `[ROW_BLOCK / TILE_ROWS][K_BLOCK · TILE_ROWS]`, rows of a register tile by k, or k by
    /// rows.
    lhs: Val,
    /// f32 `[panels][ROW_BLOCK][16]`.
    sums: Val,
}

/// Operands of one tile, from its first row and column.
struct Part {
    a: View,
    a_axes: [Dim; 2],
    b: View,
    b_axes: [Dim; 2],
    y: View,
    y_axes: [Dim; 2],
    rows: Val,
    columns: Val,
}

/// A block of k.
#[derive(Clone, Copy)]
struct Steps {
    first: Val,
    count: Val,
}

impl Product<'_> {
    fn emit(&self, part: &Part) {
        let e = &self.cx.e;
        let panels = e.div_ceil_const(part.columns, PANEL);
        e.for_each(e.i64(0), panels, 1, |panel| {
            e.for_each(e.i64(0), part.rows, 1, |row| {
                e.store(e.zero(VECTOR), self.line(panel, row));
            });
        });
        e.for_each(e.i64(0), self.k, K_BLOCK, |first| {
            let steps = Steps { first, count: e.min(e.i64(K_BLOCK), e.sub(self.k, first)) };
            let few = e.cmp(Cmp::Le, part.rows, e.i64(FEW_ROWS));
            e.either(few, || self.few(part, steps, panels), || self.many(part, steps, panels));
        });
        e.for_each(e.i64(0), panels, 1, |panel| self.write(part, panel));
    }

    fn line(&self, panel: Val, row: Val) -> Val {
        let e = &self.cx.e;
        let at = e.add(e.mul_const(panel, ROW_BLOCK * PANEL), e.mul_const(row, PANEL));
        e.at(self.sums, Elem::F32, at)
    }

    /// Columns of a panel.
    fn columns(&self, part: &Part, panel: Val) -> Val {
        let e = &self.cx.e;
        e.min(e.i64(PANEL), e.sub(part.columns, e.mul_const(panel, PANEL)))
    }

    /// A block of k of the rows in place.
    fn few(&self, part: &Part, steps: Steps, panels: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let a = part.a.at(cx, cx.scale(steps.first, &part.a_axes[1]));
        let lhs = Lhs::InPlace(&a, &part.a_axes);
        let packed = |panel: Val| {
            self.pack_panel(part, steps, panel);
            self.add(part, steps, panel, &lhs, self.panel(panel), &Dim::from(PANEL));
        };
        e.for_each(e.i64(0), panels, 1, |panel| {
            if !(part.b_axes[1].is(1) && part.b.dtype == ir::DType::F32) {
                packed(panel);
                return;
            }
            let whole = e.cmp(Cmp::Eq, self.columns(part, panel), e.i64(PANEL));
            let in_place = || {
                let from = e.mul_const(panel, PANEL);
                let from = part.b.at(cx, cx.offset(from, steps.first, &part.b_axes[0]));
                self.add(part, steps, panel, &lhs, from.base, &part.b_axes[0]);
            };
            e.either(whole, in_place, || packed(panel));
        });
    }

    /// A block of k of the rows, packed.
    fn many(&self, part: &Part, steps: Steps, panels: Val) {
        let e = &self.cx.e;
        let lhs = self.pack_lhs(part, steps);
        self.pack_panels(part, steps, panels);
        e.for_each(e.i64(0), panels, 1, |panel| {
            self.add(part, steps, panel, &lhs, self.panel(panel), &Dim::from(PANEL));
        });
    }

    fn panel(&self, panel: Val) -> Val {
        let e = &self.cx.e;
        e.at(self.panels, Elem::F32, e.mul_const(panel, K_BLOCK * PANEL))
    }

    fn add(
        &self,
        part: &Part,
        steps: Steps,
        panel: Val,
        lhs: &Lhs<'_>,
        lines: Val,
        line_step: &Dim,
    ) {
        let sums = self.line(panel, self.cx.e.i64(0));
        let (rows, steps) = (part.rows, steps.count);
        Block { lhs, rows, steps, panel: lines, step: line_step }.add(self.cx, sums);
    }

    fn write(&self, part: &Part, panel: Val) {
        let (cx, e) = (self.cx, &self.cx.e);
        let columns = self.columns(part, panel);
        let [row_step, step] = &part.y_axes;
        let first = part.y.at(cx, cx.scale(e.mul_const(panel, PANEL), step));
        if row_step.is(1) && !step.is(1) {
            // Columns of the result are dense: they are written whole.
            let sums = self.line(panel, e.i64(0));
            e.for_each(e.i64(0), columns, 1, |column| {
                let to = first.at(cx, cx.scale(column, step));
                let from = e.at(sums, Elem::F32, column);
                let sums = View { base: from, dtype: ir::DType::F32, ..first.clone() };
                cx.strips(e.i64(0), part.rows, |row, lanes| {
                    let line = e.mul_const(row, PANEL);
                    let sums = sums.load_strip(cx, line, &Dim::from(PANEL), lanes);
                    to.store_strip(cx, sums, row, row_step);
                });
            });
            return;
        }
        e.for_each(e.i64(0), part.rows, 1, |row| {
            let y = first.at(cx, cx.scale(row, row_step));
            let line = self.line(panel, row);
            e.either(
                e.cmp(Cmp::Eq, columns, e.i64(PANEL)),
                || y.store_strip(cx, e.load(VECTOR, line), e.i64(0), step),
                || {
                    e.for_each(e.i64(0), columns, 1, |column| {
                        let sum = e.load_at(Ty::Scalar(Elem::F32), line, column);
                        y.store(cx, sum, cx.scale(column, step));
                    });
                },
            );
        });
    }
}
